"""Secrets stay where they are: the box's own are looked for in all that is said, logged and run. And hostile texts.

The canaries are the real secrets of the box: passwords, keys, tokens, made on it; no setting takes a secret, and no
address with a password in it. They are looked for plain, in base64 and percent-encoded. Every end-to-end test that
prints one fails (conftest.py). That a sudo password shows nowhere is in test_debian13_sudo.py; what of 2000 hostile
texts through all settings is refused, in tests/cli/test_hostile.py: here what is taken meets a real system.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from ownstack.engine.session import Session, Target
from tests.cli import test_hostile as hostile
from tests.e2e import conftest
from tests.e2e.conftest import Mirror, Provisioned
from tests.hosts import Host
from tests.hosts.kit import Ownstack, wait_ready
from tests.hosts.watching import look, secrets, shown, watched

TOUCHED = "ownstack-canary"  # the file that a hostile text makes where a shell reads it
SAYING = (
    ("plan", "--json"), ("plan", "-vvv"), ("status", "--json"), ("status", "-vvv"),
    ("models", "--json"), ("detect", "--json"), ("config", "--json"), ("password", "--json"), ("password",),
    ("logs", "--json"), ("logs",),
)  # fmt: skip
OWN = "/var/lib/ownstack/n8n "  # what n8n writes anyway
# reads what a unit's environment file becomes, as systemd itself reads it
READER = """[Service]
Type=oneshot
EnvironmentFile=/root/hostile/%i.env
StandardOutput=truncate:/root/hostile/%i.env.out
ExecStart=/usr/bin/env -0
"""
READ_BY_SYSTEMD = (
    "set -e; cat > /run/systemd/system/hostile@.service; systemctl daemon-reload; cd /root/hostile; "
    "systemctl start $(ls *.env | sed 's/\\(.*\\).env/hostile@\\1/'); "
    "rm /run/systemd/system/hostile@.service; systemctl daemon-reload"
)
UNPACK = """
import json, os, sys
for path, content in json.load(sys.stdin).items():
    if content is None:
        os.makedirs(path)
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        open(path, "w", encoding="utf-8").write(content)
"""
PACK = "import glob, json; print(json.dumps({p: open(p, 'rb').read().decode() for p in glob.glob('/root/hostile/*')}))"


@pytest.fixture(scope="module")
def box(common: Host) -> Host:
    return common


@pytest.fixture(scope="module")
def ownstack(box: Host, mirror: Mirror) -> Ownstack:
    return mirror.ownstack(box)


def files_of_the_caller(box: Host) -> dict[str, str]:
    """What the calls left on the machine that called: settings, state, logs."""
    paths = [path for path in box.home.rglob("*") if path.is_file() and path.name != "id_ed25519"]
    return {str(path): path.read_text(errors="replace") for path in paths}


def test_the_first_up_made_secrets_and_showed_none(box: Host, debian12: Provisioned) -> None:
    """In no process and no file while it made them, and in none of its own words."""
    found = secrets(box)
    assert len(found) >= 6, sorted(found)
    assert min(map(len, found.values())) >= 16
    assert box.output("stat -c '%a %U' /etc/ownstack/secrets /etc/ownstack/secrets/* | sort -u") == "600 root\n700 root"
    assert found == conftest.SECRETS
    assert debian12.secrets_seen == []
    assert shown(debian12.said.stdout + debian12.said.stderr, found) == []


def test_new_passwords_are_shown_by_nothing(box: Host, ownstack: Ownstack, tmp_path: Path) -> None:
    before = secrets(box)
    with watched(box) as seen:
        said = [
            ownstack("password", "--reset", "--yes", "-vvv"),
            ownstack("plan", "--out", str(tmp_path / "plan.json")),
        ]
    after = secrets(box)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"open_webui_admin_password", "n8n_owner_password"}
    both = {**before, **{f"new {name}": value for name, value in after.items()}}
    assert seen.hits == []
    assert shown("".join(done.stdout + done.stderr for done in said), both) == []
    assert shown((tmp_path / "plan.json").read_text(), both) == []
    assert look(box) == []
    assert {path for path, text in files_of_the_caller(box).items() if shown(text, both)} == set()


def test_no_command_says_one(box: Host, ownstack: Ownstack) -> None:
    found = secrets(box)
    for words in SAYING:
        done = ownstack(*words, check=False)
        assert done.stdout, words
        assert shown(done.stdout + done.stderr, found) == [], words


def test_control_a_planted_one_is_found_everywhere(box: Host) -> None:
    planted = ("/var/log/planted", "/var/lib/ownstack/log/planted")
    box.run(
        f's=$(cat /etc/ownstack/secrets/qdrant_api_key); logger -t planted "it is $s"; echo $s > {planted[0]}; '
        f"mkdir -p /var/lib/ownstack/log; echo xx$s | base64 -w0 > {planted[1]}"
    )
    assert {place for place, name in look(box) if name == "qdrant_api_key"} == {"journal", *planted}
    box.run(f"rm {' '.join(planted)}")
    s = "s=$(cat /etc/ownstack/secrets/qdrant_api_key)"
    with watched(box) as seen:
        box.run(f"{s}; sh -c 'sleep 0.5; :' \"$s\"")
    assert seen.hits == [["argv", "qdrant_api_key"]]
    with watched(box) as seen:
        box.run(f"{s}; export s; setpriv --reuid tester --clear-groups sleep 0.5")
    assert ["environment", "qdrant_api_key"] in seen.hits
    found = secrets(box)
    assert shown("so " + found["qdrant_api_key"], found) == ["qdrant_api_key"]


def test_control_a_test_that_shows_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conftest, "SECRETS", {"planted": "Canary0123456789abcdef"})
    report = pytest.TestReport("x", ("x", 1, "x"), {}, "passed", None, "call", [("out", "say Canary0123456789abcdef")])
    assert conftest.secrets_shown(report) == ["planted"]


def traces(box: Host) -> str:
    """Files that a hostile text made, on the box and here."""
    places = "/ $(findmnt -rno TARGET -t tmpfs)"  # services have their own /tmp, below the host's
    found = box.output(f"find {places} -xdev -name {TOUCHED} 2>/dev/null || true")
    return found + str(sorted(Path("/tmp").glob(TOUCHED)))


def test_systemd_reads_hostile_names_as_they_were_written(box: Host) -> None:
    """Every accepted text, in the environment files of all services, read by the host's own systemd."""
    files: dict[str, str] = {}
    wanted: dict[str, str] = {}
    for number, case in enumerate(hostile.cases()):
        plan = hostile.hostile_plan(case, "bare-server")
        rendered = [file for file in hostile.all_files(plan) if file.path.endswith("/env")]
        for file in rendered:
            files[f"/root/hostile/{number}-{Path(file.path).parent.name}.env"] = file.content
        wanted[f"/root/hostile/{number}-open_webui.env.out"] = f"WEBUI_ADMIN_NAME={case['open_webui.admin_name']}"
    assert len(files) > len(wanted) > 60
    box.run(f"python3 -c {shlex.quote(UNPACK)}", data=json.dumps(files))
    box.run(READ_BY_SYSTEMD, data=READER)
    read = json.loads(box.output(f"python3 -c {shlex.quote(PACK)}"))
    for path, line in wanted.items():
        assert line in read[path].split("\0"), path
    names = {path: [line.partition("=")[0] for line in text.split("\0")] for path, text in read.items()}
    for kind in ("open_webui", "n8n"):
        of_kind = [sorted(found) for path, found in names.items() if path.endswith(f"{kind}.env.out")]
        assert len(of_kind) == len(wanted)
        assert all(found == of_kind[0] for found in of_kind), kind
    assert traces(box) == "[]"


