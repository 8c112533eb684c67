"""The whole deploy on pyinfra's `@fake` host: which operations, in which order, and what they may not do."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from deploy import apply, remove
from ownstack.engine import carry
from ownstack.engine.apply import RunResult, execute, preview
from ownstack.plan import Plan
from roles import roles_of
from tests.plan.fake import PATHS, FakeSession, Seen, bare, paths_of, steps_answered
from tests.unit.machines import box, changed, plan, sources

SNAPSHOTS = Path(__file__).with_name("snapshots")
MACHINES = ("bare-server", "rtx-4090", "gb10", "rx-7900-xtx", "container-cgroup-v2", "wsl2-rtx-5080")


@pytest.fixture(autouse=True)
def _nothing_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the controller would obtain lies there already, as a file of few bytes."""
    file = tmp_path / "carried"
    file.write_bytes(b"carried")
    monkeypatch.setattr(carry, "held", lambda artifact: carry.Carried(file, "c" * 64))


def run(made: Plan, sudo: bool = True, action: Any = apply, **more: Any) -> tuple[RunResult, Seen]:
    with FakeSession() as session:
        if sudo:
            session.use_sudo()
        return execute(session, action, lambda event: None, plan=made, **more), session.seen


def test_the_operations_of_one_role_in_their_order() -> None:
    result, _ = run(plan(flags={"roles": ["qdrant"]}))
    assert [op.name for op in result.operations] == [
        "Base: accounts",
        "Base: folders",
        "Base: Python",
        "Base: runner",
        "Base: record the plan",
        "Base: secrets",
        "Base: downloads",
        "Base: python",
        "Base: uv",
        "Base: age",
        "Qdrant: program",
        "Base: configuration",
        "Qdrant: folders",
        "Qdrant: configuration",
        "Qdrant: configuration with secrets",
        "Base: recovery at boot",
        "Qdrant: service",
        "Base: record that it is done",
    ]
    assert result.changed == result.total


@pytest.mark.parametrize("machine", MACHINES)
def test_the_deploy_of_a_machine_class(machine: str) -> None:
    """A difference here is a difference on every such machine: run with OWNSTACK_TEST_SNAPSHOTS=1 to accept it."""
    made = plan(machine)
    result, _ = run(made)
    tags = {model.tag: f"<{model.use} model>" for model in made.models}
    names = [op.name for op in result.operations]
    for tag, use in tags.items():
        names = [name.replace(tag, use) for name in names]
    told = {
        "engine": made.engine,
        "manager": made.manager,
        "operations": names,
        "services": {
            service.name: {
                "program": service.command[0], "ports": list(service.ports), "network": service.network,
                "gpu": service.gpu, "account": made.account(service.name),
            }
            for role in roles_of(made)
            for service in role.services(made)
        },
        "variants": {item.name: f"{item.variant} ({item.way})" for role in made.roles for item in role.artifacts},
        "secrets": [secret.name for secret in made.secrets],
    }  # fmt: skip
    path = SNAPSHOTS / f"{machine}.json"
    if os.environ.get("OWNSTACK_TEST_SNAPSHOTS"):
        path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    assert told == json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("machine", ["bare-server", "rtx-4090", "container-cgroup-v2"])
def test_nothing_is_installed_half_configured(machine: str) -> None:
    """The plan is recorded before anything is fetched; all is configured before anything starts."""
    names = [op.name for op in run(plan(machine))[0].operations]
    recorded = names.index("Base: record the plan")
    assert recorded < names.index("Base: secrets")
    assert recorded < min(names.index(name) for name in ("Base: downloads", "Base: uv") if name in names)
    first_role = min(i for i, name in enumerate(names) if name.endswith(": program"))
    last_configured = max(i for i, name in enumerate(names) if ": configuration" in name)
    first_service = min(i for i, name in enumerate(names) if name.endswith(": service"))
    last_program = max(i for i, name in enumerate(names) if name.endswith(": program"))
    assert recorded < first_role <= last_program < last_configured < first_service
    assert names[-1] == "Base: record that it is done"


