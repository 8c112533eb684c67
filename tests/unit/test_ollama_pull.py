"""What a pull takes over from the account that fetched it, its state file, and the engine's account of buffers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ownstack.runner import ollama, ollama_pull
from ownstack.runner.core import StepError
from ownstack.runner.detached import alive, born
from ownstack.runner.ollama_api import parse
from ownstack.runner.ollama_engine import PullEngine

LOG = """
time=T level=INFO msg="server config" env="map[OLLAMA_DEBUG_LOG_REQUESTS:false OLLAMA_HOST:http://127.0.0.1:1]"
time=T level=INFO msg="Ollama cloud disabled: true"
time=T level=INFO msg="starting llama-server" cmd="/x/llama-server --model /m/blobs/sha256-aaa --port 1"
load_tensors:          CPU model buffer size =    43.48 MiB
sched_reserve:        CPU compute buffer size =     8.01 MiB
time=T level=INFO msg="starting llama-server" cmd="/x/llama-server --model /m/blobs/sha256-bbb --port 2"
load_tensors: offloading output layer to GPU
load_tensors: offloaded 31/31 layers to GPU
load_tensors:   CPU_Mapped model buffer size =    28.69 MiB
load_tensors:      Vulkan0 model buffer size =    92.10 MiB
llama_kv_cache:    Vulkan0 KV buffer size =   180.00 MiB
llama_context: Vulkan_Host  output buffer size =     0.19 MiB
sched_reserve:    Vulkan0 compute buffer size =    21.51 MiB
time=T level=INFO msg="starting llama-server" cmd="/x/llama-server --model /m/blobs/sha256-aaa --port 3"
load_tensors:          CPU model buffer size =    10.00 MiB
"""


def test_buffers_are_those_of_the_last_load_of_these_weights() -> None:
    found = ollama.buffers_of(LOG, "sha256-bbb")
    assert found["offloaded"] == [31, 31]
    assert found["buffers"]["Vulkan0"] == {"model": 96573850, "kv": 188743680, "compute": 22554870}
    assert set(found["buffers"]) == {"CPU_Mapped", "Vulkan0", "Vulkan_Host"}
    assert ollama.buffers_of(LOG, "sha256-aaa") == {"buffers": {"CPU": {"model": 10485760}}, "offloaded": None}
    assert ollama.buffers_of(LOG, "sha256-ccc") == {"buffers": {}, "offloaded": None}
    assert ollama.buffers_of(LOG, "") == {"buffers": {}, "offloaded": None}


def blob(folder: Path, data: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    (folder / "blobs").mkdir(parents=True, exist_ok=True)
    (folder / "blobs" / f"sha256-{digest}").write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data), "mediaType": "application/vnd.ollama.image.model"}


def fetched(folder: Path) -> tuple[bytes, dict[str, Any], dict[str, Any]]:
    weights, config = blob(folder, b"weights"), blob(folder, b"{}")
    config["mediaType"] = "application/vnd.docker.container.image.v1+json"
    return json.dumps({"layers": [weights], "config": config}).encode(), weights, config


def test_a_fetched_model_is_moved_into_the_store_whole(tmp_path: Path) -> None:
    staging, store = tmp_path / "staging", tmp_path / "store"
    store.mkdir()
    manifest, weights, _ = fetched(staging)
    found = ollama_pull.adopt(str(staging), manifest, str(store), parse("qwen3:14b"))
    assert found == {"digest": hashlib.sha256(manifest).hexdigest(), "blob": weights["digest"]}
    assert (store / "manifests/registry.ollama.ai/library/qwen3/14b").read_bytes() == manifest
    assert (store / "blobs" / weights["digest"].replace(":", "-")).read_bytes() == b"weights"
    assert list((staging / "blobs").iterdir()) == []


def spoil_bytes(path: Path) -> None:
    path.write_bytes(b"other")


def spoil_link(path: Path) -> None:
    secret = path.parents[2] / "secret"
    path.rename(secret)  # the right bytes, but in a file that is not the puller's to give away
    secret.chmod(0o600)
    path.symlink_to(secret)


def spoil_hard_link(path: Path) -> None:
    os.link(path, path.parents[2] / "second")


def spoil_absent(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("spoil", [spoil_bytes, spoil_link, spoil_hard_link, spoil_absent])
def test_what_is_not_what_it_says_is_not_taken(tmp_path: Path, spoil: Any) -> None:
    staging, store = tmp_path / "staging", tmp_path / "store"
    store.mkdir()
    manifest, weights, _ = fetched(staging)
    spoil(staging / "blobs" / weights["digest"].replace(":", "-"))
    with pytest.raises(StepError):
        ollama_pull.adopt(str(staging), manifest, str(store), parse("qwen3:14b"))
    assert not (store / "manifests").exists()
    assert not (store / "blobs" / weights["digest"].replace(":", "-")).exists()
    if spoil is spoil_link:
        assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("digest", ["sha256:../../../etc/passwd", "sha256-x", "", "sha256:" + "A" * 64])
def test_a_manifest_cannot_name_files_elsewhere(tmp_path: Path, digest: str) -> None:
    store = tmp_path / "store"
    store.mkdir()
    manifest = json.dumps(
        {
            "layers": [{"digest": digest, "mediaType": "application/vnd.ollama.image.model"}],
            "config": {"digest": digest},
        }
    )
    with pytest.raises(StepError) as caught:
        ollama_pull.adopt(str(tmp_path), manifest.encode(), str(store), parse("x:1"))
    assert caught.value.code == "model-digest"


@pytest.mark.parametrize("manifest", [b"", b"[]", b"{}", b'{"layers": [], "config": {}}', b"\xff\xfe"])
def test_a_manifest_of_no_known_kind_is_refused(tmp_path: Path, manifest: bytes) -> None:
    store = tmp_path / "store"
    store.mkdir()
    with pytest.raises(StepError):
        ollama_pull.adopt(str(tmp_path), manifest, str(store), parse("x:1"))


def test_the_state_file_tells_rate_and_time_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("ownstack.runner.ollama_pull.time.monotonic", lambda: now[0])
    journal = ollama_pull.Journal(str(tmp_path / "pull-x.json"), "x:1", 1000)
    journal.set(status="pulling")
    for done in (0, 100, 200, 300):
        journal.bytes(done, 1000)
        now[0] += 2
    state = json.loads((tmp_path / "pull-x.json").read_text())
    assert (state["done"], state["total"], state["status"]) == (300, 1000, "pulling")
    assert state["rate"] == pytest.approx(50)
    assert state["eta_s"] == 14


def test_a_pull_whose_process_is_gone_is_interrupted(tmp_path: Path) -> None:
    path = tmp_path / "pull-x-1.json"

    def seen() -> tuple[bool, str]:
        (state,) = ollama_pull.pulls({"run_dir": str(tmp_path)}, lambda event: None)["data"]["pulls"]
        return state["alive"], state["status"]

    state = ollama_pull.Journal(str(path), "x:1", None).value
    assert seen() == (True, "starting")
    boot, _, tick = state["born"].partition(":")
    for other in (f"{boot}:{int(tick) - 1}", f"before:{tick}", ""):  # the number is another process's by now
        path.write_text(json.dumps({**state, "born": other}))
        assert seen() == (False, "interrupted"), other


def test_a_process_that_has_ended_is_not_alive() -> None:
    process = subprocess.Popen(["true"])
    mark = born(process.pid)
    process.wait()
    assert not alive(process.pid, mark)
    assert not alive(process.pid, "")
    assert alive(os.getpid(), born(os.getpid()))


@pytest.mark.parametrize("ours", [True, False])
def test_only_an_engine_of_ours_is_ended(tmp_path: Path, ours: bool) -> None:
    engine = subprocess.Popen(["sleep", "60"])
    try:
        mark = born(engine.pid) if ours else f"before:{born(engine.pid).partition(':')[2]}"
        spec = {"tag": "x:1", "run_dir": str(tmp_path), "unit": "u", "manager": "supervisord"}
        pulling = PullEngine(spec, str(tmp_path / "staging"), "registry.example")
        Path(pulling._pid_file()).write_text(f"{engine.pid} {mark}")
        pulling._end_stale()
        if ours:
            assert engine.wait(10) == -signal.SIGTERM
        else:
            time.sleep(0.2)
            assert engine.poll() is None
    finally:
        engine.kill()
        engine.wait()


def test_a_full_disk_is_said_before_anything_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(StepError) as caught:
        ollama_pull._space({"models": str(tmp_path), "model": "x:1", "download_bytes": 10**18})
    assert caught.value.code == "disk-full"
    assert "GB free" in caught.value.message


def test_a_moved_tag_is_refused_unless_accepted() -> None:
    spec = {"model": "x:1", "digest": "a" * 64}
    error = ollama_pull._moved(spec, "b" * 64)
    assert error is not None
    assert error.code == "model-digest"
    assert ollama_pull._moved({**spec, "accept_moved": True}, "b" * 64) is None
    assert ollama_pull._moved(spec, "a" * 64) is None
    assert ollama_pull._moved({"model": "x:1", "digest": ""}, "b" * 64) is None


def test_the_pulling_engine_gets_no_other_variables(tmp_path: Path) -> None:
    spec = {"unit": "u", "manager": "supervisord", "program": "/bin/false", "run_dir": str(tmp_path)}
    for environment in ({"LD_PRELOAD": "/x"}, {"HTTPS_PROXY": "http://p\nX=1"}):
        with pytest.raises(StepError, match="takes no"):
            PullEngine({**spec, "environment": environment}, str(tmp_path / "s"), "registry.example").__enter__()


def test_a_link_in_place_of_the_staging_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "s").symlink_to(tmp_path / "elsewhere")
    spec = {"unit": "u", "manager": "supervisord", "program": "/bin/false", "run_dir": str(tmp_path)}
    with pytest.raises(StepError, match="not a folder"):
        PullEngine(spec, str(tmp_path / "s"), "registry.example").__enter__()


NOW = {"digest": "n" * 64, "blob": "sha256:" + "b" * 64, "num_ctx": 4096}


@pytest.mark.parametrize(
    ("model", "pulled", "words"),
    [
        ({"digest": "", "num_ctx": 4096}, {}, ""),
        ({"digest": "n" * 64, "num_ctx": 4096}, {}, ""),
        ({"digest": "p" * 64, "num_ctx": 4096}, {"digest": "p" * 64, "blob": NOW["blob"]}, ""),
        ({"digest": "p" * 64, "num_ctx": 4096}, {"digest": "q" * 64, "blob": NOW["blob"]}, "pulled as"),
        ({"digest": "p" * 64, "num_ctx": 4096}, {"digest": "p" * 64, "blob": "sha256:c"}, "weights"),
        ({"digest": "p" * 64, "num_ctx": 4096}, {}, "no record"),
        ({"sha256": "c" * 64}, {}, "weights"),
        ({"sha256": "b" * 64, "num_ctx": 8192}, {}, "context 4096, planned 8192"),
    ],
)
def test_a_model_that_differs_is_told_in_words(model: dict[str, Any], pulled: dict[str, str], words: str) -> None:
    reason = ollama.differs(model, NOW, pulled)
    assert (words in reason) if words else reason == ""


def test_an_engine_that_stops_before_the_end_has_fetched_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at a shutdown, which ends the engine first: its answer then ends without an error."""
    part: list[dict[str, Any]] = [{"status": "pulling manifest"}, {"digest": "d", "total": 9, "completed": 4}]
    answers = iter([part, [*part, {"status": "success"}]])
    monkeypatch.setattr("ownstack.runner.ollama_api.stream", lambda *_: iter(next(answers)))
    starts: list[str] = []

    @contextlib.contextmanager
    def engine() -> Iterator[str]:
        starts.append(json.loads((tmp_path / "pull-x.json").read_text())["status"])
        yield "http://127.0.0.1:1"

    journal = ollama_pull.Journal(str(tmp_path / "pull-x.json"), "x:1", None)
    ollama_pull._fetch(engine, parse("x:1"), {"model": "x:1", "tag": "x:1", "retry_s": 0}, journal, lambda _: None)
    assert starts == ["starting", "waiting"]
    answers = iter([part] * ollama_pull.TRIES)
    with pytest.raises(StepError, match="stopped before the end"):
        ollama_pull._fetch(engine, parse("x:1"), {"model": "x:1", "tag": "x:1", "retry_s": 0}, journal, lambda _: None)


