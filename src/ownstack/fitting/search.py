"""Which models fit a machine at which context: the pure search behind `choose` and `fit`."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from . import offload, ollama
from .catalogue import Catalogue, Entry
from .machine import Machine
from .memory import Estimate, Part, Placement, Settings, estimate, with_overhead
from .model import Model
from .offload import MARGIN_BYTES
from .speed import Speed, predict

QUALITY_OF_QUANT = {"Q3_K_M": -3.0, "Q2_K": -9.0}


@dataclass(frozen=True, slots=True)
class Taken:
    """What other residents already take: bytes on the first GPU (overhead included) and of RAM."""

    gpu: int = 0
    ram: int = 0


NOTHING = Taken()


@dataclass(frozen=True, slots=True)
class Limits:
    """What a model must respect. Bytes; `gpu_reserve` on each card, `ram_reserve` of available RAM."""

    gpu_reserve: int
    ram_reserve: int
    context_floor: int
    context_goal: int
    speed_floor: float
    kv_type: str = "f16"
    parallel: int = 1


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model at settings that fit, with what it takes and how fast it is."""

    entry: Entry
    quant: str
    model: Model
    settings: Settings
    estimate: Estimate
    speed: Speed
    quality: float

    @property
    def gpu_bytes(self) -> int:
        """On the GPUs with the upper end of the driver's overhead."""
        used = [p for p in self.estimate.gpus if p.total]
        return sum(p.total + p.overhead[1] for p in used)


def free_for_engine(machine: Machine, taken: Taken) -> tuple[int, ...]:
    """Free bytes that the engine sees on each card, after its own driver context."""
    seen = []
    for i, device in enumerate(machine.devices):
        seen.append(max(0, device.free - device.overhead[1] - (taken.gpu if i == 0 else 0)))
    return tuple(seen)


def batch_for(model: Model, file_bytes: int, machine: Machine, s: Settings, taken: Taken) -> int:
    """The micro-batch that Ollama picks."""
    total = s.context * s.parallel
    if model.embedding_model:
        return min(ollama.embedding_batch(s.context, s.parallel), max(total, 1))
    available = sum(d.free for d in machine.devices) - taken.gpu if machine.devices else 0
    guess = ollama.predicted(model, file_bytes, s.context, s.parallel)
    return ollama.auto_batch(total, guess, max(available, 0), s.flash_attention, machine.backend == "cuda")


def make_settings(
    model: Model, machine: Machine, context: int, limits: Limits, file_bytes: int, taken: Taken
) -> Settings:
    """The settings that Ollama will use for this context, micro-batch included."""
    requests = ollama.parallel(model, limits.parallel)
    base = Settings(
        context=context,
        parallel=requests,
        kv_type=limits.kv_type,
        backend=machine.backend,
        all_outputs=model.embedding_model,
    )
    return Settings(
        context=context,
        parallel=requests,
        kv_type=limits.kv_type,
        batch=batch_for(model, file_bytes, machine, base, taken),
        backend=machine.backend,
        all_outputs=model.embedding_model,
    )


@functools.lru_cache(maxsize=20_000)
def _fit(model: Model, s: Settings, free: tuple[int, ...], margin: int) -> Estimate:
    return offload.fit(model, s, free, margin)


def placed(model: Model, s: Settings, machine: Machine, taken: Taken, gpu_reserve: int, projector: int = 0) -> Estimate:
    """Where the engine puts the model on this machine, overhead noted.

    Ollama adds the projector's size to the margin; where the model then is not whole on the GPU, it stays in RAM.
    """
    free = free_for_engine(machine, taken)
    found = _fit(model, s, free, max(MARGIN_BYTES, gpu_reserve) + projector)
    return add_projector(with_overhead(found, tuple(d.overhead for d in machine.devices)), projector)


def host_need(e: Estimate, machine: Machine) -> int:
    """RAM bytes of an estimate; on unified memory the GPU's part lies in RAM too."""
    return e.host.total + (e.gpu_bytes if machine.unified else 0)


