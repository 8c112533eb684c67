"""Why a model was chosen: what it takes, how fast it is, what came second, and what more memory would change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from .machine import Machine
from .words import gib, placement

if TYPE_CHECKING:
    from .choose import Chosen
    from .search import Candidate

STEPS_GIB = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


def grown(machine: Machine, extra: int) -> Machine:
    """The same machine with `extra` bytes more of the memory that decides: of its GPUs, or RAM where there is none."""
    if machine.unified or not machine.devices:
        machine = replace(machine, ram_total=machine.ram_total + extra, ram_available=machine.ram_available + extra)
    share = extra // max(len(machine.devices), 1)
    devices = tuple(replace(d, total=d.total + share, free=d.free + share) for d in machine.devices)
    return replace(machine, devices=devices)


def candidate(chosen: Chosen, use: str) -> Candidate | None:
    return {"chat": chosen.chat, "embedding": chosen.embedding}.get(use) or chosen.more.get(use)


def what_would_change(
    choose: Callable[[Machine], Chosen], machine: Machine, now: Chosen, only: str = ""
) -> dict[str, str]:
    """For each use (or the `only` one) in words: the first step of more memory that brings a better model, if any does.

    `choose` is the chooser with the same wishes; more memory never gives it a worse model.
    """
    uses = [use for use in ("chat", "embedding", *now.more) if use not in now.pinned and only in ("", use)]
    memory = "memory" if machine.unified or not machine.devices else "GPU memory"
    changes: dict[str, str] = {}
    for step in STEPS_GIB:
        if len(changes) == len(uses):
            break
        then = choose(grown(machine, step << 30))
        for use in uses:
            was, new = candidate(now, use), candidate(then, use)
            if use not in changes and was is not None and new is not None and new.quality > was.quality:
                changes[use] = f"with {step} GiB more of {memory}: {new.entry.title}"
    for use in uses:
        changes.setdefault(
            use, f"not even {STEPS_GIB[-1]} GiB more of {memory} would bring a better one{why_not(now, use)}"
        )
    return changes | dict.fromkeys(now.pinned, "set by you; without that the best that fits is taken")


def why_not(now: Chosen, use: str) -> str:
    """What else stands in the way of a better model."""
    if now.better[use] == 0:
        return ": none is ranked higher"
    if use == "embedding":
        return "; its class has no room for a larger one (`models.embedding` takes any)"
    return f"; those are slower here than {now.limits.speed_floor:g} tokens/s (`models.speed_floor`)"


def why(now: Chosen, use: str, machine: Machine, change: str) -> tuple[str, ...]:
    """The reasons of one choice."""
    c = candidate(now, use)
    assert c is not None  # noqa: S101 -- asked for what was chosen
    second = now.next_best.get(use)
    what = f"{c.entry.title} ({c.quant}): {gib(c.estimate.total)}, {placement(c)}"
    if use == "embedding":
        reasons = [f"{what}; {c.entry.dimension} dimensions"]
    else:
        spare = sum(machine.free) - c.gpu_bytes if machine.devices else machine.ram_available - c.estimate.host.total
        reasons = [
            what if use in now.pinned else what.replace("): ", ") is the best that fits: ", 1),
            f"context {c.settings.context}, {gib(spare)} to spare",
            f"about {c.speed.decode.mid:.0f} tokens/s ({c.speed.decode.low:.0f} to {c.speed.decode.high:.0f})",
        ]
    if second is not None:
        speed = "" if use == "embedding" else f" at about {second.speed.decode.mid:.0f} tokens/s"
        reasons.append(f"next best: {second.entry.title}{speed}")
    return (*reasons, change) if change else tuple(reasons)


def in_short(choose: Callable[[Machine], Chosen], machine: Machine, now: Chosen) -> str:
    """What came second and what would change the choice of the chat model, in one line."""
    second = now.next_best.get("chat")
    words = f"Next best: {second.entry.tag}, about {second.speed.decode.mid:.0f} tokens/s; " if second else ""
    change = what_would_change(choose, machine, now, "chat")["chat"]
    return f"{words}{change}." if words else f"{change[0].upper()}{change[1:]}."
