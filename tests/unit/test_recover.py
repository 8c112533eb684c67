"""After a power cut: what the unit does that runs at boot, and what it is made of."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from ownstack.runner import backup, journal, managers, recover, restore
from ownstack.runner.__main__ import find
from ownstack.runner.core import Event, StepError
from roles.base import recovery
from tests.fixtures.small_box import SmallBox
from tests.unit.engine_plans import plan
from tests.unit.test_hardening import MOST, exposure


def silent(event: Event) -> None:
    """Nobody listens."""


@pytest.fixture
def box(tmp_path: Path) -> SmallBox:
    return SmallBox(tmp_path / "box", "one")


@pytest.fixture
def spec(box: SmallBox) -> dict[str, Any]:
    """What the step is told; a restore of a backup is laid ready."""
    file = str(backup.make(box.make_spec(), silent)["data"]["file"])
    env = box.folder / "etc/env"
    env.write_text("KEY=old\n")
    env.chmod(0o640)
    told = box.restore_spec(file, configuration=[str(env), str(box.folder / "etc/never")])
    return {"journal": str(box.var / "journal.jsonl"), "prefix": f"r{os.getpid()}", "restore": told}


def recovered(spec: dict[str, Any]) -> list[str]:
    return [line["what"] for line in journal.lines(spec["journal"]) if line["event"] == "recovered"]


def test_a_healthy_boot_is_left_alone(box: SmallBox, spec: dict[str, Any]) -> None:
    before = box.content()
    assert recover.at_start(spec, silent) == {"changed": False, "data": {"told": []}}
    assert (box.content(), recovered(spec)) == (before, [])
    restore.stage(spec["restore"], silent)  # laid ready, and nothing exchanged
    assert not recover.at_start(spec, silent)["changed"]
    assert (box.var / "restore/new").exists()


@pytest.mark.parametrize("renames", [0, 1, 3, 99])
def test_a_restore_that_was_cut_off_is_taken_back(
    renames: int, box: SmallBox, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {**box.content(), "env": (box.folder / "etc/env").read_text()}
    done: list[str] = []
    rename = restore._rename

    def one(source: str, target: str) -> None:
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(source)
        rename(source, target)

    restore.stage(spec["restore"], silent)
    with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
        patched.setattr(restore, "_rename", one)
        restore.swap(spec["restore"], silent)
    (box.folder / "etc/env").write_text("KEY=new\n")  # as it is written anew for the restored data
    box.manifest.write_text("{}")
    result = recover.at_start(spec, silent)
    assert result["changed"]
    assert "as it was before" in result["data"]["told"][0]
    assert {**box.content(), "env": (box.folder / "etc/env").read_text()} == {
        **before, "var/journal.jsonl": Path(spec["journal"]).read_bytes().hex()
    }  # fmt: skip
    assert (box.folder / "etc/env").stat().st_mode & 0o777 == 0o640
    assert recovered(spec) == result["data"]["told"]
    assert not recover.at_start(spec, silent)["changed"]


def test_a_step_that_goes_on_is_waited_for(
    box: SmallBox, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its run was cut off; the process that exchanges data here was not."""
    before = box.content()
    restore.stage(spec["restore"], silent)
    restore.swap(spec["restore"], silent)
    stream = open(spec["restore"]["lock"], "a", encoding="ascii")  # noqa: SIM115 - closed by the timer
    fcntl.flock(stream, fcntl.LOCK_EX)
    threading.Timer(0.6, stream.close).start()
    with monkeypatch.context() as patched:
        patched.setattr(restore, "WAIT_S", 0.0)
        with pytest.raises(StepError) as caught:
            restore.revert(spec["restore"], silent)
    assert caught.value.code == "busy"
    assert restore.revert(spec["restore"], silent)["data"]["reverted"]
    assert box.content() == before


