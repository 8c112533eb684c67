"""One model on one machine as `ownstack fit` shows it: bytes, speed, verdict, reasons, provenance."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from . import compute, offload, ollama
from .catalogue import QUANTS, Entry
from .machine import UNLIMITED, Machine
from .memory import Estimate, Part, Settings, cells, with_overhead
from .model import Model
from .search import add_projector
from .speed import Band, Speed, predict
from .words import gib

FITS, PARTIAL, MISFIT = "fits", "partial", "does-not-fit"


@dataclass(frozen=True, slots=True)
class Request:
    """What the user fixes. None: chosen. `gpu_layers`: a number, "all" or "fit"."""

    context: int | None = None
    kv_type: str = "f16"
    parallel: int = 1
    batch: int | None = None
    flash_attention: bool = True
    gpu_layers: int | str = "fit"


@dataclass(frozen=True, slots=True)
class Row:
    """The outcome for one model."""

    tag: str
    title: str
    model: Model
    settings: Settings
    estimate: Estimate
    speed: Speed | None
    verdict: str
    reasons: tuple[str, ...]
    how: str
    exact_weights: bool
    quality: float = 0.0
    entry: Entry | None = None
    change: str = ""
    file_bytes: int = 0
    # where the driver's interval and the rates of memory came from
    overhead_source: str = ""
    rates: str = ""

    @property
    def used(self) -> int:
        """Bytes on GPUs, or of RAM where there is none."""
        return self.estimate.gpu_bytes or self.estimate.host.total


def settings_for(model: Model, machine: Machine, want: Request, file_bytes: int) -> Settings:
    """The engine's settings: the user's, and Ollama's own choice of micro-batch where none is given."""
    context = want.context or min(model.context_train or 8192, 8192)
    s = Settings(
        context=context,
        parallel=want.parallel,
        kv_type=want.kv_type,
        flash_attention=want.flash_attention,
        backend=machine.backend,
        all_outputs=model.embedding_model,
    )
    if want.batch:
        return replace(s, batch=want.batch)
    if model.embedding_model:
        return replace(s, batch=ollama.embedding_batch(context, want.parallel))
    guess = ollama.predicted(model, file_bytes, context, want.parallel)
    available = sum(d.free for d in machine.devices)
    batch = ollama.auto_batch(context * want.parallel, guess, available, s.flash_attention, machine.backend == "cuda")
    return replace(s, batch=batch)


def place(model: Model, s: Settings, machine: Machine, gpu_layers: int | str, projector: int = 0) -> Estimate:
    """The estimate for the wanted placement, with each card's overhead. `projector` is kept free beside the margin."""
    overheads = tuple(d.overhead for d in machine.devices)
    if not machine.devices:
        return offload.fit(model, s, ())
    if gpu_layers == "fit":
        free = tuple(max(0, d.free - d.overhead[1]) for d in machine.devices)
        return with_overhead(offload.fit(model, s, free, offload.MARGIN_BYTES + projector), overheads)
    count = len(model.layers) + 1 if gpu_layers == "all" else int(gpu_layers)
    if gpu_layers == "all" and len(machine.devices) > 1:
        from .memory import estimate

        return with_overhead(estimate(model, s, offload.spread(model, s, machine.free)), overheads)
    return with_overhead(offload.forced(model, s, len(machine.devices), count), overheads)


