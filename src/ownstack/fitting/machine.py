"""The machine as the arithmetic sees it: devices with free memory and rates, and RAM.

Built from a HardwareReport or from what the user declares (`--gpu`, `--vram`, `--ram`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .speed import DEFAULT_RAM_BANDWIDTH, Engine, family_of

if TYPE_CHECKING:
    from ..hardware.report import Gpu, HardwareReport
    from .cards import Cards

MIB = 2**20
UNLIMITED = 2**50
UNKNOWN_BANDWIDTH = 200e9  # a card that is in no table: a cautious guess, said as such
BACKENDS = {"nvidia": "cuda", "amd": "rocm", "intel": "vulkan", "apple": "metal", "software": "vulkan"}
# driver and context memory of one process on one card. CUDA's interval was seen in logs (154 and 430 MiB);
# the others are assumptions until `ownstack bench` has learned the machine's own.
OVERHEAD_MIB = {"cuda": (150, 430), "rocm": (150, 600), "vulkan": (30, 350), "metal": (0, 250)}
SYSTEM_RAM_BYTES = 2048 * MIB  # kept for the system where a total but no available RAM is known


@dataclass(frozen=True, slots=True)
class Device:
    """One card. Bandwidth in bytes/s and FP16 rate in operations/s are 0 where unknown."""

    name: str
    vendor: str
    total: int
    free: int
    bandwidth: float = 0.0
    flops: float = 0.0
    compute_capability: str = ""
    unified: bool = False
    overhead: tuple[int, int] = (0, 0)
    bandwidth_source: str = ""
    overhead_measured: bool = False

    @property
    def backend(self) -> str:
        return BACKENDS.get(self.vendor, "vulkan")


@dataclass(frozen=True, slots=True)
class Machine:
    """Devices that models may use, and the host's memory in bytes."""

    devices: tuple[Device, ...]
    ram_total: int
    ram_available: int
    ram_bandwidth: float = DEFAULT_RAM_BANDWIDTH
    ram_bandwidth_source: str = "assumed: two channels of DDR4"
    cores: int = 0
    efficiency: float = 1.0
    declared: bool = False

    @property
    def backend(self) -> str:
        return self.devices[0].backend if self.devices else "cpu"

    @property
    def unified(self) -> bool:
        return any(d.unified for d in self.devices)

    @property
    def free(self) -> tuple[int, ...]:
        return tuple(d.free for d in self.devices)

    @property
    def vram(self) -> int:
        return sum(d.total for d in self.devices)

    @property
    def engine(self) -> Engine:
        """Rates for the speed laws; of several cards the slowest bus counts (layers run in turn)."""
        if not self.devices:
            return Engine("cpu", 0.0, self.ram_bandwidth, efficiency=self.efficiency, family="cpu")
        slowest = min(self.devices, key=lambda d: d.bandwidth or float("inf"))
        family = family_of(slowest.vendor, slowest.name, slowest.compute_capability)
        return Engine(slowest.vendor, slowest.bandwidth, self.ram_bandwidth, slowest.flops, self.efficiency, family)


def overhead(backend: str) -> tuple[int, int]:
    low, high = OVERHEAD_MIB.get(backend, (0, 0))
    return low * MIB, high * MIB


def _device(gpu: Gpu, cards: Cards, ram_available: int) -> Device | None:
    total = gpu.memory_total_bytes.value
    if total is None or not gpu.usable:
        return None
    free = gpu.memory_free_bytes.value
    free = total if free is None else min(free, total)
    unified = gpu.kind.value == "unified"
    # what an AMD processor has carved out as VRAM is no part of the RAM that the system counts
    if unified and ram_available and gpu.vram_bytes.value != total:
        free = min(free, ram_available)
    card = cards.lookup(gpu.name, total)
    bandwidth = gpu.bandwidth_bytes_per_s.value
    source: str = gpu.bandwidth_bytes_per_s.source or ""
    if not bandwidth and card is not None:
        bandwidth, source = card.bandwidth, "table"
    if not bandwidth:
        bandwidth, source = UNKNOWN_BANDWIDTH, "assumed"
    backend = BACKENDS.get(gpu.vendor, "vulkan")
    return Device(
        name=gpu.name,
        vendor=gpu.vendor,
        total=total,
        free=free,
        bandwidth=float(bandwidth or 0.0),
        flops=card.flops if card else 0.0,
        compute_capability=gpu.compute_capability.value or (card.compute_capability if card else ""),
        unified=unified,
        overhead=overhead(backend),
        bandwidth_source=source,
    )


def machine_of(report: HardwareReport, cards: Cards, *, cpu_only: bool = False, software: bool = False) -> Machine:
    """The machine of a report. Software renderers count only where `software` allows them."""
    available = min(report.memory.available_bytes, report.memory.usable_bytes)
    devices: list[Device] = []
    if not cpu_only:
        gpus = [g for g in report.gpus if g.vendor != "software" or software]
        if software:
            gpus += [g for g in report.ignored_gpus if g.vendor == "software"]
        devices = [d for g in gpus if (d := _device(g, cards, available)) is not None]
        if software:
            devices = devices or [
                replace(d)
                for g in report.ignored_gpus
                if g.vendor == "software" and (d := _device(g.model_copy(update={"usable": True}), cards, available))
            ]
    # one engine process uses cards of one back end: the one with the most memory
    if devices:
        best = max({d.backend for d in devices}, key=lambda b: sum(d.total for d in devices if d.backend == b))
        devices = [d for d in devices if d.backend == best]
    return Machine(
        devices=tuple(devices),
        ram_total=report.memory.usable_bytes,
        ram_available=available,
        cores=report.cpu.cores,
    )


def shrunk(machine: Machine, memory: int) -> Machine:
    """The same machine with its class-deciding memory (VRAM, or RAM without a GPU) cut to `memory` bytes."""
    if not machine.devices:
        less = max(0, machine.ram_total - memory)
        available = max(0, machine.ram_available - less)
        return replace(machine, ram_total=min(machine.ram_total, memory), ram_available=available)
    less = max(0, machine.vram - memory)
    devices = []
    for device in machine.devices:
        cut = less * device.total // machine.vram
        devices.append(replace(device, total=device.total - cut, free=max(0, device.free - cut)))
    return replace(machine, devices=tuple(devices))


def declared(devices: tuple[Device, ...], ram_bytes: int) -> Machine:
    """A machine that the user describes: all of its VRAM free, RAM less what a system takes."""
    return Machine(
        devices=devices,
        ram_total=ram_bytes,
        ram_available=max(ram_bytes - SYSTEM_RAM_BYTES, ram_bytes // 2),
        declared=True,
    )
