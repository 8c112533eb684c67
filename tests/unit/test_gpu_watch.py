"""The watch over the graphics card, against an engine that loses it in every known way."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ownstack.runner import gpu, ollama
from ownstack.runner.core import StepError

LIST = "#!/bin/sh\ncat <<'END'\nGPU 0: NVIDIA GeForce RTX 3060 (UUID: GPU-00000000-0000-4000-8000-000000000000)\nEND\n"
GONE = "#!/bin/sh\necho 'No devices were found'; exit 6\n"


class Engine:
    """An engine over HTTP with a card that can be lost; `heals` names the remedy that brings it back."""

    def __init__(self) -> None:
        self.loaded, self.on_card, self.speed, self.answers, self.heals = True, True, 40.0, True, "restart"
        self.asked = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self, data: dict[str, Any], status: int = 200) -> None:
                body = json.dumps(data).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self) -> None:
                models = [{"name": "chat:latest", "size": 1000, "size_vram": 1000 if outer.on_card else 0}]
                self.answer({"version": "0", "models": models if outer.loaded else []})

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                chat = self.path == "/api/chat"
                outer.asked += chat
                outer.loaded = outer.loaded or chat
                if chat and not outer.answers:
                    self.answer({"error": "llama runner process has terminated"}, 500)
                    return
                spent = int(24 / outer.speed * 1e9)
                said = {"message": {"content": "Paris"}, "eval_count": 24, "eval_duration": spent}
                self.answer({**said, "modelfile": "", "parameters": ""})

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


class Boss:
    """A process manager that remembers what was asked of it."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.done, self.active = engine, [], True  # type: ignore[var-annotated]

    def status(self, units: list[str]) -> list[dict[str, Any]]:
        return [{"active": self.active, "pid": 0} for _ in units]

    def _heal(self, verb: str) -> None:
        self.done.append(verb)
        if self.engine.heals == verb:
            self.engine.on_card, self.engine.speed, self.engine.answers = True, 40.0, True

    def restart(self, units: list[str]) -> None:
        self._heal("restart")

    def stop(self, units: list[str]) -> None:
        self._heal("stop")

    def start(self, units: list[str]) -> None:
        self._heal("start")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    made = Engine()
    monkeypatch.setattr(gpu, "asleep", lambda vendor: False)
    yield made
    made.server.shutdown()


@pytest.fixture
def boss(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Boss:
    made = Boss(engine)
    monkeypatch.setattr(gpu, "manager", lambda spec: made)
    return made


def tool(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, script: str) -> None:
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(script)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}/usr/bin:/bin")


def look(engine: Engine, folder: Path, **more: Any) -> dict[str, Any]:
    spec = {
        "url": engine.url, "manager": "systemd", "unit": "ownstack-ollama", "backend": "vulkan", "model": "chat",
        "planned_tps": 30.0, "cards": 1, "patience": 0.3, "state": str(folder / "watch" / "state.json"), **more,
    }  # fmt: skip
    data: dict[str, Any] = gpu.watch(spec, lambda event: None)["data"]
    return data


def written(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "watch" / "state.json").read_text())
    return found


def test_all_is_well_and_written_down(engine: Engine, boss: Boss, tmp_path: Path) -> None:
    assert look(engine, tmp_path)["ok"]
    state = written(tmp_path)
    assert state["tps"] == pytest.approx(40, rel=0.01)
    assert state["planned_tps"] == 30
    assert state["events"] == []
    assert boss.done == []


def test_a_loaded_model_is_measured_once_an_hour_and_an_unloaded_one_left_alone(
    engine: Engine, boss: Boss, tmp_path: Path
) -> None:
    look(engine, tmp_path)
    look(engine, tmp_path)
    assert engine.asked == 1
    path = tmp_path / "watch" / "state.json"
    path.write_text(json.dumps(written(tmp_path) | {"measured_at": gpu.now() - 4000}))
    engine.loaded = False
    assert look(engine, tmp_path)["what"] == "the card is there, no model is loaded"
    assert engine.asked == 1
    engine.loaded = True
    look(engine, tmp_path)
    assert engine.asked == 2


def test_a_model_on_the_cpu_is_repaired_by_a_restart(engine: Engine, boss: Boss, tmp_path: Path) -> None:
    engine.on_card = False
    data = look(engine, tmp_path)
    assert data["ok"]
    assert boss.done == ["restart"]
    (event,) = written(tmp_path)["events"]
    assert event["remedies"] == [{"remedy": "restart the engine", "outcome": "it helped"}]
    assert written(tmp_path)["gave_up"] is None


