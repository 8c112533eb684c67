"""Choices and sizes in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .machine import Machine
    from .search import Candidate

GIB = 2**30


def gib(size: float) -> str:
    """Bytes for people: 2.4 GiB, 730 MiB."""
    if abs(size) < GIB:
        return f"{size / 2**20:.0f} MiB"
    return f"{size / GIB:.1f} GiB"


def placement(c: Candidate) -> str:
    """Where the model lies."""
    e = c.estimate
    if not e.gpu_layers:
        return "on the CPU"
    if e.whole:
        return "wholly on the GPU"
    if e.expert_layers_on_host:
        return f"the experts of {e.expert_layers_on_host} of {e.of_layers - 1} layers in RAM"
    return f"{e.gpu_layers} of {e.of_layers} layers on the GPU"


def why_chat(c: Candidate, runner_up: Candidate | None, machine: Machine) -> tuple[str, ...]:
    """Why this chat model: what it takes, how fast, and what came second."""
    spare = sum(machine.free) - c.gpu_bytes if machine.devices else machine.ram_available - c.estimate.host.total
    reasons = [
        f"{c.entry.title} ({c.quant}) is the best that fits: {gib(c.estimate.total)}, {placement(c)}",
        f"context {c.settings.context}, {gib(spare)} to spare",
        f"about {c.speed.decode.mid:.0f} tokens/s ({c.speed.decode.low:.0f} to {c.speed.decode.high:.0f})",
    ]
    if runner_up is not None:
        reasons.append(f"next best: {runner_up.entry.title} at about {runner_up.speed.decode.mid:.0f} tokens/s")
    return tuple(reasons)
