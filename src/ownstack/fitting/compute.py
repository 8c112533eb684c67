"""Compute buffers: what the engine's graph needs beside weights and caches.

Three ways, the best that is known for a model:

* a stored constant (catalogue models measured with llama.cpp's own dry run) and the mask law
  `base * ub/512 + 2*ub*sum(cells)`;
* the replay of the engine's allocator on the model's widths (replay.py), for about 100 architectures;
* a closed form of the widths, for architectures without a recorded program.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import replay
from .model import EMBEDDING_FAMILIES, Model

if TYPE_CHECKING:
    from .memory import Placement, Settings

REFERENCE_BATCH = 512
# encoders: no output matrix, all positions are computed in any case
HEADLESS = EMBEDDING_FAMILIES


@dataclass(frozen=True, slots=True)
class Buffers:
    """Compute bytes of each GPU and of the host, and how they were found."""

    gpus: tuple[int, ...]
    host: int
    how: str = "closed form"


def widths(model: Model, s: Settings, cells: tuple[int, int], batch: int) -> dict[str, int]:
    """The widths that the graph's tensors are made of, by the names used in `data/graphs-*.jsonl`."""
    n = model.number
    heads = max((layer.heads for layer in model.layers), default=0)
    full = [layer for layer in model.layers if not layer.swa and layer.heads_kv] or [model.layers[-1]]
    windowed = [layer for layer in model.layers if layer.swa and layer.heads_kv] or full
    default = model.embedding // heads if heads else 0
    head = n("attention.key_length", default)
    rope = n("rope.dimension_count", head)
    inner, state, groups = n("ssm.inner_size"), n("ssm.state_size"), n("ssm.group_count")
    step = n("ssm.time_step_rank")
    key = n("attention.key_length_mla") or head
    kv_rank = n("attention.kv_lora_rank")
    heads_kv = max(layer.heads_kv for layer in full)
    return {
        "d": model.embedding,
        "ff": n("feed_forward_length"),
        "ffe": n("expert_feed_forward_length") or n("feed_forward_length"),
        "shff": n("expert_shared_feed_forward_length"),
        "shn": n("expert_shared_count"),
        "H": heads,
        "KV": heads_kv,
        "hd": head,
        "KVs": max(layer.heads_kv for layer in windowed),
        "hds": n("attention.key_length_swa", head),
        "U": n("expert_used_count"),
        "E": n("expert_count"),
        "V": model.vocabulary,
        "L": len(model.layers),
        "ple": n("embedding_length_per_layer_input"),
        "inner": inner,
        "state": state,
        "dt": step,
        "grp": groups,
        "conv": inner + 2 * groups * state,
        "inproj": 2 * inner + 2 * groups * state + step,
        "kv_rank": kv_rank,
        "q_rank": n("attention.q_lora_rank"),
        "rope": rope,
        "nope": key - rope,
        "vhd": n("attention.value_length_mla") or n("attention.value_length", head),
        "qk": key,
        "lat": kv_rank + rope,
        "qkv": heads + 2 * heads_kv,
        "cb": cells[0],
        "cs": cells[1] or cells[0],
        "ub": batch,
        "n": max(1, s.parallel),
        "nout": batch if s.all_outputs else max(1, s.parallel),
    }


def program_name(model: Model) -> str:
    """The name of the model's graph: its architecture, and which of its variants."""
    arch = model.arch
    if arch == "llama" and model.experts:
        return "mixtral"
    if arch == "gemma4":
        per_layer = model.number("embedding_length_per_layer_input")
        return "gemma4-moe" if model.experts else "gemma4-ple" if per_layer else "gemma4"
    if arch == "granitehybrid" and model.experts:
        return "granitehybrid-moe"
    if arch in {"olmo2", "exaone4"} and not model.window:
        return f"{arch}-full"
    if arch == "deepseek2" and not model.number("attention.q_lora_rank"):
        return "deepseek2-lite"
    return {"lfm2": "lfm2", "gemma-embedding": "gemma-embedding"}.get(arch, arch)


def mode_of(model: Model, s: Settings) -> str:
    """Which of the recorded modes these settings are."""
    if not s.flash_attention:
        return "nofa"
    if s.all_outputs and model.arch not in HEADLESS:
        return "all"
    if s.kv_type != "f16" and any(layer.kv_k for layer in model.layers):
        return "q8"
    return "server"


def f16_copies(model: Model, s: Settings, cells: tuple[int, int]) -> tuple[int, int]:
    """F16 copies of one layer's K and V that CUDA's flash attention makes of a quantised cache.

    For the widest layer of the growing and of the window cache. Source: ggml-cuda/fattn.cu.
    """
    if s.kv_type == "f16" or not s.flash_attention or s.backend != "cuda":
        return 0, 0
    base = max((layer.kv_k + layer.kv_v for layer in model.layers if not layer.swa), default=0)
    window = max((layer.kv_k + layer.kv_v for layer in model.layers if layer.swa), default=0)
    return 2 * base * cells[0] * s.streams, 2 * window * cells[1] * s.streams


def closed_form(model: Model, w: dict[str, int]) -> int:
    """Values a token at the graph's peak without masks, for an architecture without a program."""
    q = w["H"] * w["hd"]
    if model.experts:
        routed = 3 * w["U"] * w["ffe"] + w["U"] * w["d"] + 4 * w["d"]
        return max(routed, 3 * w["ff"] + 2 * w["d"] + q if model.number("leading_dense_block_count") else 0)
    if model.arch == "qwen35":  # attention of every fourth layer is narrower than the convolution of the others
        return 3 * w["ff"] + w["conv"]
    if w["conv"]:
        return max(3 * w["ff"] + 2 * w["d"] + q, 2 * w["inproj"] + 2 * w["d"])
    if model.arch == "phi3":  # query, key and value are one tensor
        q = 0
    return 3 * w["ff"] + 2 * w["d"] + q + (w["d"] if model.arch == "cohere2" else 0)  # parallel residual


