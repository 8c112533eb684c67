"""Which models a machine is to run, and why. Pure: same report, wishes and data, same selection."""

from __future__ import annotations

import functools
import hashlib
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import ConfigError, UnsupportedError
from ..kit import data_path, kept
from . import ollama
from .cards import Cards, load_cards
from .catalogue import Catalogue, Entry, load_catalogue
from .explain import what_would_change, why
from .machine import Machine, machine_of, shrunk
from .profiles import Policy, Profile, ladder, load_profiles
from .search import Candidate, Limits, Taken, on_host, placed, ranked, try_entry
from .words import gib

if TYPE_CHECKING:
    from ..hardware.report import HardwareReport
    from ..plan import ModelChoice, ModelUse

Use = Literal["chat", "code", "rag", "reasoning", "vision"]
EngineName = Literal["cpu", "cuda", "rocm", "vulkan", "metal"]
USES: tuple[Use, ...] = ("chat", "code", "rag", "reasoning", "vision")


@dataclass(frozen=True)
class Wishes:
    """What the user asks for. `roles` beyond chat and embedding: code, vision. `pins`: use -> model tag."""

    use: str = "chat"
    roles: tuple[str, ...] = ("chat", "embedding")
    pins: dict[str, str] = field(default_factory=dict)
    context: int | None = None
    kv_type: str | None = None
    parallel: int = 1
    reserve_gpu_bytes: int | None = None
    reserve_ram_bytes: int | None = None
    speed_floor_tps: float | None = None
    allow_software_gpu: bool = False
    cpu_only: bool = False


@dataclass(frozen=True)
class FitData:
    """Everything the chooser reads: catalogue, cards, profiles, quality ranks by use. `digest` of all of it."""

    catalogue: Catalogue
    cards: Cards
    profiles: tuple[Profile, ...]
    ranks: dict[str, dict[str, float]]
    digest: str = ""


@dataclass(frozen=True)
class Selection:
    """The chosen models with reasons. `task` is the model for titles and tags, or None (off)."""

    profile: str
    engine: EngineName
    models: tuple[ModelChoice, ...]
    task: ModelChoice | None
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    predicted_gpu_bytes: int
    predicted_host_bytes: int


@kept
def load_data(profiles: Path | None = None) -> FitData:
    """Catalogue, cards, ranks and profiles of the data in use."""
    raw = tomllib.loads(data_path("fitting/ranks.toml").read_text(encoding="utf-8"))
    ranks = {use: {tag: float(score) for tag, score in table.items()} for use, table in raw["ranks"].items()}
    folder = profiles or data_path("hardware_profiles")
    return FitData(load_catalogue(), load_cards(), load_profiles(folder), ranks, _digest(folder))


def _digest(profiles: Path) -> str:
    names = [data_path(f"fitting/{name}") for name in ("catalogue.json", "cards.toml", "ranks.toml")]
    found = hashlib.sha256()
    for path in (*names, *sorted(profiles.glob("*.toml"))):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def limits_of(policy: Policy, wishes: Wishes) -> Limits:
    """The class's policy with the user's own wishes over it."""
    floor, goal = policy.context_floor, policy.context_goal
    if wishes.context:
        floor = goal = wishes.context
    return Limits(
        gpu_reserve=policy.reserve_gpu_bytes if wishes.reserve_gpu_bytes is None else wishes.reserve_gpu_bytes,
        ram_reserve=policy.reserve_ram_bytes if wishes.reserve_ram_bytes is None else wishes.reserve_ram_bytes,
        context_floor=floor,
        context_goal=goal,
        speed_floor=policy.speed_floor_tps if wishes.speed_floor_tps is None else wishes.speed_floor_tps,
        kv_type=wishes.kv_type or "f16",
        parallel=max(wishes.parallel, policy.parallel),
    )


def _pinned(data: FitData, wishes: Wishes, use: str) -> tuple[Entry, str] | None:
    return data.catalogue.find(wishes.pins[use]) if use in wishes.pins else None


