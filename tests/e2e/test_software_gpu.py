"""The box on a GPU made of software, whose engine falls back to the CPU: what `verify` says.

Mesa's lavapipe is a Vulkan device on the CPU; the engine runs in the product's own unit and places models on it.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.hosts import Host, Network
from tests.hosts.kit import Ownstack

TOML = """
roles = ["ollama", "models"]
[hardware]
allow_software_gpu = true
[ollama.extra_env]
GGML_VK_VISIBLE_DEVICES = "0"
OLLAMA_VULKAN = "1"
"""
MANIFESTS = "/usr/share/vulkan/icd.d"


@pytest.fixture(scope="module")
def box(network: Network) -> Iterator[Host]:
    with Host(network, "softgpu") as host:
        host.boot()
        host.run("apt-get -qq update && apt-get -qqy --no-install-recommends install mesa-vulkan-drivers")
        yield host


@pytest.fixture(scope="module")
def ownstack(box: Host, tmp_path_factory: pytest.TempPathFactory) -> Ownstack:
    """The box, made for what a recorded report says: 12 GB."""
    called = Ownstack(box, toml=TOML)
    recorded = tmp_path_factory.mktemp("recorded") / "twelve.json"
    called("detect", "--raw", str(recorded))
    raw = json.loads(recorded.read_text())
    raw["lines"] = [re.sub(r"^(mem\tMem(Total|Available)\t)\d+", rf"\g<1>{12 * 2**20}", line) for line in raw["lines"]]
    recorded.write_text(json.dumps(raw))
    called("up", "--yes", "--no-verify", "--from", str(recorded))
    box.run("systemctl stop ownstack-gpu-watch.timer")  # it has tests of its own, and would repair what is done here
    return called


def verdict(ownstack: Ownstack) -> dict[str, dict[str, Any]]:
    return {check["id"]: check for check in ownstack.json("verify", check=False)["checks"]}


def statuses(checks: dict[str, dict[str, Any]], *names: str) -> dict[str, str]:
    return {name: checks[name]["status"] for name in names}


@contextlib.contextmanager
def away(box: Host) -> Iterator[None]:
    """The Vulkan drivers' manifests are gone, as after a driver's update gone wrong."""
    box.run(f"mv {MANIFESTS} {MANIFESTS}.away; systemctl restart ownstack-ollama")
    try:
        yield
    finally:
        box.run(f"mv {MANIFESTS}.away {MANIFESTS}; systemctl restart ownstack-ollama")


def test_an_engine_that_fell_back_to_the_cpu_is_found(box: Host, ownstack: Ownstack) -> None:
    with away(box):
        fallen = verdict(ownstack)
    print(fallen["models-gpu-used"]["measured"])
    assert statuses(fallen, "models-chat", "models-gpu-used", "models-gpu-whole") == {
        "models-chat": "ok", "models-gpu-used": "failed", "models-gpu-whole": "failed",
    }  # fmt: skip
    assert fallen["models-gpu-used"]["values"]["size_vram"] == 0
