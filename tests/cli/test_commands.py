"""All commands: exit codes, one JSON envelope on success and on failure, and nothing done unasked."""

from __future__ import annotations

import datetime
import functools
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ownstack.cli import COMMANDS, run
from ownstack.cli.output import colour
from ownstack.cli.up import how_to_open
from ownstack.engine import carry
from ownstack.hardware.report import Disk
from ownstack.state import BoxState
from ownstack.verify.check import Check, Outcome
from tests.cli import standing
from tests.cli.standing import ANSWERS, Box, stand
from tests.unit import machines

ROOT = Path(__file__).parents[2]
# commands that work on a box, with what they need to succeed on one that stands
ON_A_BOX: dict[str, list[str]] = {
    "plan": [],
    "up": ["--yes"],
    "verify": [],
    "status": [],
    "open": ["--no-browser"],
    "logs": [],
    "start": [],
    "stop": ["qdrant"],
    "restart": [],
    "models": [],
    "disk": [],
    "password": [],
    "down": ["--yes"],
}
ANYWHERE: dict[str, list[str]] = {
    "detect": ["--from", str(machines.PROBES / "bare-server.json")],
    "config": [],
    "init": ["--yes"],
}

# they have files of their own
OWN_TESTS = {"fit", "bench", "backup", "restore", "upgrade", "rollback", "import"}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings file and no terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    for name in [name for name in os.environ if name.startswith("OWNSTACK_")]:
        monkeypatch.delenv(name)
    colour.cache_clear()


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Box:
    """A box whose checks all hold."""
    file = tmp_path / "carried"
    file.write_bytes(b"carried")
    monkeypatch.setattr(carry, "held", lambda artifact: carry.Carried(file, "c" * 64))
    checks(monkeypatch, Outcome.ok("as planned"))
    return stand(monkeypatch)