def test_while_somebody_works_on_the_box_it_keeps_out(
    box: SmallBox, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    restore.stage(spec["restore"], silent)
    restore.swap(spec["restore"], silent)
    monkeypatch.setattr(recover, "holder", lambda prefix: "`ownstack up` by somebody")
    assert not recover.at_start(spec, silent)["changed"]
    assert json.loads(Path(spec["restore"]["state"]).read_text())["status"] == "swapped"


def test_one_that_fails_is_said_and_the_others_are_tried(spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def bad(spec: dict[str, Any], emit: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(recover, "RECOVERERS", {"bad": bad, "good": lambda spec, emit: "done", "absent": bad})
    with pytest.raises(StepError) as caught:
        recover.at_start({**spec, "bad": {}, "good": {}}, silent)
    assert "No space left" in caught.value.message
    told = recovered(spec)
    assert "`ownstack up` tries again" in told[0]
    assert told[1:] == ["done"]


def test_units_that_are_yet_to_start_are_not_stopped(
    box: SmallBox, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To stop a unit that systemd is about to start is to cancel its start."""
    done: list[tuple[str, list[str]]] = []

    class Boss:
        def status(self, units: list[str]) -> list[dict[str, Any]]:
            return [{"active": unit == "b"} for unit in units]

        def stop(self, units: list[str]) -> None:
            done.append(("stop", units))

        def start(self, units: list[str]) -> None:
            done.append(("start", units))

    monkeypatch.setattr(restore, "manager", lambda spec: Boss())
    told = {**spec["restore"], "units": ["a", "b"]}
    restore.stage(told, silent)
    restore.swap(told, silent)
    done.clear()
    recover.at_start({**spec, "restore": told}, silent)
    assert done == [("stop", ["b"]), ("start", ["b"])]


@pytest.mark.parametrize("manager", ["systemd", "systemd-user"])
def test_systemd_accepts_the_unit(manager: Any, tmp_path: Path) -> None:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not installed")
    file = recovery.files(plan(manager=manager))[1]
    path = tmp_path / Path(file.path).name
    path.write_text(file.content.replace("/opt/ownstack/base/current/runner", "/bin/true"))
    mode = ["--user"] if manager == "systemd-user" else []
    env = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    run = subprocess.run([tool, *mode, "verify", path], capture_output=True, text=True, check=False, env=env)
    assert run.returncode == 0, run.stderr
    assert "Unknown" not in run.stderr, run.stderr


def test_it_runs_before_the_services_and_is_walled_off(tmp_path: Path) -> None:
    made = plan()
    about, file = recovery.files(made)
    assert "Before=ownstack-ollama.service\n" in file.content
    assert not about.secret
    told = json.loads(about.content)
    assert set(recover.RECOVERERS) < set(told), "each recoverer is told where things are"
    assert told["upgrade"]["state"].startswith("/var/lib/ownstack/")
    assert json.loads(about.content)["restore"]["state"] == "/var/lib/ownstack/run/restore.json"
    path = tmp_path / "ownstack-recover.service"
    path.write_text(file.content)
    assert exposure(path) <= MOST + 1.5  # it is root's: data belongs to many accounts
    assert not recovery.wanted(plan(manager="supervisord"))


@pytest.mark.parametrize("store", ["/mnt/large/models", "/home/anna/models"])
def test_it_may_write_where_the_models_lie(store: str) -> None:
    """The way back of Ollama puts back which models there are: on their disk."""
    assert "large" not in recovery.files(plan())[1].content
    content = recovery.files(plan(folders=(("ollama:models", store, True),)))[1].content
    assert f'ReadWritePaths="-{store}"\n' in content
    assert ("ProtectHome=false\n" in content) == store.startswith("/home/")


SHOWN = {
    "ready": "UnitFileState=enabled\nActiveState=active\nNeedDaemonReload=no\n",
    "not enabled": "UnitFileState=disabled\nActiveState=active\nNeedDaemonReload=no\n",
    "not active": "UnitFileState=enabled\nActiveState=inactive\nNeedDaemonReload=no\n",
    "stale": "UnitFileState=enabled\nActiveState=active\nNeedDaemonReload=yes\n",
    "not there": "UnitFileState=\nActiveState=inactive\nNeedDaemonReload=no\n",
}


@pytest.mark.parametrize("first", SHOWN)
@pytest.mark.parametrize("second", SHOWN)
@pytest.mark.parametrize("step", ["recover.arm", "gpu.arm"])
def test_units_are_armed_where_they_are_not(
    monkeypatch: pytest.MonkeyPatch, first: str, second: str, step: str
) -> None:
    called: list[list[str]] = []

    def call(command: list[str], check: bool = True) -> str:
        called.append(command)
        asked = command[command.index("-p") + 1].split(",")
        units = [SHOWN[which].splitlines() for which in (first, second)[: len(command) - command.index("--") - 1]]
        return "\n\n".join("\n".join(line for line in unit if line.partition("=")[0] in asked) for unit in units)

    monkeypatch.setattr(managers, "call", call)
    spec = {"manager": "systemd", "unit": "a.service", "units": ["a.timer", "b.service"]}
    changed = find(step)({**spec, "dry": True}, silent)["changed"]
    if step == "gpu.arm":
        assert changed == (first != "ready" or second in ("not enabled", "not there"))
    else:
        assert changed == (first in ("not enabled", "stale", "not there"))
    assert len(called) == 1