def judge(e: Estimate, machine: Machine) -> tuple[str, list[str]]:
    """Fits, fits partly, or not, and why."""
    reasons: list[str] = []
    for device, part in zip(machine.devices, e.gpus, strict=True):
        need = part.total + part.overhead[1]
        if part.total and need > device.free:
            reasons.append(f"{device.name}: needs {gib(need)}, {gib(device.free)} are free")
    host = e.host.total + (e.gpu_bytes if machine.unified else 0)
    if host > machine.ram_available:
        reasons.append(f"RAM: needs {gib(host)}, {gib(machine.ram_available)} are free")
    if reasons:
        return MISFIT, reasons
    if not machine.devices:
        return FITS, [f"on the CPU, {gib(e.host.total)} of {gib(machine.ram_available)} of free RAM"]
    if e.whole:
        spare = min(d.free - p.total - p.overhead[1] for d, p in zip(machine.devices, e.gpus, strict=True) if p.total)
        return FITS, ["wholly on the GPU" + ("" if spare > UNLIMITED // 2 else f", {gib(spare)} to spare")]
    if e.expert_layers_on_host:
        return PARTIAL, [f"fits with the experts of {e.expert_layers_on_host} layers on the CPU"]
    return PARTIAL, [f"fits with {e.of_layers - e.gpu_layers} of {e.of_layers} layers on the CPU"]


def make_row(
    model: Model,
    machine: Machine,
    want: Request,
    *,
    tag: str,
    title: str = "",
    file_bytes: int = 0,
    entry: Entry | None = None,
    quality: float = 0.0,
) -> Row:
    """Evaluate one model on one machine."""
    size = file_bytes or model.weights.total
    s = settings_for(model, machine, want, size)
    projector = 0 if entry is None else entry.projector_bytes
    e = add_projector(place(model, s, machine, want.gpu_layers, projector), projector)
    verdict, reasons = judge(e, machine)
    how = compute.whole(model, s, cells(model, s))[2]
    return Row(
        tag=tag,
        title=title or tag,
        model=model,
        settings=s,
        estimate=e,
        speed=predict(model, s, e, machine.engine),
        verdict=verdict,
        reasons=tuple(reasons),
        how=how,
        exact_weights=entry is None or entry.exact(model.quant),
        quality=quality,
        entry=entry,
        file_bytes=size,
        overhead_source=overhead_source(machine),
        rates=rates(e, machine),
    )


def overhead_source(machine: Machine) -> str:
    """Where the interval of the driver's memory is from; empty without a GPU."""
    if not machine.devices:
        return ""
    if any(d.overhead_measured for d in machine.devices):
        return "measured on this machine by `ownstack bench`"
    return "interval seen in logs" if machine.backend == "cuda" else "assumed interval"


def rates(e: Estimate, machine: Machine) -> str:
    """The bandwidths that the speed is reckoned with, each with its source."""
    said = []
    if machine.devices and e.gpu_layers:
        slowest = min(machine.devices, key=lambda d: d.bandwidth or float("inf"))
        said.append(f"GPU memory {slowest.bandwidth / 1e9:.0f} GB/s ({slowest.bandwidth_source})")
    if not machine.devices or not e.whole:
        said.append(f"RAM {machine.ram_bandwidth / 1e9:.0f} GB/s ({machine.ram_bandwidth_source})")
    if machine.efficiency != 1.0:
        said.append(f"times {machine.efficiency:.2f}, measured on this machine by `ownstack bench`")
    return ", ".join(said)


def entry_row(
    entry: Entry, quant: str, machine: Machine, want: Request, quality: float = 0.0, *, beyond: bool = False
) -> Row:
    """The row of a catalogue entry. A context that it was not trained for is cut, and said; `beyond` keeps it."""
    quant = quant if quant in entry.quants else entry.default_quant
    asked = want.context or min(8192, entry.context)
    row = make_row(
        entry.model(quant),
        machine,
        replace(want, context=asked if beyond else min(asked, entry.context)),
        tag=entry.tag,
        title=entry.title,
        file_bytes=entry.download_bytes(quant),
        entry=entry,
        quality=quality,
    )
    return with_limit(row, asked)


def with_limit(row: Row, asked: int) -> Row:
    """The row with a word on what Ollama does not give: a context beyond the trained one, several requests."""
    trained, parallel = row.model.context_train, row.settings.parallel
    words = list(row.reasons)
    if trained and asked > trained:
        words.append(f"trained for {trained} tokens: Ollama cuts a context of {asked} to that")
    if ollama.parallel(row.model, parallel) < parallel:
        words.append(f"Ollama gives this family one request at a time, not {parallel}")
    return replace(row, reasons=tuple(words)) if len(words) > len(row.reasons) else row


def with_ollamas_own(row: Row, machine: Machine) -> Row:
    """The row with the context that Ollama takes by itself, where the user named none."""
    own = ollama.auto_context(machine.vram, row.model.context_train)
    return replace(row, reasons=(*row.reasons, f"left to itself, Ollama takes a context of {own} on this machine"))


def with_change(row: Row, machine: Machine, want: Request) -> Row:
    """A misfit with the nearest change that makes it fit; any other row as it is."""
    return replace(row, change=nearest_change(row, machine, want)) if row.verdict == MISFIT else row


def nearest_change(row: Row, machine: Machine, want: Request) -> str:
    """The smallest change that makes a misfit fit: cache type, context, a smaller quantisation, or fewer layers."""
    entry, model, context, kv_type = row.entry, row.model, row.settings.context, row.settings.kv_type
    room = sum(machine.free) + (machine.ram_available if want.gpu_layers == "fit" or not machine.devices else 0)

    def fits(
        quant: str = "", context: int = context, kv_type: str = kv_type, layers: int | str = want.gpu_layers
    ) -> bool:
        changed = replace(want, context=context, kv_type=kv_type, gpu_layers=layers)
        if entry is not None:
            return entry_row(entry, quant or model.quant, machine, changed, beyond=True).verdict != MISFIT
        return make_row(model, machine, changed, tag=row.tag, file_bytes=row.file_bytes).verdict != MISFIT

    if sum(model.weights.layers) <= room:  # else only smaller weights help
        if kv_type == "f16" and row.settings.flash_attention and fits(kv_type="q8_0"):
            return "--kv-type q8_0"
        shorter = context // 2
        while shorter >= 2048:
            if fits(context=shorter):
                return f"--ctx {shorter}"
            shorter //= 2
    quants = [q for q in QUANTS if entry is not None and q in entry.quants]
    for quant in quants[quants.index(model.quant) + 1 :] if model.quant in quants else []:
        if entry is not None and sum(entry.model(quant).weights.layers) <= room and fits(quant):
            return f"--quant {quant}"
    return "--gpu-layers fit" if want.gpu_layers != "fit" and fits(layers="fit") else ""


def _band(band: Band | None) -> dict[str, float] | None:
    return None if band is None else {k: round(getattr(band, k), 2) for k in ("low", "mid", "high")}


def _gpu(part: Part) -> dict[str, Any]:
    numbers: dict[str, Any] = {k: getattr(part, k) for k in ("weights", "kv", "recurrent", "compute")}
    if part.projector:
        numbers["projector"] = part.projector
    return numbers | {"overhead": {"low": part.overhead[0], "high": part.overhead[1]}, "total": part.total}


def as_json(row: Row) -> dict[str, Any]:
    """The row as `fit --json` gives it; bytes throughout, `total` without overhead."""
    s, e, host = row.settings, row.estimate, row.estimate.host
    return {
        "model": row.tag,
        "quant": row.model.quant,
        "ctx": s.context,
        "kv_type": s.kv_type,
        "parallel": s.parallel,
        "batch": s.batch,
        "flash_attn": s.flash_attention,
        "gpu_layers": {"n": e.gpu_layers, "of": e.of_layers, "expert_layers_on_host": e.expert_layers_on_host},
        "memory": {
            "gpu": [_gpu(p) for p in e.gpus],
            "host": {k: getattr(host, k) for k in ("weights", "kv", "recurrent", "compute", "output")}
            | ({"projector": host.projector} if host.projector else {})
            | {"total": host.total},
        },
        "speed": None
        if row.speed is None
        else {
            "decode_tps": _band(row.speed.decode),
            "prefill_tps": _band(row.speed.prefill),
            "first_token_s": _band(row.speed.first_token_s),
            "at_ctx": row.speed.context,
        },
        "verdict": row.verdict,
        "reasons": list(row.reasons) + ([f"would fit with {row.change}"] if row.change else []),
        "provenance": {
            "weights": "tensor table" if row.exact_weights else "rule of the quantisation mixture",
            "cache": "closed form of the header",
            "compute": row.how,
            "overhead": row.overhead_source,
            **(
                {"projector": row.entry.raw.get("projector", "file")} if row.entry and row.entry.projector_bytes else {}
            ),
            "speed": f"fitted on public llama-bench tables; {row.rates}",
            **({"source": list(row.entry.source), "verified": row.entry.verified} if row.entry else {}),
        },
    }