@pytest.mark.parametrize("machine", ["bare-server", "container-cgroup-v2"])
def test_no_secret_leaves_the_target(machine: str) -> None:
    """Commands, files and the plan hold marks only; what a mark stands for is made on the target."""
    made = plan(machine)
    _, seen = run(made)
    marks = {secret.mark for secret in made.secrets}
    used = {mark for mark in marks if mark in seen.text()}
    assert used, "files with secrets are sent with marks"
    assert set(re.findall(r"@@secret:[^@]*@@", seen.text())) <= marks | {"@@secret:NAME@@"}
    for path, data in seen.files:
        if not path.endswith((".pyz", "runner")):
            assert b"@@secret:" not in data, f"{path} is filled on the target or not at all"
    assert "*MASKED*" not in seen.text()
    for word in ("password", "api_key", "encryption"):
        for found in re.findall(rf'"{word}[a-z_]*": "([^"]*)"', made.model_dump_json()):
            assert found == ""


@pytest.mark.parametrize("machine", ["bare-server", "rtx-4090", "container-cgroup-v2"])
def test_every_command_and_file_of_a_deploy_goes_through_sudo(machine: str) -> None:
    _, seen = run(plan(machine))
    assert seen.without_sudo == []
    assert len(seen.commands) > 30
    assert all(command.startswith("sudo -H -n sh -c ") for command in seen.commands)


def test_a_password_of_sudo_is_in_no_command() -> None:
    word = "p'a;ss $(wo) \"rd\\ %h"
    with FakeSession(lambda text: ["/dev/shm/ownstack-1"] if "mktemp" in text else bare(text)) as session:
        session.use_sudo(word)
        assert session.sudo_works()
        execute(session, apply, lambda event: None, plan=plan(flags={"roles": ["qdrant"]}))
        seen = session.seen
    assert word not in "\n".join(seen.commands)
    assert 'wo) "rd' not in "\n".join(seen.commands)
    sent = [(path, data) for path, data in seen.files if word.encode() in data]
    assert sent == [("/dev/shm/ownstack-1/word", word.encode() + b"\n")]
    through = [command for command in seen.commands if "sudo " in command and "SUDO_ASKPASS=" in command]
    assert len(through) > 10
    assert any("LC_ALL=C sudo -A -k true" in command for command in seen.commands)
    assert any("rm -rf /dev/shm/ownstack-1" in command for command in seen.commands[-3:])


def test_no_command_line_is_longer_than_the_kernel_takes() -> None:
    for machine in MACHINES:
        _, seen = run(plan(machine))
        assert max(map(len, seen.commands)) < 100_000


def everything_stands(made: Plan) -> Any:
    """The answers of a host on which `made` was carried out: every path is as wanted, every step has nothing to do."""
    wanted: dict[str, str] = {}

    def answer(command: str) -> list[str] | None:
        if PATHS in command:
            return [wanted.get(path, "none\t\t\t\t") for path in paths_of(command)]
        if "--json" in command:
            return steps_answered(command, changed=False)
        if "getent" in command:
            names = [made.account(service.name) for role in roles_of(made) for service in role.services(made)]
            names += [extra.name for role in roles_of(made) for extra in role.accounts(made)]
            return [f"user {name}" for name in names] + [f"group {name}:x:1:{','.join(names)}" for name in names]
        return None

    return answer, wanted


def test_a_second_run_changes_nothing_and_asks_only_facts() -> None:
    import hashlib

    made = plan(flags={"roles": ["qdrant"]})
    result, first = run(made)
    answer, wanted = everything_stands(made)
    for command in first.commands:
        made_folder = re.search(r"mkdir -p -m (\d+) (/\S+)", command)
        if made_folder:
            wanted[made_folder[2].rstrip("'")] = f"directory\t{made_folder[1]}\troot\troot\t"
        owner = re.search(r"chown -h (\S+):(\S+) (/\S+)", command)
        if owner:
            path = owner[3].rstrip("'")
            wanted[path] = f"directory\t700\t{owner[1]}\t{owner[2]}\t"
        link = re.search(r"ln -sfn (releases/\S+) (/\S+)\.new", command)
        if link:
            wanted[link[2]] = f"link\t{link[1]}\t\t\t"
    for path, data in first.files:
        final = path.removesuffix(".part")
        wanted[final] = f"file\t644\troot\troot\t{hashlib.sha256(data).hexdigest()}"
    python = made.role("base").artifact("python")
    mark = made.layout.release("python", python.version, python.digest) + "/.ownstack-release.json"
    wanted[mark] = "file\t644\troot\troot\t"

    def looking(command: str) -> list[str] | None:
        lines = answer(command)
        return lines and [line.replace('"data": {}', '"data": {"models": []}') for line in lines]

    look = {"ollama.leftovers": {"url": "u"}}
    with FakeSession(looking) as session:
        again = execute(session, apply, lambda event: None, look, plan=made)
        seen = session.seen
    assert again.looked == {"ollama.leftovers": {"models": []}}
    with FakeSession() as session:
        assert execute(session, apply, lambda event: None, look, plan=made).looked == {}
    assert [op.name for op in again.operations if op.changed] == []
    assert again.total == result.total
    assert seen.files == []
    # pyinfra's own question for a folder, accounts, paths, steps: each asked once for all operations
    assert len(seen.commands) <= 4, "\n".join(seen.commands)
    assert not [c for c in seen.commands if re.search(r"\b(mkdir|chown|chmod|mv|useradd)\b", c) and "stat -c" not in c]


