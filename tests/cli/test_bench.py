"""`ownstack bench` against a stand-in for Ollama: counters, what is kept, and what `fit` makes of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ownstack.cli import bench as bench_module
from ownstack.cli import measure
from ownstack.cli.bench import bench
from ownstack.cli.fit import fit
from ownstack.fitting import learned
from ownstack.hardware.report import HardwareReport
from tests.unit.machines import report

MODEL = "qwen3:8b"
CARD = "rtx-4090"
GIB, MIB = 2**30, 2**20
DRIVER = 300 * MIB


class Engine(ThreadingHTTPServer):
    """Answers as Ollama does: durations in nanoseconds, sizes in bytes."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, Any]] = []
        self.loaded = False
        self.tokens_per_s = 40.0
        self.size = 6 * GIB

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Engine

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def answer(self, body: Any, status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        size = self.server.size
        held = [{"name": MODEL, "model": MODEL, "size": size, "size_vram": size}] if self.server.loaded else []
        self.answer({"models": held})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body))
        if body["model"] != MODEL:
            return self.answer({"error": f"model '{body['model']}' not found"}, 404)
        self.server.loaded = body.get("keep_alive") != 0
        if not self.server.loaded:
            return self.answer({"done": True, "done_reason": "unload"})
        count = body["options"]["num_predict"]
        seconds = count / self.server.tokens_per_s
        return self.answer({
            "done": True, "eval_count": count, "eval_duration": int(seconds * 1e9),
            "prompt_eval_count": 1000, "prompt_eval_duration": 500_000_000,
        })  # fmt: skip


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Engine]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    made = Engine()
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def on_card(monkeypatch: pytest.MonkeyPatch, engine: Engine, taken: int) -> None:
    """A machine with one card, that has less free while the model is loaded."""
    idle = report(CARD)

    def now(*_: Any) -> HardwareReport:
        gpu = idle.gpus[0]
        free = (gpu.memory_free_bytes.value or 0) - (taken if engine.loaded else 0)
        fact = gpu.memory_free_bytes.model_copy(update={"value": free})
        return idle.model_copy(update={"gpus": (gpu.model_copy(update={"memory_free_bytes": fact}),)})

    monkeypatch.setattr(measure, "report_of", now)


def run(engine: Engine, *more: str) -> Any:
    result = CliRunner().invoke(bench, ["--url", engine.url, "--model", MODEL, "--tokens", "64", *more, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["data"]


def fitted(*more: str) -> Any:
    result = CliRunner().invoke(fit, ["--model", MODEL, "--ctx", "4096", *more, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["data"]


def test_it_reads_the_engines_counters(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    on_card(monkeypatch, engine, 0)
    found = run(engine)
    assert found["measured"]["decode_tps"] == pytest.approx(40, rel=1e-6)
    assert found["measured"]["prefill_tps"] == pytest.approx(2000, rel=1e-6)
    assert found["measured"]["size"] == found["measured"]["size_vram"] == 6 * GIB
    unload, warm, timed = (body for _, body in engine.asked)
    assert unload["keep_alive"] == 0
    assert warm["options"]["num_predict"] == 1
    assert (timed["options"]["num_predict"], timed["options"]["num_ctx"]) == (64, 4096)


def test_fit_shows_predicted_and_measured_and_learns_the_speed(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    on_card(monkeypatch, engine, 0)
    before = fitted()
    assert "measured" not in before["provenance"]
    found = run(engine)
    after = fitted()
    assert after["provenance"]["measured"]["decode_tps"] == pytest.approx(40, rel=1e-6)
    speeds = [row["speed"]["decode_tps"]["mid"] for row in (before, after)]
    assert speeds[1] / speeds[0] == pytest.approx(found["ratio"], rel=0.01)
    text = CliRunner().invoke(fit, ["--model", MODEL, "--ctx", "4096"]).stdout
    assert "measured " in text
    assert "40.0 tokens/s" in text
    declared = fitted("--gpu", "RTX 4090")
    assert "measured" not in declared["provenance"], "another machine's card has not been measured"


def test_it_learns_what_the_driver_takes(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    on_card(monkeypatch, engine, 0)
    before = fitted()["memory"]["gpu"][0]
    on_card(monkeypatch, engine, engine.size + DRIVER)
    assert run(engine)["overhead"] == DRIVER
    after = fitted()["memory"]["gpu"][0]
    assert before["overhead"] != after["overhead"] == {"low": DRIVER, "high": DRIVER}
    assert after["total"] == before["total"]


@pytest.mark.parametrize("extra", [-MIB, bench_module.LARGEST_OVERHEAD])
def test_another_programs_memory_is_not_taken_for_the_drivers(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, extra: int
) -> None:
    on_card(monkeypatch, engine, engine.size + extra)
    assert "overhead" not in run(engine)


def test_what_is_wrong_is_said(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    on_card(monkeypatch, engine, 0)
    gone = CliRunner().invoke(bench, ["--url", engine.url, "--model", "nosuch:1", "--json"])
    assert gone.exit_code == 1
    assert "not found" in json.loads(gone.stdout)["error"]["message"]
    down = CliRunner().invoke(bench, ["--url", "http://127.0.0.1:9", "--model", MODEL, "--json"])
    assert "does not answer" in json.loads(down.stdout)["error"]["message"]
    assert learned.read() == [], "a failure is no measurement"
