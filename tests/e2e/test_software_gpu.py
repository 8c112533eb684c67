"""The box on a GPU made of software: wholly on it, then split, then on the CPU, and what `verify` says each time.

Mesa's lavapipe is a Vulkan device on the CPU; the engine runs in the product's own unit and places models on it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hosts import Host, Network, Options
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
DROP_IN = "etc/systemd/system/ownstack-ollama.service.d/less.conf"


@pytest.fixture(scope="module")
def box(network: Network) -> Iterator[Host]:
    with Host(network, "softgpu", Options(packages=("mesa-vulkan-drivers",))) as host:
        yield host.boot()


def verdict(ownstack: Ownstack) -> dict[str, dict[str, Any]]:
    return {check["id"]: check for check in ownstack.json("verify", check=False)["checks"]}


def statuses(checks: dict[str, dict[str, Any]], *names: str) -> dict[str, str]:
    return {name: checks[name]["status"] for name in names}


def restart_with(box: Host, what: str) -> None:
    box.run(f"{what}; systemctl daemon-reload; systemctl restart ownstack-ollama")


def test_wholly_on_the_gpu_then_split_then_on_the_cpu(box: Host, tmp_path: Path) -> None:
    ownstack = Ownstack(box, toml=TOML)
    recorded = tmp_path / "twelve.json"
    ownstack("detect", "--raw", str(recorded))
    raw = json.loads(recorded.read_text())
    raw["lines"] = [re.sub(r"^(mem\tMem(Total|Available)\t)\d+", rf"\g<1>{12 * 2**20}", line) for line in raw["lines"]]
    recorded.write_text(json.dumps(raw))
    ownstack("up", "--yes", "--no-verify", "--from", str(recorded))
    box.run("systemctl stop ownstack-gpu-watch.timer")  # the watch has tests of its own, and would repair this
    unit = box.output("systemctl cat ownstack-ollama")
    assert "MemoryDenyWriteExecute=false" in unit
    assert "ProtectSystem=strict" in unit
    assert "PrivateDevices=false" in unit

    whole = verdict(ownstack)
    names = ("ollama-device", "models-gpu-used", "models-gpu-whole", "models-memory")
    assert statuses(whole, *names) == dict.fromkeys(names, "ok"), [whole[name] for name in names]
    print(whole["models-gpu-whole"]["measured"], "|", whole["models-memory"]["measured"])
    assert re.search(r"(\d+) of \1 MiB on the GPU", whole["models-gpu-whole"]["measured"])
    assert "llvmpipe" in whole["ollama-device"]["measured"]

    (box.root / DROP_IN).parent.mkdir()
    restart_with(box, f"printf '[Service]\\nEnvironment=LLAMA_ARG_FIT_TARGET=1850\\n' > /{DROP_IN}")
    split = verdict(ownstack)
    print(split["models-gpu-whole"]["measured"])
    assert statuses(split, "ollama-device", "models-gpu-used", "models-gpu-whole") == {
        "ollama-device": "ok", "models-gpu-used": "ok", "models-gpu-whole": "failed",
    }  # fmt: skip

    restart_with(box, f"rm /{DROP_IN}; mv {MANIFESTS} {MANIFESTS}.away")
    fallen = verdict(ownstack)
    print(fallen["models-gpu-used"]["measured"])
    assert statuses(fallen, "models-chat", "models-gpu-used", "models-gpu-whole") == {
        "models-chat": "ok", "models-gpu-used": "failed", "models-gpu-whole": "failed",
    }  # fmt: skip
    assert " 0 of " in f" {fallen['models-gpu-used']['measured'].split(': ')[1]}"


def test_the_card_goes_and_comes_back(box: Host) -> None:
    """One transaction each way: the engine's parts change, the models stay, and both ways end verified."""
    restart_with(box, f"mv {MANIFESTS}.away {MANIFESTS}")
    without = Ownstack(box, toml='roles = ["ollama", "models"]\n[hardware]\ncpu_only = true\n')
    gone = without.json("up", "--yes")
    assert gone["change"]["engine"] == {"old": "vulkan", "new": "cpu"}
    assert gone["verify"]["ok"], gone["verify"]
    assert "models-gpu-used" not in {check["id"] for check in gone["verify"]["checks"]}
    back = Ownstack(box, toml=TOML).json("up", "--yes", check=False)
    assert back["change"]["engine"] == {"old": "cpu", "new": "vulkan"}
    checks = {check["id"]: check for check in back["verify"]["checks"]}
    # until five minutes after the boot the watch has not looked yet, and says so
    assert {name for name, check in checks.items() if check["status"] not in ("ok", "skipped")} <= {"ollama-gpu-watch"}
    assert statuses(checks, "models-chat", "models-gpu-used", "models-gpu-whole") == {
        "models-chat": "ok", "models-gpu-used": "ok", "models-gpu-whole": "ok",
    }, [checks["models-gpu-used"], checks["models-gpu-whole"]]  # fmt: skip
    assert Ownstack(box, toml=TOML).json("up", "--yes", "--no-verify")["changed"] == 0