def embeddings(data: FitData, machine: Machine, policy: Policy, wishes: Wishes, limits: Limits) -> Iterator[Candidate]:
    """The embedding models that the class allows, best first, on the GPU or on the host as its policy says."""
    pin = _pinned(data, wishes, "embedding")
    choices = [(0.0, pin[0])] if pin else ranked(data.catalogue, data.ranks["embedding"])
    for quality, entry in choices:
        context = min(entry.context, 2048)
        own = replace(limits, context_floor=context, context_goal=context, speed_floor=0.0, parallel=1, kv_type="f16")
        if machine.devices and policy.embedding_on == "gpu":
            found = try_entry(entry, machine, own, quality)
            if (
                found is not None
                and found.estimate.whole
                and (pin or found.estimate.total <= policy.embedding_max_bytes)
            ):
                yield found
                continue
        found = on_host(entry, machine, own, context, quality)
        if not pin and found.estimate.total > policy.embedding_max_bytes:
            continue
        if found.estimate.host.total <= max(0, machine.ram_available - limits.ram_reserve):
            yield found


def taken_by(*candidates: Candidate | None) -> Taken:
    """What residents take, on the GPU with overhead, and of RAM."""
    found = [c for c in candidates if c is not None]
    return Taken(sum(c.gpu_bytes for c in found), sum(c.estimate.host.total for c in found))


def anything(c: Candidate) -> bool:
    return True


def best_of(
    data: FitData, machine: Machine, use: str, limits: Limits, taken: Taken, wishes: Wishes,
    accept: Callable[[Candidate], bool] = anything,
) -> tuple[Candidate | None, Candidate | None]:  # fmt: skip
    """The best model of a use that fits beside `taken`, and the next best."""
    pin = _pinned(data, wishes, use)
    if pin:
        entry, quant = pin
        found = try_entry(entry, machine, replace(limits, speed_floor=0.0), 0.0, taken, quant)
        return (found if found is not None and accept(found) else None), None
    first: Candidate | None = None
    for quality, entry in ranked(data.catalogue, data.ranks[_ranks(use, wishes)]):
        found = try_entry(entry, machine, limits, quality, taken)
        if found is None or not accept(found):
            continue
        if first is not None:
            return first, found
        first = found
    return first, None


@dataclass(frozen=True)
class Chosen:
    """One profile's outcome."""

    profile: Profile
    limits: Limits
    chat: Candidate
    embedding: Candidate
    more: dict[str, Candidate]
    warnings: tuple[str, ...]
    # by use: what came second, and how many models are ranked higher than the one chosen
    next_best: dict[str, Candidate]
    better: dict[str, int]
    pinned: frozenset[str]


def _for_profile(data: FitData, machine: Machine, profile: Profile, wishes: Wishes) -> Chosen | None:
    limits = limits_of(profile.policy, wishes)
    ways = embeddings(data, machine, profile.policy, wishes, limits)
    embedding = next(ways, None)
    if embedding is None:
        return None
    seconds: dict[str, Candidate | None] = {"embedding": next(ways, None)}
    taken = taken_by(embedding)
    chat, seconds["chat"] = best_of(data, machine, "chat", limits, taken, wishes)
    if chat is None:
        return None
    more: dict[str, Candidate] = {}
    warnings: list[str] = []
    for use in wishes.roles:
        if use in {"chat", "embedding"}:
            continue
        if use in chat.entry.capabilities and use not in wishes.pins:
            continue
        beside = taken_by(embedding, chat, *more.values())
        kept = functools.partial(stays, left=sum(machine.free) - beside.gpu)
        found, seconds[use] = best_of(data, machine, use, limits, beside, wishes, kept)
        if found is None:
            found, seconds[use] = best_of(data, machine, use, limits, taken, wishes)
            warnings.append(f"the {use} model and the chat model take turns: they do not fit together")
        if found is not None:
            more[use] = found
    made = {"chat": chat, "embedding": embedding, **more}
    return Chosen(
        profile=profile, limits=limits, chat=chat, embedding=embedding, more=more, warnings=tuple(warnings),
        next_best={use: second for use, second in seconds.items() if second is not None},
        better={use: sum(r > c.quality for r in data.ranks[_ranks(use, wishes)].values()) for use, c in made.items()},
        pinned=frozenset(wishes.pins),
    )  # fmt: skip


