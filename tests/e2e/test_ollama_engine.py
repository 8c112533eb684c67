"""The real engine from the registry build, driven by the runner as it travels: models from files, pulls, bad input.

The serving engine and the pulling one run under two accounts, neither of them root's.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ownstack.data import load_artifacts
from ownstack.engine.carry import obtain
from ownstack.engine.zipapp import runner_zipapp
from ownstack.plan import ChosenArtifact
from ownstack.runner import ollama_api as api
from ownstack.runner.ollama_engine import free_port
from ownstack.runner.unpack import unpack
from tests.hosts.registry import Registry
from tests.hosts.serve import Fault, FileServer

SERVING, PULLING = "daemon", "games"  # accounts that every Debian has and nobody uses
CACHE_BYTES = 188743680  # 30 layers x 8192 positions x 3 heads x 64 x 2 (K and V) x 2 bytes
HELLO_WORLD = (-0.0345, 0.0309, 0.0067, 0.0261)  # all-MiniLM-L6-v2's well-known embedding begins so


def artefact(role: str, name: str, variant_id: str) -> Path:
    """An artefact of the product's own lock, obtained as the product does."""
    (artifact,) = [a for a in load_artifacts(role) if a["name"] == name]
    (variant,) = [v for v in artifact["variant"] if v["id"] == variant_id]
    chosen = ChosenArtifact(
        name=name, variant=variant_id, version=variant["version"], platform="linux-x86_64", kind=variant["kind"],
        way="carry", source=variant["source"], sha256=variant.get("sha256", ""), details=variant,
    )  # fmt: skip
    return obtain(chosen, print).path


@dataclass
class Box:
    """A serving engine with its folder, and the runner as it lies on a target."""

    folder: Path
    url: str
    chat: Path
    embedding: Path

    def step(self, name: str, **spec: Any) -> dict[str, Any]:
        """The last event of a runner step."""
        command = [str(self.folder / "runner"), name, "--json", json.dumps({"url": self.url, **spec})]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stdout, done.stderr
        event: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return event

    def names(self) -> set[str]:
        return set(self.step("ollama.inspect")["data"]["models"])

    def pull(self, server: FileServer, digest: str, name: str = "small:1", **more: Any) -> dict[str, Any]:
        """The specification of a pull."""
        return {
            "model": name, "tag": name, "url": self.url, "run_dir": str(self.folder / "run"),
            "record": str(self.folder / "models.json"), "num_ctx": 2048, "digest": digest, "download_bytes": 98362432,
            "registry": server.url.partition("//")[2], "insecure": True, "retry_s": 0.1,
            "program": str(self.folder / "ollama/bin/ollama"), "models": str(self.folder / "models"),
            "account": PULLING, "manager": "supervisord", "unit": f"test-pull-{name.replace(':', '-')}", **more,
        }  # fmt: skip

    def state(self, name: str = "small:1") -> dict[str, Any]:
        pulls = self.step("ollama.pulls", run_dir=str(self.folder / "run"))["data"]["pulls"]
        (found,) = [pull for pull in pulls if pull["model"] == name]
        return dict(found)

    def wait(
        self, until: Callable[[dict[str, Any]], bool], name: str = "small:1", seconds: float = 60
    ) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = self.state(name)
            if until(found):
                return found
            time.sleep(0.1)
        raise AssertionError(f"still {found}")


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    folder = Path("/var/tmp") / f"ownstack-engine-{os.getpid()}"
    owner = pwd.getpwnam(SERVING)
    for name, mode in (("", 0o755), ("run", 0o755), ("models", 0o711), ("home", 0o700)):
        (folder / name).mkdir(mode=mode)
    os.chown(folder / "models", owner.pw_uid, owner.pw_gid)
    os.chown(folder / "home", owner.pw_uid, owner.pw_gid)
    unpack(str(artefact("ollama", "ollama", "go-module")), str(folder / "ollama"), {"format": "tar.gz"})
    (folder / "runner.pyz").write_bytes(runner_zipapp())
    (folder / "runner").write_text(f'#!/bin/sh\nexec /usr/bin/python3 -I {folder}/runner.pyz "$@"\n')
    (folder / "runner").chmod(0o755)
    port = free_port()
    environment = {
        "HOME": str(folder / "home"), "PATH": "/usr/bin:/bin", "OLLAMA_HOST": f"127.0.0.1:{port}",
        "OLLAMA_MODELS": str(folder / "models"), "OLLAMA_NO_CLOUD": "1", "OLLAMA_NOPRUNE": "1",
    }  # fmt: skip
    with (folder / "test-ollama.log").open("wb") as log:
        process = subprocess.Popen(
            [str(folder / "ollama/bin/ollama"), "serve"], env=environment, stdout=log, stderr=log, cwd="/",
            user=owner.pw_uid, group=owner.pw_gid, extra_groups=[], umask=0o077,
        )  # fmt: skip
    made = Box(
        folder, f"http://127.0.0.1:{port}", artefact("models", "smollm2-135m", "pypi-wheel"),
        artefact("models", "all-minilm", "pypi-converted"),
    )  # fmt: skip
    try:
        assert made.step("box.ready", what="ollama", seconds=30, url=f"{made.url}/api/version")["event"] == "result"
        yield made
    finally:
        process.terminate()
        process.wait(20)
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def registry(box: Box) -> tuple[Registry, str]:
    made = Registry(box.folder / "registry")
    return made, made.add("small", "1", box.chat, parameters={"temperature": 0.5})