@pytest.mark.parametrize("fault", ["slow", "silent"])
def test_slow_and_failing_answers_are_repaired(engine: Engine, boss: Boss, tmp_path: Path, fault: str) -> None:
    if fault == "slow":
        engine.speed = 9.0  # the engine says 100 % GPU, the answer comes from the CPU
    else:
        engine.answers = False
    assert look(engine, tmp_path)["ok"]
    assert boss.done == ["restart"]


def test_half_the_planned_speed_is_near_enough(engine: Engine, boss: Boss, tmp_path: Path) -> None:
    engine.speed = 16.0
    assert look(engine, tmp_path)["ok"]
    assert boss.done == []


def test_what_does_not_help_is_not_done_again_and_again(engine: Engine, boss: Boss, tmp_path: Path) -> None:
    engine.on_card, engine.heals = False, "nothing"
    for _ in range(3):
        data = look(engine, tmp_path)
        assert (data["ok"], data["code"]) == (False, "GPU-UNUSED")
    assert boss.done == ["restart"]
    state = written(tmp_path)
    assert state["gave_up"]
    assert len(state["events"]) == 1
    assert "then: chat:latest lies in the machine's memory" in state["events"][0]["remedies"][0]["outcome"]
    path = tmp_path / "watch" / "state.json"
    path.write_text(json.dumps(state | {"gave_up": state["gave_up"] - 7 * 3600}))
    engine.heals = "restart"
    assert look(engine, tmp_path)["ok"]
    assert boss.done == ["restart", "restart"]
    assert [event["code"] for event in written(tmp_path)["events"]] == ["GPU-UNUSED", ""]