ENGINE = """
import http.server, json, os, sys, threading
blobs = os.path.join(os.environ["OLLAMA_MODELS"], "blobs")
os.makedirs(blobs, exist_ok=True)
note = os.path.join(blobs, "sha256-" + "a" * 64 + "-partial-0")

def write(completed):
    with open(note, "w") as stream:
        json.dump({"N": 0, "Offset": 0, "Size": 100, "Completed": completed}, stream)

class Engine(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"{}")

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200); self.end_headers()
        write(0)
        self.wfile.write(b'{"status": "pulling", "digest": "d", "total": 100, "completed": 40}\\n')
        self.wfile.flush()
        self.connection.recv(1)  # until whoever asked is gone; only then it writes down what it has
        import time; time.sleep(0.3)
        write(40)

    def log_message(self, *words): pass

host, port = os.environ["OLLAMA_HOST"].split(":")
http.server.ThreadingHTTPServer((host, int(port)), Engine).serve_forever()
"""


def test_a_pull_that_is_told_to_end_lets_its_engine_write_down_what_it_has(tmp_path: Path) -> None:
    """As at a shutdown: the stream is closed first, and the engine is ended when its notes have come to rest."""
    program = tmp_path / "engine"
    program.write_text(f"#!{sys.executable}\n{ENGINE}")
    program.chmod(0o755)
    (tmp_path / "models").mkdir()
    spec = {
        "model": "m:1", "tag": "m:1", "url": "http://127.0.0.1:9", "run_dir": str(tmp_path / "run"), "unit": "u",
        "record": str(tmp_path / "record.json"), "models": str(tmp_path / "models"), "program": str(program),
        "manager": "supervisord", "account": "", "environment": {}, "num_ctx": 0, "registry": "", "download_bytes": 1,
    }  # fmt: skip
    code = "import json, sys; from ownstack.runner import ollama_pull; ollama_pull.pull(json.loads(sys.argv[1]), print)"
    pull = subprocess.Popen([sys.executable, "-c", code, json.dumps(spec)], env={**os.environ, "PYTHONPATH": "src"})
    path = tmp_path / "run" / "pull-m-1.json"
    for _ in range(300):
        if path.exists() and json.loads(path.read_text())["done"] == 40:
            break
        time.sleep(0.1)
    engine = int((tmp_path / "run" / "u-engine.pid").read_text().split()[0])
    pull.send_signal(signal.SIGTERM)
    assert pull.wait(20) == 128 + signal.SIGTERM
    note = tmp_path / "models" / ".pull-m-1" / "models" / "blobs" / ("sha256-" + "a" * 64 + "-partial-0")
    assert json.loads(note.read_text())["Completed"] == 40
    assert not born(engine), "its engine is gone too"
    assert ollama_pull.seen(json.loads(path.read_text()))["status"] == "interrupted"