def _ranks(use: str, wishes: Wishes) -> str:
    """The table that ranks models for a use; the chat model is ranked for what the box is mostly for."""
    return wishes.use if use == "chat" else use


def choose_on(data: FitData, machine: Machine, wishes: Wishes) -> Chosen:
    """The outcome by the machine's own class. Raises UnsupportedError when nothing fits.

    A class's policy may cost what a machine just below its border still gets. Then the smaller class's
    policy is used, so that more memory never gives a worse model.
    """
    if wishes.use not in USES:
        raise ConfigError(f"unknown use {wishes.use!r}", hint="known: " + ", ".join(USES))
    steps = ladder(data.profiles, machine)
    best = _for_profile(data, machine, steps[0], wishes)
    for above, profile in pairwise(steps):
        below = _for_profile(data, shrunk(machine, above.min_bytes - 1), profile, wishes)
        if below is not None and (best is None or below.chat.quality > best.chat.quality):
            best = _for_profile(data, machine, profile, wishes)
    if best is None:
        raise _nothing_fits(machine, wishes)
    return best


def _nothing_fits(machine: Machine, wishes: Wishes) -> UnsupportedError:
    free = f"{gib(sum(machine.free))} of free GPU memory, {gib(machine.ram_available)} of free memory"
    if wishes.pins:
        named = ", ".join(f"{use} = {tag}" for use, tag in sorted(wishes.pins.items()))
        return UnsupportedError(
            f"no choice fits with what was named ({named}): {free}",
            hint="without `--pin` and names in `[models]` the best that fits is chosen "
            "(`--set models.chat=...` names another one); a shorter `models.context` or a smaller reserve may help too",
            code="pinned-too-large",
        )
    return UnsupportedError(
        f"no model fits: {free}",
        hint="close programs, lower the reserve or the speed floor, or pin one that `ownstack fit --all` shows",
    )


def choice_of(c: Candidate, use: ModelUse, reasons: tuple[str, ...] = ()) -> ModelChoice:
    """A candidate as the plan carries it."""
    from ..plan import ModelChoice

    decode = c.speed.decode
    return ModelChoice(
        use=use,
        name=c.entry.title,
        tag=c.entry.tag if c.quant == c.entry.default_quant else f"{c.entry.tag}-{c.quant.lower()}",
        source="registry",
        quant=c.quant,
        download_bytes=c.entry.download_bytes(c.quant),
        context=c.settings.context,
        parallel=c.settings.parallel,
        kv_type=c.settings.kv_type,
        gpu_layers=c.estimate.gpu_layers,
        layers=c.estimate.of_layers,
        predicted_gpu_bytes=c.estimate.gpu_bytes,
        predicted_host_bytes=c.estimate.host.total,
        projector_bytes=c.entry.projector_bytes,
        predicted_tps=None if use == "embedding" else (decode.low, decode.mid, decode.high),
        dimension=c.entry.dimension,
        licence=c.entry.licence,
        reasons=reasons,
    )


def task_model(data: FitData, machine: Machine, chosen: Chosen, wishes: Wishes) -> Candidate | None:
    """A small model for titles and tags, beside the others; none where the class says off."""
    if not chosen.profile.policy.task_model or not machine.devices:
        return None
    small = replace(chosen.limits, context_floor=4096, context_goal=4096, speed_floor=40.0, parallel=1)
    beside = taken_by(chosen.embedding, chosen.chat, *chosen.more.values())
    found, _ = best_of(data, machine, "task", small, beside, replace(wishes, pins={}))
    return found if found is not None and found.estimate.whole else None


