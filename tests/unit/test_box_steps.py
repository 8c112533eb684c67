"""Process managers and the box's own steps: what is parsed, what is restarted, what is recorded."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ownstack.runner import box, managers
from ownstack.runner.core import Event, StepError

SHOW = """\
MainPID=4242
NRestarts=3
ActiveState=active
SubState=running
UnitFileState=enabled
NeedDaemonReload=no

MainPID=0
NRestarts=0
ActiveState=failed
SubState=failed
UnitFileState=disabled
NeedDaemonReload=yes

NRestarts=0
ActiveState=inactive
SubState=dead
UnitFileState=
NeedDaemonReload=no
"""
STATUS = """\
box-a                            RUNNING   pid 4242, uptime 0:00:05
box-b                            BACKOFF   Exited too quickly (process log may have details)
box-c                            FATAL     Exited too quickly
box-d                            STOPPED   Nov 21 10:00 AM
"""


def silent(event: Event) -> None:
    """Nobody listens."""


def program(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_systemd_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "answer").write_text(SHOW)
    program(tmp_path / "bin/systemctl", f'echo "$@" >> {tmp_path}/asked; cat {tmp_path}/answer')
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    status = managers.Systemd().status(["box-a", "box-b", "box-c"])
    assert status[0] == {
        "active": True, "state": "active (running)", "enabled": True, "pid": 4242, "restarts": 3, "reload": False
    }  # fmt: skip
    assert [item["active"] for item in status] == [True, False, False]
    assert [item["enabled"] for item in status] == [True, False, False]
    assert [item["reload"] for item in status] == [False, True, False]
    assert "box-a.service box-b.service box-c.service" in (tmp_path / "asked").read_text()
    assert managers.Systemd().status([]) == []
    managers.Systemd(user=True).status(["x"])
    assert (tmp_path / "asked").read_text().splitlines()[-1].startswith("--user ")


def test_a_failing_program_is_told_with_its_last_lines(tmp_path: Path) -> None:
    program(tmp_path / "bin/wrong", "echo one; echo two >&2; exit 3")
    with pytest.raises(StepError) as caught:
        managers.call([str(tmp_path / "bin/wrong")])
    assert "ended with 3" in caught.value.message
    assert "two" in caught.value.message
    assert managers.call([str(tmp_path / "bin/wrong")], check=False).split() == ["one", "two"]
    program(tmp_path / "bin/locale", 'echo "$LC_ALL"')
    assert managers.call([str(tmp_path / "bin/locale")]).strip() == "C"


def test_supervisord_is_read(tmp_path: Path) -> None:
    (tmp_path / "answer").write_text(STATUS)
    program(tmp_path / "supervisorctl", f'[ "$3" = pid ] && echo 7 || cat {tmp_path}/answer')
    boss = managers.Supervisor(str(tmp_path), "/etc/s.conf")
    status = boss.status(["box-a", "box-b", "box-c", "box-d", "never"])
    assert [item["state"] for item in status] == ["running", "backoff", "fatal", "stopped", "stopped"]
    assert [item["active"] for item in status] == [True, False, False, False, False]
    assert [item["pid"] for item in status] == [4242, 0, 0, 0, 0]
    assert [item["enabled"] for item in status] == [True, True, True, True, False]


def test_supervisord_that_does_not_run_has_no_services(tmp_path: Path) -> None:
    boss = managers.Supervisor(str(tmp_path / "none"), "/etc/s.conf")
    assert boss.status(["a"])[0]["active"] is False
    program(tmp_path / "supervisorctl", "echo unix:///run/supervisor.sock no such file; exit 4")
    boss = managers.Supervisor(str(tmp_path), "/etc/s.conf")
    assert not boss.running()
    assert boss.status(["a"])[0]["active"] is False
    boss.stop(["a"])


def test_which_manager() -> None:
    assert managers.manager({"manager": "systemd"}).ctl == ["systemctl"]
    assert managers.manager({"manager": "systemd-user"}).ctl == ["systemctl", "--user"]
    made = managers.manager({"manager": "supervisord", "supervisor": {"bin": "/b", "config": "/c"}})
    assert isinstance(made, managers.Supervisor)


class Boss:
    """A process manager that only remembers."""

    def __init__(self, running: set[str]) -> None:
        self.running, self.done = running, list[tuple[str, str]]()
        self.reload = False

    def status(self, units: list[str]) -> list[dict[str, Any]]:
        return [
            {"active": u in self.running, "enabled": u in self.running, "state": "x", "reload": self.reload, "pid": 1}
            for u in units
        ]

    def prepare(self, units: list[str]) -> None:
        self.done += [("prepare", u) for u in units]

    def start(self, units: list[str]) -> None:
        self.done += [("start", u) for u in units]
        self.running |= set(units)

    def restart(self, units: list[str]) -> None:
        self.done += [("restart", u) for u in units]

    def stop(self, units: list[str]) -> None:
        self.done += [("stop", u) for u in units]
        self.running -= set(units)

    def disable(self, units: list[str]) -> None:
        self.done += [("disable", u) for u in units]

    def forget(self, units: list[str]) -> None:
        self.done += [("forget", u) for u in units]


@pytest.fixture
def boss(monkeypatch: pytest.MonkeyPatch) -> Boss:
    made = Boss(set())
    monkeypatch.setattr(box, "manager", lambda spec: made)
    monkeypatch.setattr(box, "request", lambda *given, **named: (200, ""))
    return made


def services(tmp_path: Path, *fingerprints: str) -> dict[str, Any]:
    (tmp_path / "active").mkdir(exist_ok=True)
    listed = [
        {"name": f"s{i}", "unit": f"box-s{i}", "fingerprint": f, "ready": "http://127.0.0.1:1/", "timeout": 1}
        for i, f in enumerate(fingerprints)
    ]
    return {"manager": "systemd", "active_dir": str(tmp_path / "active"), "services": listed}


def test_only_what_differs_is_restarted(boss: Boss, tmp_path: Path) -> None:
    assert box.activate({**services(tmp_path, "a", "b"), "dry": True}, silent)["changed"]
    assert boss.done == []
    assert box.activate(services(tmp_path, "a", "b"), silent)["changed"]
    assert [step for step in boss.done if step[0] != "prepare"] == [("start", "box-s0"), ("start", "box-s1")]
    boss.done.clear()
    assert not box.activate(services(tmp_path, "a", "b"), silent)["changed"]
    assert boss.done == []
    assert box.activate(services(tmp_path, "a", "new"), silent)["changed"]
    assert boss.done == [("prepare", "box-s1"), ("restart", "box-s1")]
    boss.done.clear()
    boss.running.discard("box-s0")
    box.activate(services(tmp_path, "a", "new"), silent)
    assert boss.done == [("prepare", "box-s0"), ("start", "box-s0")]
    boss.reload = True
    assert box.activate({**services(tmp_path, "a", "new"), "dry": True}, silent)["changed"]


def test_a_service_that_never_got_ready_is_started_again_next_time(
    boss: Boss, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.activate(services(tmp_path, "a"), silent)
    monkeypatch.setattr(box, "request", lambda *given, **named: (503, ""))
    with pytest.raises(StepError) as caught:
        box.activate(services(tmp_path, "b"), silent)
    assert caught.value.code == "not-ready"
    assert "ownstack logs s0" in caught.value.hint
    monkeypatch.setattr(box, "request", lambda *given, **named: (200, ""))
    # neither the old nor the new configuration is taken for the running one
    assert box.activate({**services(tmp_path, "b"), "dry": True}, silent)["changed"]
    assert box.activate({**services(tmp_path, "a"), "dry": True}, silent)["changed"]


@pytest.mark.parametrize("action", ["start", "stop", "restart"])
def test_services_are_controlled_and_waited_for(action: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []

    class Boss:
        def start(self, units: list[str]) -> None:
            done.append(("start", units))

        def stop(self, units: list[str]) -> None:
            done.append(("stop", units))

        def restart(self, units: list[str]) -> None:
            done.append(("restart", units))

    monkeypatch.setattr(box, "manager", lambda spec: Boss())
    monkeypatch.setattr(box, "wait_service", lambda boss, service, emit: done.append(("waited", service["name"])))
    services = [{"name": name, "unit": f"box-{name}"} for name in ("a", "b")]
    made = box.control({"manager": "systemd", "action": action, "services": services}, silent)
    assert done[0] == (action, ["box-a", "box-b"])
    assert done[1:] == ([] if action == "stop" else [("waited", "a"), ("waited", "b")])
    assert made == {"changed": True, "data": {"services": ["a", "b"]}}


def test_services_are_retired_with_their_units(boss: Boss, tmp_path: Path) -> None:
    box.activate(services(tmp_path, "a"), silent)
    unit = tmp_path / "box-s0.service"
    unit.write_text("")
    spec = {**services(tmp_path, "a"), "unit_files": [str(unit), str(tmp_path / "never")]}
    assert box.retire({**spec, "dry": True}, silent)["changed"]
    assert unit.exists()
    assert box.retire(spec, silent)["data"]["removed"] == [str(unit)]
    assert [step[0] for step in boss.done[-3:]] == ["stop", "disable", "forget"]
    assert os.listdir(tmp_path / "active") == []
    assert not box.retire({**spec, "dry": True}, silent)["changed"]


def test_the_manifest_is_merged_and_done_is_taken_back_only_for_something_new(tmp_path: Path) -> None:
    path = str(tmp_path / "manifest.json")

    def write(**values: Any) -> bool:
        return bool(box.write_manifest({"path": path, "values": values}, silent)["changed"])

    assert box.write_manifest({"path": path, "values": {"a": 1}, "dry": True}, silent)["changed"]
    assert not Path(path).exists()
    assert write(plan={"x": 1}, complete=False, gone=1)
    assert write(complete=True, gone=None)
    assert json.loads(Path(path).read_text()) == {"complete": True, "plan": {"x": 1}}
    assert not write(plan={"x": 1}, complete=False), "nothing new is not a change"
    assert write(plan={"x": 2}, complete=False)
    assert json.loads(Path(path).read_text())["complete"] is False
    assert write(versions={"qdrant": 1, "n8n": 2})
    assert write(versions={"qdrant": 3})
    assert not write(versions={"qdrant": 3})
    assert json.loads(Path(path).read_text())["versions"] == {"qdrant": 3, "n8n": 2}, "its data was written by it"
    assert write(packages_added=["zstd"])
    assert write(packages_added=["curl"])
    assert json.loads(Path(path).read_text())["packages_added"] == ["curl", "zstd"]
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o644


def test_the_state_of_a_bare_host_is_empty(tmp_path: Path) -> None:
    spec = {"manifest": f"{tmp_path}/none", "opt": f"{tmp_path}/o", "run_dir": f"{tmp_path}/r", "active_dir": "/x"}
    empty: dict[str, Any] = {"manifest": None, "releases": {}, "services": {}, "work": {}}
    assert box.state(spec, silent)["data"] == empty
    (tmp_path / "none").write_text('{"cut off')
    assert box.state(spec, silent)["data"] == empty


def test_listening_sockets_are_seen_with_their_owner() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        seen = [item for item in box.ports({}, silent)["data"]["listening"] if item["port"] == port]
    assert seen == [{"address": "127.0.0.1", "port": port, "uid": os.getuid()}]


def describe(tmp_path: Path, **changes: Any) -> Path:
    values = {
        "command": ["/bin/sh", "-c", 'umask; id -un; id -Gn; pwd; echo "$A|$B|${HOME-none}"'],
        "environment": {"A": "1", "PATH": "/usr/bin:/bin"}, "environment_files": [], "user": "root", "groups": [],
        "working_directory": "/", "umask": "0027", "requires": [],
    }  # fmt: skip
    path = tmp_path / "service.json"
    path.write_text(json.dumps({**values, **changes}))
    return path


def become(path: Path) -> subprocess.CompletedProcess[str]:
    code = "import sys; from ownstack.runner.box import supervise; supervise(sys.argv[1])"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    return subprocess.run(
        [sys.executable, "-c", code, str(path)], env=environment, capture_output=True, text=True, check=False
    )


def test_a_supervised_service_gets_its_environment_and_gives_up_root(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: becomes another account")
    secret = tmp_path / "secret.env"
    secret.write_text('# filled\nB="two words"\n')
    secret.chmod(0o600)
    told = become(
        describe(tmp_path, user="nobody", groups=["daemon", "no-such-group"], environment_files=[str(secret)])
    ).stdout.splitlines()
    assert told[0] == "0027"
    assert told[1] == "nobody"
    assert "daemon" in told[2].split()
    assert "root" not in told[2].split()
    assert told[3:] == ["/", "1|two words|none"]


def test_a_supervised_service_does_not_start_without_what_it_needs(tmp_path: Path) -> None:
    done = become(describe(tmp_path, requires=[str(tmp_path / "config.yaml")]))
    assert done.returncode != 0
    assert "config.yaml is missing: not started" in done.stderr
    assert done.stdout == ""


def test_a_service_whose_process_ends_again_and_again_is_not_waited_for(
    boss: Boss, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a patience of twenty minutes it is told once it has ended ten times."""
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda s: now.__setitem__(0, now[0] + 1))
    monkeypatch.setattr(box, "time", clock)
    monkeypatch.setattr(box, "request", lambda *given, **named: (0, "refused"))
    ends = {"active": False, "enabled": True, "state": "activating (auto-restart)", "reload": False, "pid": 0}
    monkeypatch.setattr(boss, "status", lambda units: [{**ends, "restarts": int(now[0] / 2)} for _ in units])
    spec = services(tmp_path, "a")
    spec["services"][0]["timeout"] = 1200
    with pytest.raises(StepError, match=r"its process ended 1[0-3] times") as caught:
        box.activate(spec, silent)
    assert caught.value.code == "not-ready"
    assert now[0] < 40