def test_a_preview_sends_nothing_and_obtains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(artifact: Any) -> Any:
        raise AssertionError("a preview obtained an artefact")

    monkeypatch.setattr(carry, "held", forbidden)
    with FakeSession() as session:
        result = preview(session, apply, plan=plan("rtx-4090", answers=sources(models="no route")))
        assert session.seen.files == []
        facts = [c for c in session.seen.commands if "stat -c" not in c and "--json" not in c and "getent" not in c]
    assert facts == []
    assert result.changed == result.total > 20


def test_one_account_alone_needs_no_root() -> None:
    made = plan(changed("bare-server", host={"sudo": "none", "tools": ("zstd",)}))
    result, seen = run(made, sudo=False)
    assert "Base: accounts" not in [op.name for op in result.operations]
    for word in ("useradd", "chown", "sudo", "apt-get"):
        assert not [command for command in seen.commands if re.search(rf"\b{word} ", command)], word
    home = made.layout.opt.partition("/.local")[0]
    for path, _ in seen.files:
        assert path.startswith(home)


def test_down_stops_in_the_reverse_order_and_the_base_goes_last() -> None:
    made = plan()
    result, seen = run(made, action=remove, purge=False, packages=[])
    names = [op.name for op in result.operations]
    order = [names.index(f"{title}: stop") for title in ("n8n", "Open WebUI", "Ollama", "Qdrant")]
    assert order == sorted(order)
    assert names[-1] == "Base: remove"
    text = seen.text()
    assert not re.search(rf"rm -rf \S*{made.layout.etc}\b", text)
    assert "userdel" not in text


def test_a_box_that_no_longer_uses_its_card_has_no_watch_over_it() -> None:
    """It would find the model on the processor and start the engine again and again."""
    (on_cpu,) = specs(run(plan("rtx-4090", {"hardware.cpu_only": True}))[1], "gpu.disarm")
    assert "ownstack-gpu-watch.timer" in on_cpu["units"]
    assert any(path.endswith("/ownstack-gpu-watch.timer") for path in on_cpu["files"])
    assert specs(run(plan("rtx-4090"))[1], "gpu.disarm") == []


def test_a_role_that_is_left_out_ends_before_the_record_forgets_it() -> None:
    first = plan()
    made = plan(flags={"roles": ["qdrant", "ollama", "models", "open_webui"]}, state=box(first))
    result, seen = run(made)
    names = [op.name for op in result.operations]
    assert names.index("n8n: stop") < names.index("n8n: remove") < names.index("Base: record the plan")
    leaving = ("n8n: no more maintenance", "n8n: stop", "n8n: remove")
    assert [name for name in names if name.startswith("n8n: ")] == list(leaving)
    (stopped,) = specs(seen, "box.retire")
    assert [service["name"] for service in stopped["services"]] == ["n8n"]
    assert stopped["unit_files"] == ["/etc/systemd/system/ownstack-n8n.service"]
    (removed,) = specs(seen, "artifacts.remove")
    assert removed["paths"] == [f"/opt/ownstack/{name}" for name in ("n8n", "node", "sqlite3-addon")]
    recorded = specs(seen, "box.write_manifest")[0]["values"]
    assert "n8n" not in [role["name"] for role in recorded["plan"]["roles"]]
    assert recorded["plan"]["retired"] == []
    assert "userdel" not in seen.text()