def test_two_hundred_hostile_values_reach_a_host_as_they_were_written(box: Host) -> None:
    """Every accepted text of every free setting, through the kit's own connection, the host's shell and its runner."""
    accepted, _ = hostile.sorted_out()
    values = {key: [f"/{key}/{text}" for text in accepted[key]] for key in sorted(hostile.FREE)}
    count = sum(map(len, values.values()))
    print(f"{count} values")
    assert count >= 200
    with Session(Target.parse(f"root@{box.hostname}", ssh_config=str(box.home / ".ssh/config"))) as session:
        session.layout_runner = "/opt/ownstack/base/current/runner"
        for texts in values.values():
            assert session.step("box.missing", {"paths": texts})["missing"] == texts
    assert traces(box) == "[]"


def test_systemd_reads_hostile_folders_as_they_were_written(box: Host) -> None:
    """Every accepted path, in a unit of n8n of its own, read by the host's own systemd."""
    cases = hostile.cases()
    files = {}
    for number, case in enumerate(cases):
        plan = hostile.hostile_plan(case, "bare-server")
        (file,) = [file for file in hostile.all_files(plan) if file.path.endswith("ownstack-n8n.service")]
        files[f"/run/systemd/system/hostile-{number}.service"] = file.content
    box.run(f"python3 -c {shlex.quote(UNPACK)}", data=json.dumps(files))
    names = " ".join(f"hostile-{number}.service" for number in range(len(cases)))
    shown_by_it = box.output(f"systemctl daemon-reload; systemctl show -p LoadState -p ReadWritePaths {names}")
    box.run("rm /run/systemd/system/hostile-*; systemctl daemon-reload")
    # not splitlines: a folder's name may hold what Python takes for the end of a line
    units = [dict(line.split("=", 1) for line in unit.split("\n")) for unit in shown_by_it.split("\n\n")]
    assert [unit["LoadState"] for unit in units] == ["loaded"] * len(cases)
    for unit, case in zip(units, cases, strict=True):
        path = case["folders.docs.path"]
        taken = ".." not in path and len(path) < 200  # of others systemd says that it takes no notice
        assert (unit["ReadWritePaths"].removeprefix(OWN) in (path, in_quotes(path))) == taken, (unit, path[:200])


