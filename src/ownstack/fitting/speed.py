"""Tokens a second, as an interval. Decoding is bound by memory traffic, prompts by arithmetic.

    seconds a token = weights/(a*bandwidth) + past*cache/(depth*bandwidth) + layers*layer + t0

The constants and bands were fitted on public llama-bench tables (see docs/reference/accuracy.md).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from .memory import Estimate, Settings
from .model import Model
from .quants import kv_row_bytes


@dataclass(frozen=True, slots=True)
class Band:
    """A value with the interval that nine of ten measurements lie in."""

    low: float
    mid: float
    high: float


@dataclass(frozen=True, slots=True)
class Law:
    """How a family of devices decodes: share of the bus it reaches, fixed seconds a layer and a token.

    `band`: nine of ten measurements lie within this factor. `depth`: share of the bus at which the cache
    is read (grouped heads), `mla` the same for latent caches.
    """

    a: float
    layer: float
    t0: float
    band: float
    depth: float = 0.7
    mla: float = 0.2


# family -> (dense, mixture of experts). NVIDIA families are compute capabilities; Apple's first generation
# reaches less of its bus than the later ones. Fitted by tools/speed_laws.py on tests/fixtures/speed/rows.csv; 7.0
# and 8.0 rest on the neighbouring family, mixtures of 6.1 to 9.0, of AMD and all of Intel on few rows or none.
LAWS: dict[str, tuple[Law, Law]] = {
    "8.9": (Law(0.90, 70e-6, 0.0002, 1.30), Law(0.92, 40e-6, 0.0002, 1.60)),
    "8.6": (Law(0.88, 100e-6, 0.0, 1.35), Law(0.90, 60e-6, 0.0010, 1.60)),
    "8.0": (Law(0.75, 100e-6, 0.0, 1.45), Law(0.75, 100e-6, 0.0010, 1.60)),
    "9.0": (Law(0.74, 140e-6, 0.0004, 1.35), Law(0.74, 140e-6, 0.0004, 1.60)),
    "7.5": (Law(0.84, 50e-6, 0.0004, 1.50), Law(0.84, 50e-6, 0.0010, 1.70)),
    "7.0": (Law(0.75, 80e-6, 0.0, 1.50), Law(0.75, 80e-6, 0.0010, 1.70)),
    "6.1": (Law(0.44, 150e-6, 0.0010, 1.60), Law(0.44, 150e-6, 0.0010, 1.80)),
    "12.0": (Law(0.96, 80e-6, 0.0, 1.40), Law(0.92, 50e-6, 0.0004, 1.60)),
    "12.1": (Law(0.80, 50e-6, 0.0, 1.30, depth=0.8, mla=0.6), Law(1.00, 140e-6, 0.0, 1.40, depth=0.8, mla=0.6)),
    "apple": (Law(0.86, 110e-6, 0.0, 1.40), Law(0.89, 170e-6, 0.0, 1.50, mla=0.08)),
    "apple-1": (Law(0.70, 170e-6, 0.0026, 1.60), Law(0.70, 160e-6, 0.0008, 1.70, mla=0.08)),
    "amd": (Law(0.86, 70e-6, 0.0003, 1.60), Law(0.80, 60e-6, 0.0008, 1.80)),
    "intel": (Law(0.65, 120e-6, 0.0005, 1.90), Law(0.60, 200e-6, 0.0020, 2.00)),
    "software": (Law(0.20, 0.0, 0.0500, 4.00), Law(0.20, 0.0, 0.0500, 4.00)),
    "cpu": (Law(0.80, 40e-6, 0.0010, 1.60), Law(0.70, 60e-6, 0.0020, 1.80)),
}
# Share of the FP16 rate that a prompt reaches, and the factor that nine of ten measurements lie within: dense, mixture.
# Read from llama-bench tables (8.6: 32 rows, 8.9: 47, 9.0: 12, Apple: 34, its first generation: 15, 12.1: 8); all
# others, and mixtures but those of 12.1, are guesses with a wide range.
PREFILL: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "8.6": ((0.385, 1.5), (0.27, 2.5)),
    "8.9": ((0.27, 1.8), (0.19, 2.5)),
    "9.0": ((0.168, 1.5), (0.12, 2.5)),
    "12.1": ((0.27, 1.9), (0.19, 1.7)),
    "apple": ((0.33, 1.5), (0.23, 2.5)),
    "apple-1": ((0.26, 1.5), (0.18, 2.5)),
    "amd": ((0.25, 2.5), (0.20, 2.5)),
    "intel": ((0.20, 2.5), (0.15, 2.5)),
}
PREFILL_GUESS = ((0.27, 2.5), (0.19, 2.5))
DEFAULT_RAM_BANDWIDTH = 40e9  # two channels of DDR4; shown as an assumption


@dataclass(frozen=True, slots=True)
class Speed:
    """Predicted rates. `first_token_s` is for a prompt of 2,000 tokens."""

    decode: Band
    prefill: Band | None
    first_token_s: Band | None
    context: int


@functools.lru_cache(maxsize=8192)
def cache_read(model: Model, s: Settings, past: int) -> int:
    """Cache bytes that one token reads when `past` tokens lie in the context."""
    known: dict[tuple[bool, int, int], int] = {}
    total = 0
    for layer in model.layers:
        kind = (layer.swa, layer.kv_k, layer.kv_v)
        if kind not in known:
            cells = min(past, model.window) if layer.swa and model.window else past
            k = kv_row_bytes(s.kv_type, layer.kv_k) if layer.kv_k else 0
            v = kv_row_bytes(s.kv_type, layer.kv_v) if layer.kv_v else 0
            known[kind] = cells * (k + v)
        total += known[kind]
    return total


def _depth(model: Model, law: Law) -> float:
    """Share of the bus at which the cache is read: low for heads that are not grouped."""
    if model.mla:
        return law.mla
    layer = next((layer for layer in model.layers if layer.kv_k), model.layers[0])
    grouped = layer.heads_kv and layer.heads / layer.heads_kv >= 2
    return law.depth if grouped else 0.45


def _share(model: Model, e: Estimate) -> float:
    """Share of the bytes read for a token that lies on GPUs."""
    w = model.weights
    gpu = sum(p.weights for p in e.gpus)
    resident = sum(w.layers) + w.output + w.output_copy
    if e.whole or resident == 0:
        return 1.0 if e.gpu_layers else 0.0
    experts = sum(w.experts)
    if experts and e.expert_layers_on_host:
        of = max(model.number("expert_count"), 1)
        used = max(model.number("expert_used_count"), 1)
        host_experts = experts * e.expert_layers_on_host / len(model.layers)
        return max(0.0, 1 - host_experts * used / of / max(w.active, 1))
    return min(1.0, gpu / resident)


@dataclass(frozen=True, slots=True)
class Engine:
    """Where a model runs: vendor, memory bandwidths in bytes/s, FP16 rate in operations/s (0: unknown)."""

    vendor: str
    bandwidth: float
    ram_bandwidth: float = DEFAULT_RAM_BANDWIDTH
    flops: float = 0.0
    efficiency: float = 1.0  # learned on this machine by `ownstack bench`
    family: str = ""

    def law(self, mixture: bool) -> Law:
        pair = LAWS.get(self.family) or LAWS.get(self.vendor) or LAWS["8.6"]
        return pair[mixture]


def family_of(vendor: str, name: str, compute_capability: str) -> str:
    """The family whose constants hold for a card."""
    if vendor == "nvidia":
        if compute_capability in LAWS:
            return compute_capability
        return {
            "8.7": "8.6",
            "5.2": "6.1",
            "6.0": "6.1",
            "7.2": "7.0",
            "10.0": "9.0",
            "10.3": "9.0",
            "11.0": "12.1",
        }.get(compute_capability, "8.6")
    if vendor == "apple" and name.replace("Apple ", "").startswith("M1"):
        return "apple-1"
    return vendor


def decode_seconds(model: Model, s: Settings, law: Law, bandwidth: float, past: int) -> float:
    """Seconds a token takes on devices that hold the whole model."""
    read = cache_read(model, s, past)
    seconds = model.weights.active / (law.a * bandwidth) + read / (_depth(model, law) * bandwidth)
    return seconds + len(model.layers) * law.layer + law.t0


def decode(model: Model, s: Settings, e: Estimate, engine: Engine, past: int) -> Band:
    """Tokens a second while `past` tokens are in the context."""
    gpu, cpu = engine.law(bool(model.experts)), LAWS["cpu"][bool(model.experts)]
    share = _share(model, e) if engine.bandwidth > 0 else 0.0
    active, layers, read = model.weights.active, len(model.layers), cache_read(model, s, past)
    seconds, band = 0.0, 1.0
    if share > 0:
        seconds += share * decode_seconds(model, s, gpu, engine.bandwidth, past)
        band = gpu.band
    if share < 1:
        seconds += active * (1 - share) / (cpu.a * engine.ram_bandwidth)
        seconds += read * (1 - share) / (0.6 * engine.ram_bandwidth) + (1 - share) * (layers * cpu.layer + cpu.t0)
        band = max(band, cpu.band)
    seconds /= engine.efficiency
    return Band(1 / (seconds * band), 1 / seconds, band / seconds)


def prefill(model: Model, e: Estimate, engine: Engine) -> Band | None:
    """Prompt tokens a second, or None where the arithmetic rate is not known."""
    if engine.flops <= 0 or not e.gpu_layers:
        return None
    reached, band = (PREFILL.get(engine.family) or PREFILL.get(engine.vendor) or PREFILL_GUESS)[bool(model.experts)]
    mid = reached * engine.flops / (2 * active_values(model)) * max(_share(model, e), 0.02)
    return Band(mid / band, mid, mid * band)


def active_values(model: Model) -> float:
    """Parameters that one token touches, from header widths and layers (for prompt arithmetic)."""
    bits = {"F16": 16, "BF16": 16, "Q8_0": 8.5, "Q6_K": 6.56, "Q5_K_M": 5.7, "Q4_0": 4.55, "Q3_K_M": 3.9, "Q2_K": 3.0}
    return model.weights.active * 8 / bits.get(model.quant, 4.85)


def predict(model: Model, s: Settings, e: Estimate, engine: Engine) -> Speed:
    """Rates at the planned context (half of it filled) and the time to the first token."""
    rate = prefill(model, e, engine)
    first = Band(2000 / rate.high, 2000 / rate.mid, 2000 / rate.low) if rate else None
    return Speed(decode(model, s, e, engine, s.context // 2), rate, first, s.context)


def log_error(predicted: float, measured: float) -> float:
    """|ln(predicted/measured)|."""
    return abs(math.log(predicted / measured))