def checks(monkeypatch: pytest.MonkeyPatch, outcome: Outcome) -> None:
    one = Check("thing-runs", "the thing runs", lambda context: outcome, "`ownstack logs thing` shows why", "thing")
    monkeypatch.setattr("ownstack.verify.runner.all_checks", lambda plan: [one])


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The one envelope on stdout."""
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert set(answer) == {"schema", "ok", "data", "error"}
    return answer


# -- the envelope ---------------------------------------------------------------------------------


def test_the_lists_of_this_file_name_every_command() -> None:
    assert {*ON_A_BOX, *ANYWHERE, "completion"} == set(COMMANDS) - OWN_TESTS


@pytest.mark.parametrize("command", [*ON_A_BOX, *ANYWHERE])
def test_success_is_one_envelope(command: str, box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = {**ON_A_BOX, **ANYWHERE}[command]
    assert run([command, *arguments, "--json"]) == 0
    answer = told(capsys)
    assert (answer["schema"], answer["ok"], answer["error"]) == (f"ownstack/{command}/1", True, None)
    assert answer["data"]


@pytest.mark.parametrize("command", [*ON_A_BOX, *ANYWHERE])
def test_failure_is_one_envelope_too(command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "ownstack.toml").write_text("uze = 'chat'\n")
    assert run([command, *{**ON_A_BOX, **ANYWHERE}[command], "--json"]) == 2
    answer = told(capsys)
    assert (answer["schema"], answer["ok"], answer["data"]) == (f"ownstack/{command}/1", False, None)
    assert answer["error"]["hint"]
    if command == "init":
        assert "exists" in answer["error"]["message"]
        assert (tmp_path / "ownstack.toml").read_text() == "uze = 'chat'\n"
    else:
        assert "ownstack.toml: unknown setting `uze`" in answer["error"]["message"]


@pytest.mark.parametrize("command", [*ON_A_BOX, *ANYWHERE])
def test_a_wrong_option_is_usage(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--json", "--nonsense"]) == 2
    answer = told(capsys)
    assert answer["error"]["code"] == "usage"
    assert "--nonsense" in answer["error"]["message"]


# -- exit codes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ON_A_BOX)
def test_4_where_the_host_cannot_be_reached(command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        host = f"nobody@127.0.0.1:{held.getsockname()[1]}"
        code = run([command, *ON_A_BOX[command], "--json", "--host", host, "--set", 'roles=["qdrant"]'])
    seen = capsys.readouterr()
    error = json.loads(seen.out)["error"]
    assert (code, error["code"]) == (4, "unreachable")
    assert host in error["message"]
    assert seen.err == "", "pyinfra's own words are not added to ours"


@pytest.mark.parametrize("command", [name for name in ON_A_BOX if name not in ("plan", "up")])
def test_1_where_no_box_stands(command: str, box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    box.state = BoxState()
    assert run([command, *ON_A_BOX[command], "--json"]) == 1
    answer = told(capsys)
    assert answer["error"]["code"] == "no-box"
    assert "`ownstack up`" in answer["error"]["hint"]
    assert answer["error"]["message"] == "there is no box on fake"


@pytest.mark.parametrize("command", ["plan", "up"])
def test_3_where_nothing_fits(command: str, box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    box.report, box.state = machines.report("alpine-nothing"), BoxState()
    assert run([command, *ON_A_BOX[command], "--json"]) == 3
    assert told(capsys)["error"]["code"] == "unsupported"
    box.report = machines.report("driver-mismatch")
    assert run([command, *ON_A_BOX[command], "--json"]) == 3
    assert told(capsys)["error"]["code"] == "HW-NVIDIA-DRIVER-MISMATCH"
    assert box.seen.files == []


TIGHT = (Disk(path="/", total_bytes=10**12, free_bytes=2**30, mount="/", device="/"),)
TAKEN = (machines.listening(5678, process="grafana", pid=9, user="grafana", unit="grafana.service"),)


@pytest.mark.parametrize(
    ("parts", "words", "code", "message"),
    [
        ({}, ["--set", "models.chat=nosuch:1b"], 2, "unknown model 'nosuch:1b'"),
        ({}, ["--set", "models.chat=qwen3:999b"], 2, "unknown model 'qwen3:999b'"),
        ({"disks": TIGHT}, [], 3, "/ has 1.0 GiB free"),
        ({"ports": TAKEN}, [], 2, "taken by grafana (process 9, unit grafana.service, user grafana)"),
        ({"host": {"glibc": "2.31"}}, [], 3, "glibc 2.31"),
        ({}, ["--set", "ollama.use=existing"], 3, "no Ollama answers"),
        ({}, ["--set", 'roles=["open_webui"]'], 2, "open_webui keeps its vectors in qdrant"),
    ],
)
def test_bad_input_is_refused_before_anything_is_done(
    parts: dict[str, Any], words: list[str], code: int, message: str, box: Box, capsys: pytest.CaptureFixture[str]
) -> None:
    box.report, box.state = machines.changed("bare-server", **parts), BoxState()
    assert run(["up", "--yes", "--json", *words]) == code
    error = told(capsys)["error"]
    assert message in error["message"]
    assert error["hint"]
    assert (box.seen.files, box.seen.commands) == ([], [])


@pytest.mark.parametrize("outcome", [Outcome.failed("it is gone"), Outcome.amber("not yet", "wait")])
@pytest.mark.parametrize("command", ["verify", "up"])
def test_1_where_a_check_does_not_hold(
    command: str, outcome: Outcome, box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checks(monkeypatch, outcome)
    assert run([command, *ON_A_BOX[command], "--json"]) == 1
    answer = told(capsys)
    assert (answer["ok"], answer["error"]["code"]) == (False, "checks-failed")
    assert "thing-runs" in answer["error"]["message"]
    assert answer["error"]["hint"] == (outcome.hint or "`ownstack logs thing` shows why")
    found = answer["data"]["verify"] if command == "up" else answer["data"]
    assert found["checks"][0]["measured"] == outcome.measured
    assert run([command, *ON_A_BOX[command]]) == 1
    assert "thing-runs" in capsys.readouterr().out


def test_a_check_that_breaks_has_failed_with_its_reason(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(context: Any) -> Outcome:
        raise ValueError("of its own")

    one = Check("broken", "breaks", broken)
    monkeypatch.setattr("ownstack.verify.runner.all_checks", lambda plan: [one])
    assert run(["verify", "--json"]) == 1
    (result,) = told(capsys)["data"]["checks"]
    assert result["status"] == "failed"
    assert "ValueError: of its own" in result["measured"]


def test_status_is_1_where_a_service_does_not_run(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status"]) == 0
    assert "running" in capsys.readouterr().out
    box.running = False
    assert run(["status", "--json"]) == 1
    answer = told(capsys)
    assert answer["error"]["code"] == "not-running"
    assert not any(service["running"] for service in answer["data"]["services"])


def test_status_names_the_folder_that_a_service_misses(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    box.running = False
    monkeypatch.setitem(standing.ANSWERS, "box.missing", {"missing": ["/mnt/disk"]})
    assert run(["status"]) == 1
    assert "/mnt/disk is not there: mount or make it, and the service starts by itself" in capsys.readouterr().out
    assert run(["status", "--json"]) == 1
    error = told(capsys)["error"]
    assert "ollama (/mnt/disk is not there)" in error["message"]
    assert error["hint"].startswith("mount or make it")


def test_status_names_what_drifted_and_old_pins(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["status"]) == 0
    said = capsys.readouterr().out
    assert "changed in Open WebUI" not in said
    found = {"drift": [{"key": "openai.enable", "planned": False, "found": True}]}
    monkeypatch.setitem(ANSWERS, "open_webui.drift", found)
    checked = machines.data().floors.checked
    for days, old in ((30, False), (31, True)):
        now = checked + datetime.timedelta(days=days)
        today = SimpleNamespace(date=SimpleNamespace(today=functools.partial(lambda day: day, now)))
        monkeypatch.setattr("ownstack.cli.status.datetime", today)
        assert run(["status"]) == 0
        said = capsys.readouterr().out
        assert "openai.enable" in said
        assert ("look for a newer ownstack" in said) == old


def test_plan_says_what_from_where_how_much_and_why(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    box.state, box.sources = BoxState(), machines.restricted()
    assert run(["plan", "--set", "network.n8n=internet"]) == 0
    said = capsys.readouterr().out
    made = machines.plan(box.report, answers=box.sources)
    for words in (
        r"\n  qdrant +127\.0\.0\.1:6333 +reaches only this machine\n",
        r"\n  n8n +127\.0\.0\.1:5678 +reaches the internet\n",
        r"\n  chat +smollm2:135m, Q4_1, context \d+, \d+ MiB of memory, about \d+ tokens/s\n +\w",
        r"\n  qdrant +1\.16\.3 +npm \(npm-third-party, \d+ MiB\)  BELOW ITS SECURITY FLOOR\n",
        r"\nNeeds \d\.\d GiB of disk and about \d\.\d GiB of memory\n",
        r"\nWhy\n(.*\n)*?  the model registry does not answer \(no route\)",
        r"\nNote\n(.*\n)*?  qdrant 1\.16\.3 is below the security floor 1\.19\.2",
        r"\nWill change\n(  .*\n)*?  Qdrant: program\n",
    ):
        assert re.search(words, said), words
    assert made.deferred_model is not None
    assert f"this hardware deserves {made.deferred_model.tag}, which cannot be fetched from here" in said


def test_status_keeps_saying_what_is_below_its_floor_and_how_far_each_reaches(
    box: Box, capsys: pytest.CaptureFixture[str]
) -> None:
    box.state = machines.box(machines.plan(box.report, {"network.n8n": "lan"}, machines.restricted()))
    assert run(["status"]) == 0
    said = capsys.readouterr().out
    assert "below the security floor: qdrant 1.16.3" in said
    assert re.search(r"  n8n +running +127\.0\.0\.1:5678\b.* reaches the local network\n", said)
    assert re.search(r"  open_webui +running +127\.0\.0\.1:8080 +reaches only this machine\n", said)


def test_10_where_changes_are_pending(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "--exit-code", "--json"]) == 10
    answer = told(capsys)
    assert answer["ok"]
    assert answer["data"]["changed"] == len(answer["data"]["changes"]) > 0
    assert box.seen.files == []


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_130_where_it_was_interrupted(
    as_json: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ownstack.cli.config.read_settings", interrupted)
    assert run(["config", *as_json]) == 130
    if as_json:
        assert told(capsys)["error"]["code"] == "interrupted"
    else:
        assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_130_where_a_run_is_interrupted(
    as_json: list[str], box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C in the middle of `up`: pyinfra does not swallow it, and nothing is done afterwards."""
    box.state = BoxState()
    answer = standing.runner

    def pressed(command: str) -> list[str] | None:
        if "secrets.ensure" in command and '"dry"' not in command:
            os.kill(os.getpid(), signal.SIGINT)
        return answer(command)

    monkeypatch.setattr("tests.cli.standing.runner", pressed)
    assert run(["up", "--yes", *as_json]) == 130
    assert any("secrets.ensure" in command for command in box.seen.commands[-2:])
    if as_json:
        assert told(capsys)["error"]["code"] == "interrupted"
    else:
        assert "hint: run the same command again: it goes on" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["-vv"], ["-v", "-v"], ["--verbose", "--verbose"], ["-vvv"], [], ["-v"]])