def create(box: Box, file: Path, tag: str, sha256: str, num_ctx: int, **more: Any) -> dict[str, Any]:
    return box.step("ollama.create", tag=tag, file=str(file), sha256=sha256, num_ctx=num_ctx, **more)


def sha256(file: Path) -> str:
    return subprocess.run(["sha256sum", str(file)], capture_output=True, text=True, check=True).stdout[:64]


def test_embedding_model_gives_the_well_known_values(box: Box) -> None:
    variant = load_artifacts("models")[1]["variant"][0]
    made = create(box, box.embedding, "all-minilm:22m", variant["result"], 512)
    assert (made["event"], made["changed"]) == ("result", True), made
    data = box.step("ollama.embed_check", model="all-minilm:22m")["data"]
    assert data["dimension"] == 384
    assert data["norm"] == pytest.approx(1, abs=1e-3)
    assert data["first"] == pytest.approx(HELLO_WORLD, abs=3e-4)


def test_chat_model_answers_with_the_context_written_in(box: Box) -> None:
    for changed in (True, False):
        made = create(box, box.chat, "smollm2:135m", sha256(box.chat), 8192)
        assert (made["event"], made["changed"], made["data"]["num_ctx"]) == ("result", changed, 8192)
    data = box.step("ollama.chat_check", model="smollm2:135m")["data"]
    assert data["answered"]
    assert data["tokens"] > 0 < data["prompt_tokens"]
    log = {"manager": "supervisord", "unit": "test-ollama", "log_dir": str(box.folder)}
    held = box.step("ollama.measure", model="smollm2:135m", **log)["data"]
    assert held["context_length"] == 8192
    assert held["buffers"]["CPU"]["kv"] == CACHE_BYTES
    assert held["size_vram"] == 0
    evidence = box.step("ollama.evidence", **log)["data"]
    assert (evidence["cloud_off"], evidence["requests_logged"]) == (True, False)
    assert evidence["devices"][0]["library"] == "cpu"
    assert box.step("ollama.unload", model="smollm2:135m")["event"] == "result"
    # the log still holds the earlier load; where it does not, the model is loaded once more
    gone = box.step("ollama.measure", model="smollm2:135m", **{**log, "unit": "no-such-log"})["data"]
    assert gone["buffers"] == {}


def test_an_answer_of_a_model_that_finds_no_end_has_one(box: Box) -> None:
    create(box, box.chat, "curt:1", sha256(box.chat), 1024, longest=5)
    asked = [{"role": "user", "content": "Tell me a long story."}]
    answer = api.ask(box.url, "/api/chat", {"model": "curt:1", "stream": False, "keep_alive": 0, "messages": asked})
    assert 0 < answer["eval_count"] <= 5
    api.delete(box.url, "curt:1")


def test_context_is_what_the_engine_uses_whoever_asks(box: Box) -> None:
    create(box, box.chat, "short:1", sha256(box.chat), 1024)
    box.step("ollama.chat_check", model="short:1", tokens=1)
    assert box.step("ollama.ps")["data"]["models"]["short:1"]["context_length"] == 1024
    assert box.step("ollama.bake", source="short:1", tag="short:1", num_ctx=4096)["changed"]
    assert not box.step("ollama.bake", source="short:1", tag="short:1", num_ctx=4096)["changed"]
    box.step("ollama.chat_check", model="short:1", tokens=1)
    assert box.step("ollama.ps")["data"]["models"]["short:1"]["context_length"] == 4096