def host_form(model: Model) -> int:
    """Values a token in the host's buffer: the embedded input twice, and per-layer inputs."""
    per_layer = model.number("embedding_length_per_layer_input") * len(model.layers)
    deep = model.number("n_deepstack_layers") * model.embedding
    return 2 * model.embedding + per_layer + deep


def _masks(model: Model, cells: tuple[int, int], batch: int, size: int) -> int:
    return size * batch * sum(cells) if any(layer.kv_k for layer in model.layers) else 0


@functools.lru_cache(maxsize=16_384)
def whole(model: Model, s: Settings, cells: tuple[int, int]) -> tuple[int, int, str]:
    """Compute bytes of the GPU and of the host when every layer is on one GPU, and how they were found."""
    batch = min(s.batch, cells[0] * s.streams)
    plain = s.flash_attention and s.kv_type == "f16" and (not s.all_outputs or model.arch in HEADLESS)
    alone = s.parallel == 1 or not any(layer.recurrent for layer in model.layers)
    if plain and alone and model.gpu_base is not None and model.host_base is not None:
        masks = _masks(model, cells, batch, 2)
        scale = batch / REFERENCE_BATCH
        return int(model.gpu_base * scale) + masks, int(model.host_base * scale) + masks, "stored constant"
    w = widths(model, s, cells, batch)
    name, mode = program_name(model), mode_of(model, s)
    found = replay.program(name, mode)
    if found is None and mode in {"q8", "all"}:
        mode = "server"
        found = replay.program(name)
    if found is not None:
        gpu = replay.peak(found["gpu"], w, f16_copies(model, s, cells))
        host = replay.peak(found["host"], w) if "host" in found else 4 * batch * host_form(model)
        if s.all_outputs and model.arch not in HEADLESS and mode != "all":
            gpu = max(gpu, 4 * batch * (model.vocabulary + model.embedding))
        return gpu, host, "replay"
    masks = _masks(model, cells, batch, 2)
    gpu = 4 * batch * closed_form(model, w) + masks
    if not s.flash_attention:
        attention = cells[0] * (w["H"] + 1) + 2 * w["d"] + 2 * w["H"] * w["hd"] + 2 * w["KV"] * w["hd"]
        gpu = max(gpu, 4 * batch * attention)
    if s.all_outputs and model.arch not in HEADLESS:
        gpu = max(gpu, 4 * batch * (model.vocabulary + model.embedding))
    return gpu + sum(f16_copies(model, s, cells)), 4 * batch * host_form(model) + masks, "closed form"


@functools.lru_cache(maxsize=16_384)
def _cpu(model: Model, s: Settings, cells: tuple[int, int], plain: int) -> int:
    """The one buffer of a model that runs on the CPU alone."""
    batch = min(s.batch, cells[0] * s.streams)
    name, every = program_name(model), s.all_outputs and model.arch not in HEADLESS
    found, one = (replay.program(name, "cpuall") if every else None), replay.program(name, "cpu")
    if one is None or not s.flash_attention:
        return plain + 4 * batch * model.embedding
    steps = found["gpu"] if found else replay.with_every_output(one["gpu"]) if every else one["gpu"]
    return replay.peak(replay.with_mixed_inputs(steps), widths(model, s, cells, batch))


@functools.lru_cache(maxsize=16_384)
def _partial(model: Model, s: Settings, cells: tuple[int, int], hosted: bool, plain: int) -> int:
    """The GPU's buffer while it also computes for layers on the host and borrows their weights."""
    batch = min(s.batch, cells[0] * s.streams)
    found = replay.program(program_name(model), "exps" if hosted else "part")
    tensors = model.weights.tensors
    if found is None or not tensors or not s.flash_attention:
        return plain + model.weights.largest_expert
    return max(plain, replay.peak(found["gpu"], widths(model, s, cells, batch), f16_copies(model, s, cells), tensors))


def pipeline(model: Model, s: Settings, cells: tuple[int, int]) -> int:
    """What each of several GPUs holds more while they work on four batches at once: masks and hidden states of three.

    Seen on two cards: exact for one of them, up to 155 MiB more on the other. Source: ggml-backend.cpp (copies).
    """
    batch = min(s.batch, cells[0] * s.streams)
    return 3 * _masks(model, cells, batch, 2 if s.flash_attention else 4) + 4 * 4 * batch * model.embedding


def buffers(model: Model, s: Settings, cells: tuple[int, int], placement: Placement, devices: Sequence[int]) -> Buffers:
    """Compute bytes by device for a placement; `cells` of the growing and the window cache."""
    gpu_bytes, host_bytes, how = whole(model, s, cells)
    used = [device in devices for device in range(len(placement.split))]
    if not any(used):
        if not placement.split:
            return Buffers((), _cpu(model, s, cells, gpu_bytes), how)
        # a GPU without layers still computes large batches, with weights that it borrows
        borrowed = _partial(model, s, cells, False, gpu_bytes)
        return Buffers((borrowed, *(0 for _ in used[1:])), host_bytes, how)
    if any(d < 0 for d in devices):
        gpu_bytes = _partial(model, s, cells, False, gpu_bytes)
    elif placement.host_experts or placement.host_tail[1]:
        gpu_bytes = _partial(model, s, cells, True, gpu_bytes)
    elif sum(used) > 1:
        gpu_bytes += pipeline(model, s, cells)
    return Buffers(tuple(gpu_bytes if u else 0 for u in used), host_bytes, how)