def test_a_fault_of_ours_is_told_like_any_other_error(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No traceback unless one is asked for, and one envelope all the same."""

    def broken(*_: Any, **__: Any) -> None:
        raise ValueError("of its own")

    monkeypatch.setattr("ownstack.cli.status.read_settings", broken)
    assert run(["status", *words, "--json"]) == 1
    seen = capsys.readouterr()
    answer = json.loads(seen.out)
    assert (answer["ok"], answer["error"]["code"]) == (False, "internal")
    assert answer["error"]["message"] == "ValueError: of its own"
    assert ("Traceback" in seen.err) == (len("".join(words).replace("--verbose", "v").strip("-").replace("-", "")) > 1)
    assert "in broken" in seen.err or "Traceback" not in seen.err
    assert run(["status", *words]) == 1
    assert "error: ValueError: of its own" in capsys.readouterr().err


@pytest.mark.parametrize("command", ON_A_BOX)
def test_a_record_of_another_version_is_named(command: str, box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    assert box.state.manifest is not None
    record = {**box.state.manifest, "kit_version": "9.9.9"}
    record["plan"] = {**record["plan"], "models": [{"of": "later"}]}
    box.state = BoxState(manifest=record, releases=box.state.releases)
    assert run([command, *ON_A_BOX[command], "--json"]) == 2
    error = told(capsys)["error"]
    assert error["code"] == "record"
    assert "made by ownstack 9.9.9" in error["message"]
    assert "use ownstack 9.9.9" in error["hint"]
    assert box.seen.files == []


@pytest.mark.parametrize(
    ("word", "near"), [("plann", "plan"), ("verfy", "verify"), ("stats", "status"), ("passwort", "password")]
)
def test_an_unknown_command_is_named_with_the_nearest(word: str, near: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([word]) == 2
    seen = capsys.readouterr()
    assert f"there is no command {word!r}. Did you mean `{near}`?" in seen.err
    assert seen.out == ""


def test_no_command_at_all_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    seen = capsys.readouterr()
    assert "Usage: ownstack" in seen.err
    assert "error" not in seen.err.split("Options:")[0]


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "--out", "/nowhere/plan.json"],
        ["init", "--yes", "--config", "/nowhere/box.toml"],
        ["up", "--yes", "--plan", "/nowhere/plan.json"],
        ["detect", "--from", "/nowhere/probe.json"],
        ["detect", "--from", str(machines.PROBES / "bare-server.json"), "--raw", "/nowhere/probe.json"],
        ["status", "--config", "/nowhere/box.toml"],
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    arguments: list[str], box: Box, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    seen = capsys.readouterr()
    assert "/nowhere/" in seen.err
    assert "Traceback" not in seen.err


# -- nothing is done unasked ----------------------------------------------------------------------


@pytest.mark.parametrize("as_json", [[], ["--json"]])
@pytest.mark.parametrize("command", [["up"], ["down"], ["down", "--purge"], ["password", "--reset"]])
def test_2_without_a_terminal_and_without_yes(
    command: list[str], as_json: list[str], box: Box, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, *as_json]) == 2
    seen = capsys.readouterr()
    assert "`--yes`" in seen.out + seen.err
    assert box.seen.files == []
    # what is kept aside is looked up, so that `down` can name it
    steps = [text for text in box.seen.commands if "--json" in text and " snapshots.held " not in text]
    assert not [*steps, *(text for text in box.seen.commands if "rm -rf" in text)]


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 130), ("\n", 130), ("", 130)])
def test_with_a_terminal_it_asks(
    answer: str, code: int, box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal(answer))
    assert run(["down"]) == code
    seen = capsys.readouterr()
    assert "Will be removed" in seen.err
    assert "Stays" in seen.err
    assert bool([text for text in box.seen.commands if "rm -rf" in text]) == (code == 0)


def test_down_lists_what_goes_and_what_stays(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["down", "--yes", "--json"]) == 0
    data = told(capsys)["data"]
    assert any("/var/lib/ownstack" in line for line in data["kept"])
    assert any("/etc/ownstack" in line for line in data["kept"])
    assert run(["down", "--yes", "--json", "--purge"]) == 0
    data = told(capsys)["data"]
    assert data["kept"] == ["backups in /var/lib/ownstack-backups, where there are any"]
    assert any("/var/lib/ownstack" in line for line in data["removed"])


def test_no_password_is_ever_printed(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["password"]) == 0
    text = capsys.readouterr().out
    assert "sudo cat /etc/ownstack/secrets/open_webui_admin_password" in text
    assert run(["password", "n8n", "--json"]) == 0
    assert [row["service"] for row in told(capsys)["data"]["accounts"]] == ["n8n"]


@pytest.mark.parametrize("made_from", ["local", "me@server"])
def test_where_a_password_is_is_said_for_whoever_asks(
    made_from: str, box: Box, capsys: pytest.CaptureFixture[str]
) -> None:
    """A box that was made over SSH may be asked on the spot, and the other way round."""
    box.state = machines.box(machines.plan(box.report, {"host": made_from}))
    assert run(["password", "n8n"]) == 0
    assert "password: sudo cat /etc/ownstack/secrets/n8n_owner_password" in capsys.readouterr().out
    assert run(["password", "n8n", "--host", "you@other"]) == 0
    assert "password: ssh you@other sudo cat /etc/ownstack/secrets/n8n_owner_password" in capsys.readouterr().out


def test_what_a_box_records_does_not_depend_on_how_it_was_reached() -> None:
    first, second = (machines.box(machines.plan(flags={"host": host})) for host in ("local", "me@server"))
    assert first.manifest == second.manifest


def test_an_unknown_service_is_named_with_the_nearest(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["restart", "qdrannt"]) == 2
    assert "did you mean `qdrant`?" in capsys.readouterr().err


def test_addresses_work_from_where_the_user_sits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    made = machines.plan()
    said = "\n".join(how_to_open(made))
    assert "http://127.0.0.1:8080" in said
    assert "ssh " not in said
    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.9 50000 192.0.2.1 22")
    said = "\n".join(how_to_open(made))
    assert re.search(r"`ssh -L 8080:127.0.0.1:8080 -L 5678:127.0.0.1:5678 \S+@192.0.2.1`", said)
    away = made.model_copy(update={"host": made.host.model_copy(update={"target": "me@server"})})
    said = "\n".join(how_to_open(away))
    assert "ownstack open --host me@server" in said
    assert "127.0.0.1" not in said


@pytest.mark.parametrize("screen", ["DISPLAY", "WAYLAND_DISPLAY", ""])
def test_open_opens_the_browser_where_there_is_a_screen(
    screen: str, box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    if screen:
        monkeypatch.setenv(screen, ":0")
    for page, address in (("open-webui", "http://127.0.0.1:8080/"), ("n8n", "http://127.0.0.1:5678/")):
        opened.clear()
        assert run(["open", page]) == 0
        assert capsys.readouterr().out == f"{address}\n"
        assert opened == ([address] if screen else [])
        assert run(["open", page, "--no-browser"]) == 0
        assert run(["open", page, "--json"]) == 0
        capsys.readouterr()
        assert len(opened) == bool(screen)
    box.state = machines.box(machines.plan(box.report, {"roles": ["qdrant", "ollama", "models", "open_webui"]}))
    assert run(["open", "n8n"]) == 2
    assert "n8n is not part of this box" in capsys.readouterr().err


def tunnelled(monkeypatch: pytest.MonkeyPatch, interrupted: bool, words: bytes = b"") -> list[str]:
    """A tunnel that stands until Ctrl-C, or breaks with ssh's last words."""
    ended: list[str] = []

    def wait() -> int:
        if interrupted:
            raise KeyboardInterrupt
        return 255

    process = SimpleNamespace(wait=wait, terminate=lambda: ended.append("terminated"), stderr=io.BytesIO(words))
    monkeypatch.setattr("ownstack.cli.open.tunnel", lambda target, forwards: process)
    monkeypatch.setattr("ownstack.cli.open.signal.signal", lambda *_: None)
    return ended


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_open_tells_when_its_tunnel_breaks(
    as_json: list[str], box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = tunnelled(monkeypatch, interrupted=False, words=b"client_loop: send disconnect: Broken pipe\n")
    assert run(["open", "--host", "me@server", "--no-browser", *as_json]) == 4
    seen = capsys.readouterr()
    assert "the tunnel to me@server ended: client_loop: send disconnect: Broken pipe" in seen.err
    assert ended == ["terminated"]
    if as_json:
        assert json.loads(seen.out)["data"]["address"].startswith("http://127.0.0.1:")
    ended = tunnelled(monkeypatch, interrupted=True)
    assert run(["open", "--host", "me@server", "--no-browser", *as_json]) == 0
    assert ended == ["terminated"]


def test_open_says_where_webhooks_are_when_the_port_is_taken_here(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tunnelled(monkeypatch, interrupted=True)
    for shift, told_so in ((0, False), (1000, True)):
        monkeypatch.setattr("ownstack.cli.open.free_port", functools.partial(lambda by, port: port + by, shift))
        assert run(["open", "--host", "me@server", "--no-browser"]) == 0
        seen = capsys.readouterr()
        assert seen.out.strip() == f"http://127.0.0.1:{8080 + shift}/"
        assert ("http://127.0.0.1:6678/" in seen.err) == told_so


# -- a reviewed plan ------------------------------------------------------------------------------


def test_a_reviewed_plan_is_carried_out_as_it_is(box: Box, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    box.state = BoxState()
    assert run(["plan", "--out", "plan.json", "--set", "qdrant.port=7333"]) == 0
    capsys.readouterr()
    assert run(["up", "--yes", "--plan", "plan.json", "--json"]) == 0
    assert "7333" in box.seen.text()


def test_a_plan_for_another_host_or_another_state_is_refused(
    box: Box, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    standing, box.state = box.state, BoxState()
    here = box.report
    assert run(["plan", "--out", "plan.json"]) == 0
    made = json.loads(Path("plan.json").read_text())

    def refused(words: str) -> None:
        capsys.readouterr()
        assert run(["up", "--yes", "--plan", "plan.json"]) == 2
        seen = capsys.readouterr()
        assert words in seen.err
        assert "plan --out FILE" in seen.err
        assert box.seen.files == []

    box.state = standing
    refused("the box has changed since the plan was made")
    box.state = BoxState()
    box.report = machines.changed("bare-server", host={"machine_id_hash": "other", "hostname": "elsewhere"})
    refused("was made for box, this is elsewhere")
    box.report = machines.changed("bare-server", cpu={"model": "another"})
    refused("the hardware has changed")
    box.report = here
    Path("plan.json").write_text(json.dumps({**made, "kit_version": "0.0.0"}))
    refused("was made by version 0.0.0")
    Path("plan.json").write_text(json.dumps({**made, "extra": 1}))
    refused("is not a plan")
    Path("plan.json").write_text("{")
    refused("is not a plan")


# -- help and completion --------------------------------------------------------------------------


def test_disk_says_who_holds_what(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stand(monkeypatch)
    n8n = {"name": "n8n", "path": "/opt/ownstack/n8n", "kind": "programs", "bytes": 3 << 30, "unread": 0}
    data = {"name": "qdrant", "path": "/var/lib/ownstack/qdrant", "kind": "data", "bytes": 5 << 20, "unread": 2}
    rows = [{**n8n, "older_bytes": 1 << 30}, {**data, "older_bytes": 0}]
    disks = [{"mount": "/", "total": 200 << 30, "free": 100 << 30}]
    monkeypatch.setitem(ANSWERS, "box.disk", {"folders": rows, "disks": disks})
    assert run(["disk"]) == 0
    said = capsys.readouterr().out
    assert "programs: 3.0 GiB" in said
    assert "of it older versions 1.0 GiB" in said
    assert "2 folders could not be read" in said
    assert re.search(r"mine:latest +954 MiB  yours", said)
    assert "free on /: 100.0 GiB of 200.0 GiB" in said
    assert run(["disk", "--json"]) == 0
    envelope = json.loads(capsys.readouterr().out)
    assert envelope["schema"] == "ownstack/disk/1"
    assert envelope["data"]["models"] == [{"name": "mine:latest", "bytes": 10**9, "use": "yours"}]
    assert envelope["data"]["disks"] == disks


def test_disk_tells_all_else_where_the_engine_is_down(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A full disk may be why."""
    real = standing.runner

    def answer(command: str) -> list[str] | None:
        if "ollama.list" not in command:
            return real(command)
        down = {"event": "error", "code": "engine-down", "message": "Ollama does not answer", "hint": "start it"}
        return [json.dumps(down)]

    monkeypatch.setattr(standing, "runner", answer)
    monkeypatch.setitem(ANSWERS, "box.disk", {"folders": [], "disks": [{"mount": "/", "total": 9 << 30, "free": 0}]})
    assert run(["disk"]) == 0
    said = capsys.readouterr().out
    assert "are not told: Ollama does not answer" in said
    assert "free on /: 0" in said


GOLDEN = Path(__file__).with_name("golden")


@pytest.mark.parametrize("command", ["", *(name for name in COMMANDS if name not in OWN_TESTS)])
def test_the_help_is_as_it_was_read_last(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run with OWNSTACK_TEST_SNAPSHOTS=1 to accept a change, and read it."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("shutil.get_terminal_size", lambda *_: os.terminal_size((100, 40)))
    assert run([*filter(None, [command]), "--help"]) == 0
    text = capsys.readouterr().out
    path = GOLDEN / f"{command or 'ownstack'}.txt"
    if ACCEPT:
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
    assert max(map(len, text.splitlines())) <= 100


ACCEPT = os.environ.get("OWNSTACK_TEST_SNAPSHOTS")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "_OWNSTACK_COMPLETE" in script
    assert "ownstack" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert run(["completion", "tcsh"]) == 2


def test_completion_names_the_commands() -> None:
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT / "src"), "_OWNSTACK_COMPLETE": "bash_complete",
        "COMP_WORDS": "ownstack st", "COMP_CWORD": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", "from ownstack.cli import main; main([])"], env=environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert sorted(line.split(",")[1] for line in done.stdout.splitlines()) == ["start", "status", "stop"]


def test_help_of_the_whole_imports_no_command() -> None:
    code = (
        "import sys; from ownstack.cli import run; run(['--help']);"
        "print([m for m in sys.modules if m.startswith(('pyinfra', 'pydantic', 'rich', 'ownstack.cli.'))])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "['ownstack.cli.output']"