@pytest.mark.parametrize(("size", "true_hash", "code"), [
    (50_000_000, True, "gguf-broken"), (1000, True, "gguf-broken"), (50_000_000, False, "fetch-hash"),
])  # fmt: skip
def test_a_truncated_file_is_refused_and_leaves_no_model(
    box: Box, tmp_path: Path, size: int, true_hash: bool, code: str
) -> None:
    short = tmp_path / "short.gguf"
    with box.chat.open("rb") as stream:
        short.write_bytes(stream.read(size))
    before = box.names()
    found = create(box, short, "broken:1", sha256(short if true_hash else box.chat), 0)
    assert (found["event"], found.get("code")) == ("error", code), found
    assert found["hint"]
    assert box.names() == before


def test_what_is_no_gguf_file_is_refused_before_it_is_handed_over(box: Box, tmp_path: Path) -> None:
    text = tmp_path / "x.gguf"
    text.write_text("not a model")
    assert create(box, text, "broken:1", sha256(text), 0)["code"] == "gguf-broken"
    assert create(box, tmp_path / "none", "broken:1", "0" * 64, 0)["code"] == "gguf-missing"


@pytest.mark.parametrize(
    ("step", "spec", "code"),
    [
        ("ollama.chat_check", {"model": "nosuch:1"}, "model-unknown"),
        ("ollama.embed_check", {"model": "nosuch:1"}, "model-unknown"),
        ("ollama.bake", {"source": "nosuch:1", "tag": "x:1", "num_ctx": 1}, "model-unknown"),
        ("ollama.inspect", {"url": "http://127.0.0.1:9"}, "engine-down"),
        ("ollama.create", {"tag": "x; reboot", "file": "/dev/null", "sha256": "0" * 64}, "model-name"),
    ],
)
def test_bad_questions_get_clear_answers(box: Box, step: str, spec: dict[str, Any], code: str) -> None:
    found = box.step(step, **spec)
    assert (found["event"], found["code"]) == ("error", code), found
    assert found["hint"]


def test_a_pull_outlives_its_start_switches_and_is_known_again(box: Box, registry: tuple[Registry, str]) -> None:
    made, digest = registry
    log = box.folder / "models" / "log"
    then = [{"step": "ollama.bake", "spec": {"url": box.url, "source": "small:1", "tag": "default:1", "num_ctx": 2048}}]
    with made.serve() as server:
        job = box.pull(server, digest, then=then)
        assert box.step("ollama.pull_start", runner=str(box.folder / "runner"), pull=job)["changed"]
        assert not box.step("ollama.pull_start", runner=str(box.folder / "runner"), pull=job)["changed"]
        state = box.wait(lambda found: not found["alive"])
        assert state["status"] == "done", state
        assert state["answer"]["answered"]
        assert state["then"] == [{"step": "ollama.bake", "changed": True}]
        assert not box.step("ollama.pull_start", runner=str(box.folder / "runner"), pull=job)["changed"]
    assert {"small:1", "default:1"} <= box.names()
    assert not log.exists()
    wanted = {"tag": "small:1", "use": "chat", "num_ctx": 2048, "digest": digest, "sha256": sha256(box.chat)}
    known = {"record": str(box.folder / "models.json")}
    assert box.step("ollama.ensure", models=[wanted], **known)["data"]["present"] == ["small:1"]
    wrong = box.step("ollama.ensure", models=[{**wanted, "digest": "e" * 64}], **known)["data"]["wrong"]
    assert "pulled as" in wrong["small:1"]
    # what was there before is there still, and nothing of the pulling account's stays
    assert not list((box.folder / "models").glob(".pull-*"))
    owners = {path.owner() for path in (box.folder / "models").rglob("*")}
    assert owners == {SERVING}