def choose_models(report: HardwareReport, wishes: Wishes, data: FitData) -> Selection:
    """The models for this machine. Raises UnsupportedError when nothing fits, ConfigError for unknown names."""
    machine = machine_of(report, data.cards, cpu_only=wishes.cpu_only, software=wishes.allow_software_gpu)
    chosen = choose_on(data, machine, wishes)
    task = task_model(data, machine, chosen, wishes)
    changes = what_would_change(lambda other: choose_on(data, other, wishes), machine, chosen)

    def reasons(use: str) -> tuple[str, ...]:
        return why(chosen, use, machine, changes.get(use, ""))

    embedding = choice_of(chosen.embedding, "embedding", reasons("embedding"))
    chat = choice_of(chosen.chat, "chat", reasons("chat"))
    more = [choice_of(c, use, reasons(use)) for use, c in chosen.more.items()]  # type: ignore[arg-type]
    warnings = list(chosen.warnings) + evictions(chosen, machine)
    models = (chat, embedding, *more)
    return Selection(
        profile=chosen.profile.name,
        engine=machine.backend,  # type: ignore[arg-type]
        models=models,
        task=choice_of(task, "task", ("titles and tags run on a small model of their own",)) if task else None,
        reasons=(
            chosen.profile.title,
            f"context of {chosen.limits.context_floor} or more, {chosen.limits.speed_floor:g} tokens/s or more",
        ),
        warnings=tuple(warnings),
        predicted_gpu_bytes=sum(m.predicted_gpu_bytes for m in models) + (task.estimate.gpu_bytes if task else 0),
        predicted_host_bytes=sum(m.predicted_host_bytes for m in models) + (task.estimate.host.total if task else 0),
    )


def guess_of(c: Candidate) -> int:
    """What Ollama guesses that the model takes."""
    return ollama.predicted(c.model, c.entry.download_bytes(c.quant), c.settings.context, c.settings.parallel)


def stays(c: Candidate, left: int) -> bool:
    """Whether Ollama loads the model beside the others, by its own crude guess, where `left` bytes are free."""
    return not c.estimate.gpu_layers or not ollama.evicts(guess_of(c), left, c.settings.batch, c.model.embedding_model)


def evictions(chosen: Chosen, machine: Machine) -> list[str]:
    """Where Ollama's own crude guess would unload the chat model to load another."""
    warnings = []
    left = sum(machine.free) - taken_by(chosen.chat).gpu
    for use, c in [("embedding", chosen.embedding), *chosen.more.items()]:
        if not stays(c, left):
            guess = gib(guess_of(c))
            warnings.append(f"Ollama guesses {guess} for the {use} model and may unload the chat model to load it")
        left -= c.gpu_bytes
    return warnings


def describe(
    data: FitData,
    tag: str,
    report: HardwareReport,
    use: ModelUse,
    context: int,
    wishes: Wishes | None = None,
) -> ModelChoice:
    """Predictions for a given model, fitting or not (for the bootstrap models of a restricted network)."""
    wishes = wishes or Wishes()
    machine = machine_of(report, data.cards, cpu_only=wishes.cpu_only, software=wishes.allow_software_gpu)
    entry, quant = data.catalogue.find(tag)
    policy = ladder(data.profiles, machine)[0].policy
    limits = replace(limits_of(policy, wishes), context_floor=context, context_goal=context, speed_floor=0.0)
    found = try_entry(entry, machine, limits, 0.0, quant=quant)
    if found is None or found.quant != quant:
        found = on_host(entry, machine, limits, min(context, entry.context), 0.0)
    return choice_of(found, use, (f"{entry.title}, {gib(entry.download_bytes(quant))}",))


__all__ = ["FitData", "Selection", "Wishes", "choose_models", "choose_on", "describe", "load_data", "placed"]
