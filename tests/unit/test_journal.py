"""Steps that outlive the connection: in a session of their own, followed, attached to again, told when cut off."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ownstack.engine.zipapp import runner_zipapp
from ownstack.runner import detached, fetch, journal
from ownstack.runner.core import StepError


@pytest.fixture
def runner(tmp_path: Path) -> str:
    """The real runner as a zipapp with its wrapper."""
    import sys

    (tmp_path / "runner.pyz").write_bytes(runner_zipapp())
    wrapper = tmp_path / "runner"
    wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} -I {tmp_path}/runner.pyz "$@"\n')
    wrapper.chmod(0o755)
    return str(wrapper)


class Slow(http.server.SimpleHTTPRequestHandler):
    """Serves files in small pieces with a pause between them."""

    pause = 0.0

    def copyfile(self, source: Any, outputfile: Any) -> None:
        while block := source.read(200_000):
            outputfile.write(block)
            time.sleep(self.pause)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "served"
    folder.mkdir()
    for name in "abc":
        (folder / name).write_bytes(name.encode() * 1_000_000)
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Slow, directory=str(folder)))
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_address[1]}"
    httpd.shutdown()


def spec_for(tmp_path: Path, server: str, names: str, runner: str) -> dict[str, Any]:
    files = [
        {
            "name": name,
            "url": f"{server}/{name}",
            "sha256": hashlib.sha256(name.encode() * 1_000_000).hexdigest(),
            "size": 1_000_000,
            "release": str(tmp_path / "opt" / name),
        }
        for name in names
    ]
    rest = {"work": str(tmp_path / "work"), "mirror": "", "run_dir": str(tmp_path / "run"), "runner": runner}
    return {"files": files, **rest, "manager": "supervisord", "unit": "t"}


def ignore(event: dict[str, Any]) -> None:
    pass


def test_files_are_fetched_at_the_same_time(tmp_path: Path) -> None:
    """No file is sent before all three are asked for."""
    meet = threading.Barrier(3)

    class Together(Slow):
        def do_GET(self) -> None:
            try:
                meet.wait(5)
            except threading.BrokenBarrierError:
                self.send_error(503)
                return
            super().do_GET()

    folder = tmp_path / "served"
    folder.mkdir()
    for name in "abc":
        (folder / name).write_bytes(name.encode() * 1_000_000)
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Together, directory=str(folder)))
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    try:
        spec = spec_for(tmp_path, f"http://127.0.0.1:{httpd.server_address[1]}", "abc", "")
        assert fetch.many(spec, ignore)["data"]["files"] == ["a", "b", "c"]
    finally:
        httpd.shutdown()


def test_files_are_fetched_once(tmp_path: Path, server: str, runner: str) -> None:
    spec = spec_for(tmp_path, server, "abc", runner)
    seen: list[dict[str, Any]] = []
    assert fetch.many_outliving({**spec, "dry": True}, ignore)["changed"]
    assert fetch.many_outliving(spec, seen.append)["data"]["files"] == ["a", "b", "c"]
    for item in spec["files"]:
        held = tmp_path / "work" / item["sha256"]
        assert hashlib.sha256(held.read_bytes()).hexdigest() == item["sha256"]
    assert not fetch.many_outliving(spec, ignore)["changed"]
    lines = next((tmp_path / "run/steps").glob("*.jsonl")).read_text().splitlines()
    assert json.loads(lines[0])["event"] == "begin"
    assert json.loads(lines[-1])["event"] == "result"


def test_a_second_caller_attaches_to_the_work_that_goes_on(
    tmp_path: Path, server: str, runner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Slow, "pause", 0.4)
    spec = spec_for(tmp_path, server, "a", runner)
    results: list[Any] = []
    first = threading.Thread(target=lambda: results.append(fetch.many_outliving(spec, ignore)))
    first.start()
    path = journal.journal(spec["run_dir"], "fetch.many", {k: spec[k] for k in ("files", "work", "mirror", "run_dir")})
    for _ in range(100):
        if journal.busy(path):
            break
        time.sleep(0.05)
    pid = json.loads(Path(path).read_text().splitlines()[0])["pid"]
    again = fetch.many_outliving(spec, ignore)
    first.join()
    assert again["changed"]
    assert results[0]["changed"]
    assert json.loads(Path(path).read_text().splitlines()[0])["pid"] == pid


def test_work_that_was_killed_is_told_and_goes_on_at_the_next_call(
    tmp_path: Path, server: str, runner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Slow, "pause", 0.6)
    spec = spec_for(tmp_path, server, "a", runner)
    inner = {k: spec[k] for k in ("files", "work", "mirror", "run_dir")}
    path = journal.journal(spec["run_dir"], "fetch.many", inner)
    errors: list[StepError] = []

    def call() -> None:
        try:
            fetch.many_outliving(spec, ignore)
        except StepError as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    for _ in range(100):
        if journal.busy(path):
            break
        time.sleep(0.05)
    pid = json.loads(Path(path).read_text().splitlines()[0])["pid"]
    os.kill(pid, signal.SIGKILL)
    thread.join(20)
    assert [error.code for error in errors] == ["interrupted"]
    monkeypatch.setattr(Slow, "pause", 0.0)
    assert fetch.many_outliving(spec, ignore)["changed"]


def test_a_failure_is_told_in_the_steps_own_words(tmp_path: Path, server: str, runner: str) -> None:
    spec = spec_for(tmp_path, server, "a", runner)
    spec["files"][0]["sha256"] = "0" * 64
    with pytest.raises(StepError) as error:
        fetch.many_outliving(spec, ignore)
    assert error.value.code == "fetch-hash"
    assert not list((tmp_path / "work").glob("0*"))


def test_any_long_step_goes_on_when_its_caller_is_gone(
    tmp_path: Path, server: str, runner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the connection drops: what the caller ran is killed with it, the step's own process is not."""
    monkeypatch.setattr(Slow, "pause", 0.3)
    whole = spec_for(tmp_path, server, "a", runner)
    inner = {key: whole[key] for key in ("files", "work", "mirror")}
    told = {
        "step": "fetch.many", "spec": inner,
        **{key: whole[key] for key in ("run_dir", "manager", "unit", "runner")},
    }  # fmt: skip
    path = journal.journal(whole["run_dir"], "fetch.many", {**inner, "run_dir": whole["run_dir"]})
    caller = subprocess.Popen(
        [runner, "journal.outlive", "--json", json.dumps(told)], stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    end = time.monotonic() + 20
    while not journal.busy(path):
        assert time.monotonic() < end
        time.sleep(0.05)
    pid = json.loads(Path(path).read_text().splitlines()[0])["pid"]
    os.killpg(caller.pid, signal.SIGKILL)
    caller.wait()
    assert not Path(f"{path}.env").exists()
    result = journal.outliving(told, ignore)
    assert result["changed"]
    assert json.loads(Path(path).read_text().splitlines()[0])["pid"] == pid, "it was attached to, not begun anew"


def test_it_reaches_the_network_as_its_caller_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit of its own has other surroundings; a proxy's address, which may hold a password, is in no program line."""
    seen: list[list[str]] = []
    monkeypatch.setattr(detached, "launch", lambda manager, unit, command, log: seen.append(command))
    monkeypatch.setattr(journal, "follow", lambda path, emit: {"event": "result", "data": {}})
    monkeypatch.setenv("https_proxy", "http://me:word@proxy:3128")
    monkeypatch.setenv("SECRET_OF_MINE", "x")
    journal.outlive("box.ports", {"run_dir": str(tmp_path)}, "systemd", "t", "runner", ignore)
    ((_, _, _, path, spec),) = seen
    assert "word" not in " ".join(seen[0])
    assert json.loads(Path(f"{path}.env").read_text())["https_proxy"] == "http://me:word@proxy:3128"
    assert "SECRET_OF_MINE" not in Path(f"{path}.env").read_text()
    monkeypatch.delenv("https_proxy")
    journal.attached(["box.ports", "--journal", path, spec], lambda step, spec, out: 0)
    assert os.environ.pop("https_proxy") == "http://me:word@proxy:3128"
    assert not Path(f"{path}.env").exists()
