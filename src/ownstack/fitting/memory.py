"""Bytes per device of a model at given run settings. Exact where llama.cpp is deterministic.

Weights, cache and recurrent state are closed forms of the header (llama-kv-cache.cpp,
llama-kv-cache-iswa.cpp, llama-memory-recurrent.cpp). Compute buffers: see compute.py.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

from . import compute
from .model import Model
from .quants import kv_row_bytes

MIB = 2**20
PAD = 256
# On the CPU alone the engine loads these families' tied output matrix a second time (seen with llama.cpp 0.7.0).
TWICE = frozenset({"gemma3n", "gemma4"})


@dataclass(frozen=True, slots=True)
class Settings:
    """How the engine is asked to run the model.

    `context` is of one request; there are `parallel` of them, each with a cache of its own unless
    `unified`. `batch` is the micro-batch. `backend` decides what belongs to the compute buffer.
    """

    context: int = 4096
    parallel: int = 1
    kv_type: str = "f16"
    flash_attention: bool = True
    batch: int = 512
    unified: bool = False
    backend: str = "cuda"
    # logits (or embeddings) of every position, as embedding servers and old servers keep them
    all_outputs: bool = False

    @property
    def streams(self) -> int:
        return 1 if self.unified else self.parallel


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes on one device, or on the host. `overhead` is the driver's, as an interval."""

    weights: int = 0
    kv: int = 0
    recurrent: int = 0
    compute: int = 0
    output: int = 0
    projector: int = 0
    overhead: tuple[int, int] = (0, 0)

    @property
    def total(self) -> int:
        """Without overhead."""
        return self.weights + self.kv + self.recurrent + self.compute + self.output + self.projector


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a placement takes. `gpu_layers` counts the output layer as one, as the engine does."""

    gpus: tuple[Part, ...]
    host: Part
    gpu_layers: int
    of_layers: int
    # expert layers kept on the host although their layer is on a GPU
    expert_layers_on_host: int = 0

    @property
    def whole(self) -> bool:
        return self.gpu_layers == self.of_layers and not self.expert_layers_on_host

    @property
    def gpu_bytes(self) -> int:
        return sum(part.total for part in self.gpus)

    @property
    def total(self) -> int:
        return self.gpu_bytes + self.host.total


def pad(cells: int, to: int = PAD) -> int:
    return -(-cells // to) * to


def cells(model: Model, s: Settings) -> tuple[int, int]:
    """Cells of the growing and of the window cache, of one stream. (0, 0) for models without a cache."""
    base = pad(s.context * s.parallel if s.unified else s.context)
    if not model.window:
        return base, 0
    slots = s.parallel if s.unified else 1
    return base, min(pad(min(base, model.window * slots + s.batch)), pad(base))


def _v_width(model: Model, s: Settings, values: int) -> int:
    """Without flash attention the transposed V cache has the width of the widest layer."""
    if s.flash_attention or values == 0:
        return values
    return max(layer.kv_v for layer in model.layers)


@functools.lru_cache(maxsize=8192)
def layer_kv(model: Model, s: Settings) -> tuple[int, ...]:
    """Cache bytes of each repeating layer, all sequences together."""
    base, windowed = cells(model, s)
    known: dict[tuple[bool, int, int], int] = {}
    sizes = []
    for layer in model.layers:
        kind = (layer.swa, layer.kv_k, layer.kv_v)
        if kind not in known:
            rows = (windowed if layer.swa else base) * s.streams
            k = kv_row_bytes(s.kv_type, layer.kv_k) if layer.kv_k else 0
            v = kv_row_bytes(s.kv_type, _v_width(model, s, layer.kv_v)) if layer.kv_v else 0
            known[kind] = rows * (k + v)
        sizes.append(known[kind])
    return tuple(sizes)


@functools.lru_cache(maxsize=8192)
def layer_state(model: Model, s: Settings) -> tuple[int, ...]:
    """Recurrent-state bytes (F32) of each repeating layer, all sequences together."""
    size = (model.state_r + model.state_s) * 4 * max(1, s.parallel)
    return tuple(size if layer.recurrent else 0 for layer in model.layers)


def output_bytes(model: Model, s: Settings) -> int:
    """The host's buffer of logits, one row a request (kept for embedding models too)."""
    return model.vocabulary * 4 * s.parallel


@dataclass(frozen=True, slots=True)
class Placement:
    """Which layers lie where: `split[i]` layers on GPU i, from the back; the output layer counts as one.

    `host_experts`: repeating layers (by index) whose experts stay on the host.
    `host_tail`: bytes of one further layer's feed-forward that stay on the host.
    """

    split: tuple[int, ...]
    host_experts: frozenset[int] = frozenset()
    host_tail: tuple[int, int] = (0, 0)  # (layer index, bytes)


def place_layers(model: Model, placement: Placement) -> list[int]:
    """Device of each layer (repeating layers, then the output layer): -1 host, else the GPU's index."""
    count = len(model.layers) + 1
    on_gpu = min(sum(placement.split), count)
    devices = [-1] * (count - on_gpu)
    for device, layers in enumerate(placement.split):
        devices += [device] * layers
    return devices[:count]


def estimate(model: Model, s: Settings, placement: Placement) -> Estimate:
    """Bytes per device for a given placement."""
    devices = place_layers(model, placement)
    gpus = len(placement.split)
    weights, kv, state = [0] * (gpus + 1), [0] * (gpus + 1), [0] * (gpus + 1)
    caches, states = layer_kv(model, s), layer_state(model, s)
    for i in range(len(model.layers)):
        device, size, moved = devices[i], model.weights.layers[i], 0
        if device >= 0 and i in placement.host_experts:
            moved = model.weights.experts[i]
        elif device >= 0 and placement.host_tail[1] and placement.host_tail[0] == i:
            moved = placement.host_tail[1]
        weights[device] += size - moved
        weights[gpus] += moved  # index -1 and index `gpus` are the same place: the host
        kv[device] += caches[i]
        state[device] += states[i]
    last = devices[-1]
    weights[last] += model.weights.output + (model.weights.output_copy if last >= 0 else 0)
    weights[gpus] += model.weights.embedding
    if not gpus:
        weights[gpus] += (model.weights.output_copy if model.arch in TWICE else 0) - model.weights.padding
    buffers = compute.buffers(model, s, cells(model, s), placement, devices)
    parts = [Part(weights=weights[i], kv=kv[i], recurrent=state[i], compute=buffers.gpus[i]) for i in range(gpus)]
    host = Part(
        weights=weights[gpus], kv=kv[gpus], recurrent=state[gpus], compute=buffers.host, output=output_bytes(model, s)
    )
    return Estimate(
        gpus=tuple(parts),
        host=host,
        gpu_layers=len(devices) - devices.count(-1),
        of_layers=len(devices),
        expert_layers_on_host=sum(1 for i in placement.host_experts if devices[i] >= 0)
        if placement.host_experts
        else 0,
    )


def with_overhead(e: Estimate, overheads: tuple[tuple[int, int], ...]) -> Estimate:
    """The same estimate with each card's driver overhead noted."""
    return replace(e, gpus=tuple(replace(p, overhead=o) for p, o in zip(e.gpus, overheads, strict=True)))