@pytest.mark.parametrize(
    ("noted", "there", "asked", "theirs"),
    [
        (None, False, False, False),  # a plan's own
        (None, True, False, True),  # `ollama pull`, before any plan wanted it
        ({"yours": True}, True, False, True),  # `models pull`, before any plan wanted it
        ({"yours": True}, False, False, True),
        ({}, True, False, False),
        ({}, True, True, True),
    ],
)
def test_what_a_person_brought_stays_theirs_when_a_plan_wants_it(
    noted: dict[str, Any] | None, there: bool, asked: bool, theirs: bool, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The plan writes its context in and notes the model: `up --prune` would take it when a later plan does not."""
    record = tmp_path / "models.json"
    blob = "sha256:" + "b" * 64
    if noted is not None:
        record.write_text(json.dumps({"m:1": {"digest": "d", "blob": blob, **noted}}))
    now = {"digest": "d", "size": 1, "blob": blob, "num_ctx": 0} if there else None
    manifest = tmp_path / "models/manifests/registry.ollama.ai/library/m/1"
    manifest.parent.mkdir(parents=True)
    if there:
        manifest.write_text("{}")
    monkeypatch.setattr("ownstack.runner.ollama_api.state", lambda *_: now)
    monkeypatch.setattr(ollama_pull, "_bring", lambda *_: {"digest": "d", "blob": blob})
    monkeypatch.setattr(ollama_pull, "wait_ready", lambda *_: 0.0)
    monkeypatch.setattr("ownstack.runner.ollama_api.bake", lambda *_: None)
    spec = {"model": "m:1", "tag": "m:1", "url": "http://127.0.0.1:9", "record": str(record), "num_ctx": 4096,
            "run_dir": str(tmp_path / "run"), "models": str(tmp_path / "models"), "check": False,
            "yours": asked}  # fmt: skip
    ollama_pull.pull(spec, lambda _: None)
    assert json.loads(record.read_text())["m:1"].get("yours", False) == theirs


@pytest.mark.parametrize("fault", ["wait_ready", "bake"])
def test_what_the_kit_fetched_is_not_taken_for_its_owners_when_it_could_not_be_served_at_once(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, blob = tmp_path / "models.json", "sha256:" + "b" * 64
    manifest = tmp_path / "models/manifests/registry.ollama.ai/library/m/1"
    manifest.parent.mkdir(parents=True)

    def bring(*_: Any) -> dict[str, str]:
        manifest.write_text("{}")
        return {"digest": "d", "blob": blob}

    def fails(*_: Any) -> float:
        raise StepError("the engine does not answer", code="engine-down")

    there = {"digest": "d", "size": 1, "blob": blob, "num_ctx": 0}
    monkeypatch.setattr("ownstack.runner.ollama_api.state", lambda *_: there if manifest.exists() else None)
    monkeypatch.setattr(ollama_pull, "_bring", bring)
    monkeypatch.setattr(ollama_pull, "wait_ready", lambda *_: 0.0)
    monkeypatch.setattr("ownstack.runner.ollama_api.bake", lambda *_: None)
    spec = {"model": "m:1", "tag": "m:1", "url": "http://127.0.0.1:9", "record": str(record), "num_ctx": 4096,
            "run_dir": str(tmp_path / "run"), "models": str(tmp_path / "models"), "check": False}  # fmt: skip
    with monkeypatch.context() as patched:
        where = "ownstack.runner.ollama_pull.wait_ready" if fault == "wait_ready" else "ownstack.runner.ollama_api.bake"
        patched.setattr(where, fails)
        with pytest.raises(StepError):
            ollama_pull.pull(spec, lambda _: None)
    ollama_pull.pull(spec, lambda _: None)
    assert "yours" not in json.loads(record.read_text())["m:1"]
