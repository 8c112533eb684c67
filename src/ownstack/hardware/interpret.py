"""RawProbe -> HardwareReport. Pure: the same probe always gives the same report."""

from __future__ import annotations

from ..errors import DetectionError
from .amd import read_amd
from .cards import UNKNOWN_SIZE
from .facts import RawProbe
from .host import read_cpu, read_disks, read_host, read_memory, read_ollama, read_ports
from .intel import read_intel
from .nvidia import read_nvidia
from .others import read_apple, read_displays, read_software
from .problems import problem
from .report import Frozen, Gpu, GpuKind, HardwareReport, Memory, Problem, Reading


class Overrides(Frozen):
    """What the user says against detection. Kept apart, and shown as such in the report.

    `vram_bytes` sets the memory of the one GPU, `bandwidth_bytes_per_s` that of all, `ram_bytes` the machine's.
    `cpu_only` goes on without any GPU, `software_gpu` and `integrated_gpu` let those count.
    """

    cpu_only: bool = False
    software_gpu: bool = False
    integrated_gpu: bool = False
    vram_bytes: int | None = None
    bandwidth_bytes_per_s: float | None = None
    ram_bytes: int | None = None

    def shown(self) -> tuple[tuple[str, str], ...]:
        return tuple((name, str(value)) for name, value in self if value not in (False, None))


def interpret(raw: RawProbe, overrides: Overrides | None = None) -> HardwareReport:
    """The report of a machine. What could not be read is a Problem or an unknown Reading, never a guess.

    Raises DetectionError only when not even the memory of the machine is known.
    """
    overrides = overrides or Overrides()
    memory = read_memory(raw)
    if memory is None:
        found = problem(raw, "HW-MEMORY-UNREADABLE" if raw.complete else "HW-PROBE-INCOMPLETE")
        raise DetectionError(found.message, hint=found.fix, code=found.id)
    if overrides.ram_bytes:
        memory = memory.model_copy(update={"total_bytes": overrides.ram_bytes})
        memory = memory.model_copy(update={"available_bytes": min(memory.available_bytes, overrides.ram_bytes)})
    gpus, ignored, problems = read_gpus(raw, memory, overrides)
    if not raw.complete:
        problems.append(problem(raw, "HW-PROBE-INCOMPLETE"))
    host = read_host(raw)
    if host.wsl:
        problems.append(problem(raw, "HW-WSL-MEMORY", f"{memory.total_bytes / 2**30:.1f} GiB"))
    return HardwareReport(
        host=host,
        cpu=read_cpu(raw),
        memory=memory,
        gpus=tuple(gpus),
        ignored_gpus=tuple(ignored),
        disks=read_disks(raw),
        ports=read_ports(raw),
        problems=tuple(problems),
        overrides=overrides.shown(),
        ollama=read_ollama(raw),
        provenance=provenance(raw, memory, overrides),
    )


def read_gpus(raw: RawProbe, memory: Memory, overrides: Overrides) -> tuple[list[Gpu], list[Gpu], list[Problem]]:
    """Devices to plan with, devices left out with the reason, and problems."""
    gpus, problems = read_nvidia(raw, memory)
    for reader in (read_amd, read_intel):
        found, trouble = reader(raw, memory)
        gpus, problems = gpus + found, problems + trouble
    shown, trouble = read_displays(raw)
    gpus += read_apple(raw, memory) + read_software(raw, memory, overrides.software_gpu) + shown
    problems += trouble
    gpus = settle_integrated(gpus, overrides)
    gpus, problems = set_memory(gpus, problems, overrides.vram_bytes)
    if overrides.bandwidth_bytes_per_s:
        rate = Reading[float](value=overrides.bandwidth_bytes_per_s, source="override")
        gpus = [gpu.model_copy(update={"bandwidth_bytes_per_s": rate}) if gpu.usable else gpu for gpu in gpus]
    if overrides.cpu_only:
        left_out = {"usable": False, "why": "left out by --cpu-only"}
        ignored = [gpu.model_copy(update=left_out) if gpu.usable else gpu for gpu in gpus]
        return [], ignored, [p.model_copy(update={"fatal": False}) for p in problems]
    return [g for g in gpus if g.usable], [g for g in gpus if not g.usable], problems


def set_memory(gpus: list[Gpu], problems: list[Problem], vram: int | None) -> tuple[list[Gpu], list[Problem]]:
    """The user's word for the memory of the one card; it also settles a size that could not be read."""
    wanted = [gpu for gpu in gpus if gpu.usable or gpu.why == UNKNOWN_SIZE]
    if not vram or len(wanted) != 1:
        return gpus, problems
    told = Reading[int](value=vram, source="override")
    fields = {
        "memory_total_bytes": told,
        "memory_free_bytes": told,
        "usable": True,
        "why": "its memory was set by hand",
    }
    changed = wanted[0].model_copy(update=fields)
    return [changed if gpu is wanted[0] else gpu for gpu in gpus], [p for p in problems if "MEMORY-UNKNOWN" not in p.id]


def settle_integrated(gpus: list[Gpu], overrides: Overrides) -> list[Gpu]:
    """Integrated graphics beside a card are dropped; alone they count only where the engine or a setting says so."""
    cards = [gpu for gpu in gpus if gpu.usable and not gpu.integrated and gpu.kind is not GpuKind.SOFTWARE]
    settled = []
    for gpu in gpus:
        if gpu.integrated and gpu.vendor in ("amd", "intel"):
            if cards:
                why = f"integrated graphics beside {cards[0].name}"
                gpu = gpu.model_copy(update={"usable": False, "why": why})
            elif overrides.integrated_gpu and not gpu.usable:
                gpu = gpu.model_copy(update={"usable": True, "why": "counted because a setting says so"})
        settled.append(gpu)
    return settled


def provenance(raw: RawProbe, memory: Memory, overrides: Overrides) -> tuple[tuple[str, str], ...]:
    """Source of the plain values, `unknown: reason` where there is none."""
    base = "sysctl" if raw.get("host", "system") == "Darwin" else "procfs"

    def told(present: object, source: str, reason: str) -> str:
        return source if present else f"unknown: {reason}"

    return (
        ("cpu.model", told(read_cpu(raw).model != "unknown", base, "not in cpuinfo")),
        ("cpu.cores", told(raw.rows("cpu", "cores") or base == "sysctl", base, "not in cpuinfo; one for each thread")),
        ("cpu.features", told(raw.rows("cpu", "flags"), base, "not in cpuinfo")),
        ("memory.total_bytes", "override" if overrides.ram_bytes else base),
        ("memory.available_bytes", told(raw.rows("mem", "MemAvailable"), base, "kernel without MemAvailable")),
        ("memory.swap_total_bytes", told(raw.rows("mem", "SwapTotal"), base, "the kernel tells none")),
        ("memory.limit_bytes", "sysfs" if memory.limit_bytes else "unknown: no limit is set"),
        ("memory.page_bytes", told(raw.get("mem", "page_bytes"), "command", "getconf is not there; 4096 assumed")),
        ("disks", told(raw.rows("disk"), "command", "df did not answer")),
        ("ports", told(raw.rows("port"), base, "none seen")),
        ("host.virtualisation", told(raw.rows("virt"), "command", "no systemd-detect-virt; CPU flags were read")),
        ("host.on_battery", told(raw.rows("power") or raw.extras.get("battery"), "sysfs", "no power supply is listed")),
    )