def fits_host(e: Estimate, machine: Machine, limits: Limits, taken: Taken) -> bool:
    return host_need(e, machine) + taken.ram <= max(0, machine.ram_available - limits.ram_reserve)


def contexts(entry: Entry, limits: Limits) -> list[int]:
    """Contexts to try, from the goal down to the floor."""
    tried, context = [], max(limits.context_goal, limits.context_floor)
    while context >= limits.context_floor:
        if context <= entry.context:
            tried.append(context)
        context //= 2
    if limits.context_floor <= entry.context and limits.context_floor not in tried:
        tried.append(limits.context_floor)
    return tried


def hopeless(model: Model, machine: Machine, limits: Limits, taken: Taken) -> bool:
    """Whether even the weights alone rule the model out: too large, or too slow from RAM. A quick first test."""
    w = model.weights
    free = sum(free_for_engine(machine, taken))
    host = max(0, sum(w.layers) + w.output - free)
    if host + taken.ram > machine.ram_available - limits.ram_reserve and not machine.unified:
        return True
    # of a mixture only the experts in use are read for a token
    read = host * w.active / max(w.total, 1)
    return read * limits.speed_floor > machine.ram_bandwidth * machine.efficiency


def try_entry(
    entry: Entry, machine: Machine, limits: Limits, quality: float, taken: Taken = NOTHING, quant: str = ""
) -> Candidate | None:
    """The entry at the largest context that fits wholly; else partly on the host if that is fast enough."""
    quant = quant or entry.default_quant
    model = entry.model(quant)
    size = entry.download_bytes(quant)
    last: Candidate | None = None
    if hopeless(model, machine, limits, taken):
        return None
    for context in contexts(entry, limits):
        s = make_settings(model, machine, context, limits, size, taken)
        e = placed(model, s, machine, taken, limits.gpu_reserve, entry.projector_bytes)
        if not fits_host(e, machine, limits, taken):
            continue
        found = Candidate(entry, quant, model, s, e, predict(model, s, e, machine.engine), quality)
        if found.speed.decode.mid < limits.speed_floor:
            continue
        if not machine.devices or e.whole:
            return found
        last = found
    return last


def add_projector(e: Estimate, size: int) -> Estimate:
    """The vision projector goes to the first GPU when the model is wholly there, else to the host."""
    if not size:
        return e
    if e.gpus and e.whole:
        first = e.gpus[0]
        grown = Part(first.weights, first.kv, first.recurrent, first.compute, first.output, size, first.overhead)
        return Estimate((grown, *e.gpus[1:]), e.host, e.gpu_layers, e.of_layers, e.expert_layers_on_host)
    h = e.host
    grown = Part(h.weights, h.kv, h.recurrent, h.compute, h.output, size, h.overhead)
    return Estimate(e.gpus, grown, e.gpu_layers, e.of_layers, e.expert_layers_on_host)


def ranked(catalogue: Catalogue, ranks: dict[str, float]) -> list[tuple[float, Entry]]:
    """Entries of a use from the best down; ties go to the smaller model."""
    found = [(score, catalogue.entries[tag]) for tag, score in ranks.items() if tag in catalogue.entries]
    return sorted(found, key=lambda pair: (-pair[0], pair[1].parameters, pair[1].tag))


def on_host(entry: Entry, machine: Machine, limits: Limits, context: int, quality: float) -> Candidate:
    """The model wholly on the CPU (as `num_gpu 0` asks for)."""
    model = entry.model()
    bare = Machine((), machine.ram_total, machine.ram_available, machine.ram_bandwidth, cores=machine.cores)
    s = make_settings(model, bare, context, limits, entry.download_bytes(entry.default_quant), Taken())
    e = add_projector(estimate(model, s, Placement(())), entry.projector_bytes)
    return Candidate(entry, entry.default_quant, model, s, e, predict(model, s, e, bare.engine), quality)