def in_quotes(text: str) -> str:
    """A text as systemctl shows it in a list, where it holds what a shell would read."""
    return '"' + re.sub(r'(["\\$`])', r"\\\1", text) + '"'


def test_a_box_with_hostile_names_stands(box: Host, mirror: Mirror) -> None:
    """Texts that mean something to a shell, systemd and templates, as names and as folders, through a whole `up`."""
    paths = [
        f"/srv/hostile/{number}{text}"
        for number, text in enumerate(hostile.TEXTS)
        if len(text) < 200 and text not in hostile.SHORT
    ]
    taken = [
        path for path in paths
        if ".." not in path
        and not hostile.refusal({"folders.docs.path": path, "folders.docs.service": "n8n"})
    ]  # fmt: skip
    assert len(taken) >= 9, taken
    box.run(f"python3 -c {shlex.quote(UNPACK)}", data=json.dumps(dict.fromkeys(taken)))
    name = f"$(touch /tmp/{TOUCHED}) `id`';id #\" %h ${{HOME}} {{{{7*7}}}}"
    text = f"[open_webui]\nadmin_name = {json.dumps(name)}\n[n8n]\nowner_first_name = {json.dumps(name[:32])}\n"
    for number, path in enumerate(taken):
        keys = f'path = {json.dumps(path)}\nservice = "n8n"\nwrite = {json.dumps(bool(number % 2))}\n'
        text += f"[folders.f{number}]\n{keys}"
    unusual = Ownstack(box, variables=mirror.ownstack(box).variables, toml=mirror.toml + text)
    done = unusual("up", "--yes", "--no-verify", "-vvv")
    assert "Base: secrets" in done.stderr
    assert shown(done.stdout + done.stderr, secrets(box)) == []
    wait_ready(box)
    assert traces(box) == "[]"
    main = box.output("systemctl show -p MainPID --value ownstack-open-webui")
    assert f"WEBUI_ADMIN_NAME={name}" in box.output(f"tr '\\0' '\\n' < /proc/{main}/environ").splitlines()
    for number, path in enumerate(taken):
        shell = f"touch {shlex.quote(path)}/written"
        main = box.output("systemctl show -p MainPID --value ownstack-n8n")
        done = box.run(f"nsenter -t {main} -m sh -c {shlex.quote(shell)}", check=False)
        assert (done.returncode == 0) == bool(number % 2), (path, done.stderr)
    assert unusual.json("up", "--yes", "--no-verify")["changed"] == 0


def test_control_a_shell_that_reads_a_text_leaves_a_trace(box: Host) -> None:
    box.run(f"sh -c {shlex.quote('echo ' + hostile.TEXTS[1])}")
    assert f"/tmp/{TOUCHED}" in traces(box)