def test_purge_takes_data_configuration_accounts_and_added_packages() -> None:
    made = plan(flags={"roles": ["qdrant"]})

    def answer(command: str) -> list[str] | None:
        # n8n was left out of the box later; its account kept its data until now
        return (
            ["user ownstack-qdrant", "user ownstack-n8n", "user me", "user ownstack"]
            if "getent" in command
            else bare(command)
        )

    with FakeSession(answer) as session:
        execute(session, remove, lambda event: None, plan=made, purge=True, packages=["zstd"])
        text = session.seen.text()
    assert f"rm -rf {made.layout.var} {made.layout.etc}" in text
    assert {name.rstrip("'") for name in re.findall(r"userdel (\S+)", text)} == {"ownstack-qdrant", "ownstack-n8n"}
    assert "purge zstd" in text


MANAGERS = {
    "apt-get": ("install zstd", "purge zstd"),
    "dnf": ("-q -y install zstd", "-q -y remove zstd"),
    "pacman": ("-S --noconfirm --needed zstd", "-Rs --noconfirm zstd"),
    "zypper": ("-n install --no-recommends zstd", "-n remove zstd"),
}


@pytest.mark.parametrize("manager", [*MANAGERS, "none"])
def test_system_packages_come_and_go_by_the_hosts_own_manager(manager: str, tmp_path: Path) -> None:
    made = plan("rtx-4090")
    scripts = []
    cases: list[tuple[Any, dict[str, Any]]] = [(apply, {}), (remove, {"purge": True, "packages": ["zstd"]})]
    for action, more in cases:
        (script,) = [c for c in run(made, action=action, **more)[1].commands if "command -v pacman" in c]
        scripts.append(shlex.split(script)[5])
    if manager != "none":
        tool = tmp_path / manager
        tool.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {tmp_path}/asked\n')
        tool.chmod(0o755)
    done = [
        subprocess.run(
            ["/bin/sh", "-c", text], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
        )
        for text in scripts
    ]
    if manager == "none":
        assert done[0].returncode == 1
        assert "no known package manager" in done[0].stderr
        return
    assert [one.returncode for one in done] == [0, 0], done
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[-2].endswith(MANAGERS[manager][0])
    assert asked[-1].endswith(MANAGERS[manager][1])


def specs(seen: Seen, step: str) -> list[dict[str, Any]]:
    """The specifications with which a runner step was carried out."""
    found = []
    for command in seen.commands:
        words = shlex.split(shlex.split(command)[5])
        if step in words and "if" not in words:
            found.append(json.loads(words[words.index("--json") + 1]))
    return found


def test_n8ns_key_alone_is_never_made_anew_while_its_data_is_there() -> None:
    made = plan("bare-server")
    (told,) = specs(run(made)[1], "secrets.ensure")
    opens = {secret["name"]: secret["opens"] for secret in told["secrets"] if secret["opens"]}
    folder = f"{made.layout.data('n8n')}/.n8n"
    data = [f"{folder}/config", f"{folder}/database.sqlite"]
    assert opens == {"n8n_encryption_key": {"data": data, "held_in": [data[0], "encryptionKey"], "code": "n8n-key"}}


@pytest.mark.parametrize("machine", MACHINES)
def test_what_is_downloaded_beforehand_is_what_releases_take(machine: str) -> None:
    """A file that no release takes would be fetched again at every run."""
    _, seen = run(plan(machine))
    (downloads,) = specs(seen, "fetch.many_outliving")
    releases = {spec["release"]: spec for spec in specs(seen, "artifacts.release")}
    assert len(downloads["files"]) >= 3
    for item in downloads["files"]:
        spec = releases[item["release"]]
        assert spec["work"] == downloads["work"]
        assert item["sha256"] in [part["sha256"] for part in spec["parts"]]
        assert item["url"] in [part.get("url") for part in spec["parts"]]


def test_a_runner_that_says_nothing_is_made_anew() -> None:
    """It is damaged: what would be done is not known, and the operation that brings it comes first."""
    answer, _ = everything_stands(plan(flags={"roles": ["qdrant"]}))
    with FakeSession(lambda command: [] if "--json" in command else answer(command)) as session:
        result = preview(session, apply, plan=plan(flags={"roles": ["qdrant"]}))
    assert {"Base: runner", "Base: secrets", "Qdrant: service"} <= {op.name for op in result.operations if op.changed}
