"""From one plan of a box to the next: what changed, what that makes possible, what is fetched, what can go. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .plan import ModelChoice, Plan
from .vectors import reindex_words


@dataclass(frozen=True)
class Pair:
    """A use with its model before and after; either may be missing. Quality as the catalogue ranks it."""

    use: str
    old: ModelChoice | None
    new: ModelChoice | None
    old_quality: float | None = None
    new_quality: float | None = None

    @property
    def same(self) -> bool:
        return self.old is not None and self.new is not None and settings_of(self.old) == settings_of(self.new)

    def as_dict(self) -> dict[str, object]:
        def told(model: ModelChoice | None, quality: float | None) -> dict[str, object] | None:
            if model is None:
                return None
            tps = model.predicted_tps
            return {
                "model": model.tag, "quality": quality, "context": model.context,
                "gpu_bytes": model.predicted_gpu_bytes, "host_bytes": model.predicted_host_bytes,
                "tokens_per_s": None if tps is None else tps[1], "dimension": model.dimension,
            }  # fmt: skip

        return {"use": self.use, "old": told(self.old, self.old_quality), "new": told(self.new, self.new_quality)}


@dataclass(frozen=True)
class Transition:
    """One transaction on a standing box. `fetch` are models to pull, `leave` tags that no plan names afterwards."""

    hardware: tuple[str, ...]
    pairs: tuple[Pair, ...]
    fetch: tuple[ModelChoice, ...]
    leave: tuple[str, ...]
    engine: tuple[str, str] | None = None
    reindex: str = ""

    @property
    def nothing(self) -> bool:
        """Whether neither models nor the engine's parts change."""
        return self.engine is None and all(pair.same for pair in self.pairs)

    def as_dict(self) -> dict[str, object]:
        return {
            "hardware": list(self.hardware),
            "models": [pair.as_dict() for pair in self.pairs],
            "fetch": [{"model": m.tag, "bytes": m.download_bytes} for m in self.fetch],
            "leave": list(self.leave),
            "engine": None if self.engine is None else {"old": self.engine[0], "new": self.engine[1]},
            "reindex": self.reindex,
        }


def settings_of(model: ModelChoice) -> tuple[object, ...]:
    """What of a model the engine and its clients depend on."""
    return (model.tag, model.digest, model.context, model.parallel, model.kv_type, model.gpu_layers)


def between(
    old: Plan,
    new: Plan,
    hardware: Iterable[str] = (),
    quality: dict[str, float] | None = None,
    here: Iterable[str] = (),
) -> Transition:
    """What leads from `old` to `new`.

    quality: rank of a model's tag in the catalogue, higher is better. here: tags that the engine has as planned
    already, left by an even earlier plan or pulled by the owner.
    """
    ranks = quality or {}
    uses = dict.fromkeys(m.use for m in (*new.models, *old.models) if m.use != "bootstrap")
    pairs = tuple(_pair(use, old, new, ranks) for use in uses)
    had = {m.tag for m in old.models} | set(here)
    wanted = {m.tag for m in new.models}
    fetch = [m for m in new.models if m.source == "registry" and m.tag not in had]
    return Transition(
        hardware=tuple(hardware),
        pairs=pairs,
        fetch=tuple({m.tag: m for m in fetch}.values()),
        leave=tuple(sorted({m.tag for m in old.models if m.source == "registry"} - wanted)),
        engine=(old.engine, new.engine) if old.engine != new.engine else None,
        reindex=reindex_words(old, new),
    )


def _pair(use: str, old: Plan, new: Plan, ranks: dict[str, float]) -> Pair:
    before = next((m for m in old.models if m.use == use), None)
    after = next((m for m in new.models if m.use == use), None)

    def rank(model: ModelChoice | None) -> float | None:
        return None if model is None else ranks.get(model.tag)

    return Pair(use, before, after, rank(before), rank(after))


def lines(change: Transition) -> Iterator[str]:
    """The transaction for people."""
    yield "This box changes"
    for text in change.hardware:
        yield f"  hardware: {text}"
    for pair in change.pairs:
        yield f"  {pair.use}"
        yield f"    now      {model_words(pair.old, pair.old_quality)}"
        yield f"    then     {'the same' if pair.same else model_words(pair.new, pair.new_quality)}"
    if change.engine:
        yield f"  the engine's parts change from {change.engine[0]} to {change.engine[1]}"
    for model in change.fetch:
        size = f", {gib(model.download_bytes)}" if model.download_bytes else ""
        yield f"  fetched while the present models serve: {model.tag}{size}"
    if change.reindex:
        yield f"  {change.reindex}"
    for tag in change.leave:
        yield f"  not needed afterwards, and kept until `ownstack up --prune`: {tag}"


def model_words(model: ModelChoice | None, quality: float | None) -> str:
    if model is None:
        return "none"
    parts = [model.tag]
    if quality is not None:
        parts.append(f"quality {quality:g}")
    for size, where in ((model.predicted_gpu_bytes, "on the GPU"), (model.predicted_host_bytes, "of RAM")):
        if size:
            parts.append(f"{gib(size)} {where}")
    if model.predicted_tps:
        parts.append(f"about {model.predicted_tps[1]:.0f} tokens/s")
    if model.use == "embedding":
        parts.append(f"{model.dimension or '?'} dimensions")
    elif model.context:
        parts.append(f"context {model.context}")
    return ", ".join(parts)


def gib(size: int | None) -> str:
    value = size or 0
    return f"{value / 2**20:.0f} MiB" if value < 2**30 else f"{value / 2**30:.1f} GiB"
