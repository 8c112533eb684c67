"""The report of a machine as if it had other cards. Pure; for looking at a purchase beforehand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ConfigError
from .report import Gpu, GpuKind, HardwareReport, Reading

if TYPE_CHECKING:
    from ..fitting.cards import Card

BACKENDS = {"nvidia": "cuda", "amd": "rocm", "intel": "vulkan"}
WHY = "supposed, not there"
# what is said of a card and its driver: that card is the one to be replaced
OF_CARDS = ("HW-NVIDIA", "HW-AMD", "HW-INTEL", "HW-GPU", "HW-VULKAN", "HW-WSL-NO-LIBRARY")


def with_cards(report: HardwareReport, card: Card | None, count: int = 1) -> HardwareReport:
    """`report` with `count` such cards in place of its own; with None without any.

    Raises ConfigError for a card that is a whole machine.
    """
    if card is None:
        return _with(report, ())
    if card.kind == "unified" or card.vendor not in BACKENDS:
        hint = f'`ownstack fit --gpu "{card.name}"` shows what such a machine runs'
        raise ConfigError(f"{card.name} is part of a machine, not a card to put in", hint=hint)
    return _with(report, (supposed(card),) * count)


def supposed(card: Card) -> Gpu:
    return Gpu(
        vendor=card.vendor,
        name=card.name,
        kind=GpuKind.DISCRETE,
        memory_total_bytes=Reading[int](value=card.memory, source="table"),
        memory_free_bytes=Reading[int](value=card.memory, source="table"),
        bandwidth_bytes_per_s=Reading[float](value=card.bandwidth or None, source="table"),
        compute_capability=Reading[str](value=str(card.compute_capability), source="table")
        if card.compute_capability
        else Reading[str].unknown(WHY),
        backend=BACKENDS[card.vendor],
        why=WHY,
    )


def _with(report: HardwareReport, gpus: tuple[Gpu, ...]) -> HardwareReport:
    ignored = (*report.ignored_gpus, *report.gpus)
    problems = tuple(problem for problem in report.problems if not problem.id.startswith(OF_CARDS))
    return report.model_copy(update={"gpus": gpus, "ignored_gpus": ignored, "problems": problems})
