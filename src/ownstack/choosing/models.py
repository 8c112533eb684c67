"""Which models: what fits this machine, or what can be had where the model registry does not answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..data import Data
from ..hardware.report import GpuKind, HardwareReport
from ..plan import ModelChoice
from ..settings import Settings
from ..state import BoxState, SourceReport


@dataclass(frozen=True)
class Picked:
    """The models of a plan and what they need."""

    profile: str = "none"
    engine: Any = "cpu"
    models: tuple[ModelChoice, ...] = ()
    artifacts: frozenset[str] = frozenset()
    engine_url: str = ""
    engine_existing: bool = False
    data: str = ""
    deferred: ModelChoice | None = None
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def engine_of(report: HardwareReport, settings: Settings) -> str:
    """The engine's parts for this hardware: cpu, cuda, rocm or vulkan."""
    if settings.base.hardware.cpu_only:
        return "cpu"
    for gpu in report.gpus:
        if gpu.usable and gpu.kind != GpuKind.SOFTWARE:
            return gpu.backend if gpu.backend in ("cuda", "rocm") else "vulkan"
        if gpu.kind == GpuKind.SOFTWARE and settings.base.hardware.allow_software_gpu:
            return "vulkan"
    return "cpu"


def choose(
    report: HardwareReport,
    settings: Settings,
    data: Data,
    sources: SourceReport,
    state: BoxState,
    roles: tuple[str, ...],
) -> Picked:
    """Keep the recorded models while hardware and wishes are the same; otherwise choose anew."""
    ollama = settings.role("ollama")
    existing = ollama.use != "own"
    url = ollama.url if existing else f"http://127.0.0.1:{ollama.port}"
    engine = engine_of(report, settings)
    if "models" not in roles:
        return Picked(engine=engine, engine_url=url, engine_existing=existing)
    from .selection import select

    return select(report, settings, data, sources, state, engine, url, existing)


def wishes_digest(settings: Settings) -> str:
    from .selection import wishes_digest as digest

    return digest(settings)