@pytest.mark.parametrize(
    ("name", "digest", "code"),
    [("small:1", "0" * 64, "model-digest"), ("nosuch:1", "", "model-unknown"), ("small:nosuch", "", "model-unknown")],
)
def test_what_is_not_the_planned_model_is_not_taken(
    box: Box, registry: tuple[Registry, str], name: str, digest: str, code: str
) -> None:
    before = box.names()
    with registry[0].serve() as server:
        found = box.step("ollama.pull", **box.pull(server, digest, name=name, tag="other:1"))
    assert (found["event"], found["code"]) == ("error", code), found
    assert box.state("other:1")["error"]["code"] == code
    assert box.names() == before
    assert not list((box.folder / "models").glob(".pull-*"))


def test_a_full_disk_is_said_beforehand(box: Box, registry: tuple[Registry, str]) -> None:
    with registry[0].serve() as server:
        found = box.step("ollama.pull", **box.pull(server, "", tag="huge:1", download_bytes=10**17))
        assert server.asked == []
    assert (found["code"], "free" in found["hint"]) == ("disk-full", True)


def test_bytes_that_changed_on_the_way_are_not_taken(box: Box, registry: tuple[Registry, str]) -> None:
    blob = f"/v2/library/small/blobs/sha256:{sha256(box.chat)}"
    before = box.names()
    with registry[0].serve() as server:
        server.faults[blob] = Fault(flip=True)
        found = box.step("ollama.pull", **box.pull(server, registry[1], tag="flipped:1"))
    assert (found["event"], found["code"]) == ("error", "fetch-hash"), found
    assert box.names() == before


def test_a_registry_that_is_gone_is_tried_again_and_then_named(box: Box, registry: tuple[Registry, str]) -> None:
    with registry[0].serve() as server:
        job = box.pull(server, "", tag="gone:1")
    found = box.step("ollama.pull", **job)
    assert found["code"] == "registry-unreachable", found
    assert found["hint"]


def test_a_killed_pull_goes_on_where_it_stopped(box: Box, registry: tuple[Registry, str]) -> None:
    made, digest = registry
    with made.serve() as server:
        server.rate = 20_000_000
        job = box.pull(server, digest, tag="resumed:1")
        box.step("ollama.pull_start", runner=str(box.folder / "runner"), pull=job)
        state = box.wait(lambda found: found["done"] > 20_000_000, "resumed:1")
        assert state["rate"] is None or state["rate"] > 0
        os.kill(state["pid"], signal.SIGKILL)
        box.wait(lambda found: not found["alive"], "resumed:1")
        assert box.state("resumed:1")["status"] == "interrupted"
        server.rate = None
        mark = len(server.asked)
        box.step("ollama.pull_start", runner=str(box.folder / "runner"), pull=job)
        assert box.wait(lambda found: not found["alive"], "resumed:1")["status"] == "done"
        again = sum(asked.sent for asked in server.asked[mark:] if asked.method == "GET")
    assert again < 98362432 - 5_000_000, "it began anew"
    assert "resumed:1" in box.names()


def test_a_pull_can_be_ended(box: Box, registry: tuple[Registry, str]) -> None:
    with registry[0].serve() as server:
        server.rate = 5_000_000
        job = box.pull(server, registry[1], tag="ended:1")
        box.step("ollama.pull_start", runner=str(box.folder / "runner"), pull=job)
        box.wait(lambda found: found["status"] == "pulling", "ended:1")
        stopped = box.step("ollama.pull_stop", manager="supervisord", run_dir=str(box.folder / "run"), tags=["ended:1"])
    assert stopped["data"]["stopped"] == ["ended:1"]
    assert (box.state("ended:1")["status"], box.state("ended:1")["alive"]) == ("stopped", False)
    assert "ended:1" not in box.names()


def test_an_engine_that_is_not_ours_pulls_for_itself_and_keeps_its_own(
    box: Box, registry: tuple[Registry, str]
) -> None:
    made, digest = registry
    with made.serve() as server:
        job = box.pull(server, digest, tag="smollm2:135m", via_api=True, may_add=False, num_ctx=0)
        assert not box.step("ollama.pull", **job)["changed"], "what is there is its owner's choice"
        refused = box.step("ollama.pull", **{**job, "tag": "theirs:1"})
        assert refused["code"] == "no-consent"
        allowed = box.step("ollama.pull", **{**job, "tag": "theirs:1", "may_add": True, "check": False})
        assert allowed["event"] == "result", allowed
    assert "theirs:1" in box.names()
    replaced = create(box, box.embedding, "theirs:1", sha256(box.embedding), 0, may_replace=False)
    assert replaced["code"] == "model-foreign"