def test_a_card_that_is_gone_is_named(
    engine: Engine, boss: Boss, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool(tmp_path, monkeypatch, "nvidia-smi", GONE)
    data = look(engine, tmp_path, backend="cuda", remedies=False)
    assert (data["ok"], data["code"]) == (False, "GPU-GONE")
    assert "0 of 1 NVIDIA cards are there: No devices were found" in data["what"]
    tool(tmp_path, monkeypatch, "nvidia-smi", LIST)
    assert look(engine, tmp_path, backend="cuda")["ok"]
    assert "1 of 2" in look(engine, tmp_path, backend="cuda", cards=2, remedies=False)["what"]
    assert [event["what"][:10] for event in written(tmp_path)["events"]] == ["0 of 1 NVI", "well again", "1 of 2 NVI"]


def test_the_remedies_come_in_order(
    engine: Engine, boss: Boss, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First nvidia_uvm with the engine stopped, then a restart."""
    for name, script in (("nvidia-smi", LIST), ("rmmod", f"#!/bin/sh\necho rmmod $1 >> {tmp_path}/log\n"),
                         ("modprobe", f"#!/bin/sh\necho modprobe $1 >> {tmp_path}/log\n")):  # fmt: skip
        tool(tmp_path, monkeypatch, name, script)
    monkeypatch.setattr(gpu, "uvm_loaded", lambda: True)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    engine.on_card = False
    data = look(engine, tmp_path, backend="cuda")
    assert [remedy["remedy"] for remedy in data["remedies"]] == ["reload nvidia_uvm", "restart the engine"]
    assert boss.done == ["stop", "start", "restart"]
    assert (tmp_path / "log").read_text() == "rmmod nvidia_uvm\nmodprobe nvidia_uvm\n"
    engine.on_card, engine.heals, boss.done = False, "start", []
    data = look(engine, tmp_path, backend="cuda")
    assert [remedy["remedy"] for remedy in data["remedies"]] == ["reload nvidia_uvm"]
    assert boss.done == ["stop", "start"]


def test_a_module_in_use_is_left_and_the_engine_started_again(
    engine: Engine, boss: Boss, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool(tmp_path, monkeypatch, "nvidia-smi", LIST)
    tool(tmp_path, monkeypatch, "rmmod", "#!/bin/sh\necho 'rmmod: ERROR: Module nvidia_uvm is in use'; exit 1\n")
    monkeypatch.setattr(gpu, "uvm_loaded", lambda: True)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    engine.on_card, engine.heals = False, "nothing"
    data = look(engine, tmp_path, backend="cuda")
    assert "is in use" in data["remedies"][0]["outcome"]
    assert boss.done == ["stop", "start", "restart"]


def test_a_stopped_engine_and_a_sleeping_card_are_left_alone(
    engine: Engine, boss: Boss, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.loaded = False
    monkeypatch.setattr(gpu, "asleep", lambda vendor: True)
    monkeypatch.setattr(gpu, "missing_cards", lambda spec: pytest.fail("the card must not be woken"))
    assert "not woken" in look(engine, tmp_path)["what"]
    engine.server.shutdown()
    engine.server.server_close()
    boss.active = False
    assert "stopped" in look(engine, tmp_path)["what"]
    boss.active = True
    assert look(engine, tmp_path, remedies=False)["code"] == "GPU-NO-ANSWER"
    assert boss.done == []


def test_the_timer_and_the_resume_hook_do_not_meet(engine: Engine, boss: Boss, tmp_path: Path) -> None:
    with gpu.only_one(str(tmp_path / "watch" / "state.json.lock")) as alone:
        assert alone
        assert look(engine, tmp_path)["what"] == "another look is going on"
    assert not (tmp_path / "watch" / "state.json").exists()


def test_an_engine_that_is_just_starting_is_given_a_moment(
    engine: Engine, boss: Boss, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`up` restarts the engine: a look in that second must not restart it once more."""
    real = ollama.ps
    asked: list[int] = []

    def silent_once(spec: Any, emit: Any) -> Any:
        asked.append(1)
        if len(asked) == 1:
            raise StepError("connection refused")
        return real(spec, emit)

    monkeypatch.setattr(ollama, "ps", silent_once)
    assert look(engine, tmp_path)["ok"]
    assert boss.done == []


def test_who_asks_waits_for_a_look_and_learns_of_its_remedy(engine: Engine, boss: Boss, tmp_path: Path) -> None:
    spec: dict[str, Any] = {"state": str(tmp_path / "watch" / "state.json"), "seconds": 20}

    def settled() -> dict[str, Any]:
        data: dict[str, Any] = gpu.settled(spec, lambda event: None)["data"]
        return data

    assert (settled()["remedied"], settled()["busy"]) == (0, False)
    assert not (tmp_path / "watch").exists(), "asking leaves nothing behind"
    with gpu.only_one(spec["state"] + ".lock"):
        assert gpu.settled({**spec, "seconds": 0}, lambda event: None)["data"]["busy"]
        done: list[dict[str, Any]] = []
        looking = threading.Thread(target=lambda: done.append(settled()))
        looking.start()
        looking.join(0.5)
        assert not done, "it waits while the watch looks"
    looking.join(20)
    assert done[0]["busy"] is False
    engine.on_card = False
    look(engine, tmp_path)
    assert boss.done == ["restart"]
    assert settled()["remedied"] == written(tmp_path)["events"][-1]["time"] > 0


def test_a_process_that_holds_no_card_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine may say 100 % GPU while no process of it has a device open."""
    device = tmp_path / "nvidia0"
    device.write_text("")
    monkeypatch.setattr(gpu, "DEVICES", (str(device),))
    assert gpu.holds_device(os.getpid()) is False
    with device.open():
        assert gpu.holds_device(os.getpid()) is True
    device.unlink()
    assert gpu.holds_device(os.getpid()) is None
    assert os.getpid() in gpu.family(os.getppid())


@pytest.mark.parametrize(("card", "sleeps"), [("suspended", True), ("active", False)])
def test_a_laptops_awake_screen_does_not_make_the_watch_wake_its_card(
    card: str, sleeps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waking it every ten minutes would cost the battery: integrated graphics are always active."""
    bus = "/sys/bus/pci/devices"
    files = {
        f"{bus}/0000:01:00.0/class": "0x030000", f"{bus}/0000:01:00.0/vendor": "0x10de",
        f"{bus}/0000:01:00.0/power/runtime_status": card,
        f"{bus}/0000:04:00.0/class": "0x030000", f"{bus}/0000:04:00.0/vendor": "0x1002",
        f"{bus}/0000:04:00.0/power/runtime_status": "active",
    }  # fmt: skip
    monkeypatch.setattr("glob.glob", lambda pattern: [path for path in files if path.endswith("/class")])
    monkeypatch.setattr(gpu, "read", lambda path: files.get(path, ""))
    assert gpu.asleep("0x10de") is sleeps
    assert gpu.asleep("") is False
