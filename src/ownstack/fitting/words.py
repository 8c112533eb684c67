"""Choices and sizes in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
