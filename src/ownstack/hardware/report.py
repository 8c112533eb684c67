"""HardwareReport: what is known of a machine, and where each value came from."""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

T = TypeVar("T")
Source = Literal["nvml", "nvidia-smi", "sysfs", "kfd", "sysctl", "procfs", "table", "override", "command"]


class Frozen(BaseModel):
    """Base of every value that crosses a seam: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Reading(Frozen, Generic[T]):
    """A value with its source, or an explicit unknown with the reason."""

    value: T | None = None
    source: Source | None = None
    reason: str = ""

    @classmethod
    def unknown(cls, reason: str) -> Reading[T]:
        return cls(reason=reason)


class GpuKind(StrEnum):
    DISCRETE = "discrete"
    UNIFIED = "unified"
    MIG = "mig"
    VGPU = "vgpu"
    SOFTWARE = "software"


class Gpu(Frozen):
    """One device that a model could be placed on.

    `vram_bytes` and `gtt_bytes` stand apart for AMD APUs; `memory_total_bytes` is the pool that a
    model can use. `parent` names the card that a MIG instance is a part of.
    """

    vendor: Literal["nvidia", "amd", "intel", "apple", "software", "other"]
    name: str
    kind: GpuKind
    pci_id: str = ""
    uuid: str = ""
    memory_total_bytes: Reading[int]
    memory_free_bytes: Reading[int]
    memory_reserved_bytes: Reading[int] = Reading[int].unknown("not read")
    bandwidth_bytes_per_s: Reading[float] = Reading[float].unknown("not read")
    compute_capability: Reading[str] = Reading[str].unknown("not read")
    gfx_target: Reading[str] = Reading[str].unknown("not read")
    driver_version: Reading[str] = Reading[str].unknown("not read")
    # the oldest driver that the engine takes for this device
    driver_floor: Reading[str] = Reading[str].unknown("the engine names none")
    runtime_version: Reading[str] = Reading[str].unknown("not read")
    display_attached: Reading[bool] = Reading[bool].unknown("not read")
    power_limit_watts: Reading[float] = Reading[float].unknown("not read")
    vram_bytes: Reading[int] = Reading[int].unknown("not apart on this device")
    gtt_bytes: Reading[int] = Reading[int].unknown("not apart on this device")
    integrated: bool = False
    asleep: bool = False
    parent: str = ""
    # the engine's library that would run on it
    backend: Literal["", "cuda", "rocm", "vulkan", "metal"] = ""
    usable: bool = True
    why: str = ""


class Problem(Frozen):
    """Something visibly there that could not be read, or that will not work."""

    id: str
    message: str
    fix: str
    fatal: bool = True


class Disk(Frozen):
    """A folder of interest or a mount point, and the file system that holds it."""

    path: str
    total_bytes: int
    free_bytes: int
    mount: str = ""
    filesystem: str = ""
    device: str = ""


class Port(Frozen):
    """A TCP port in use. `process` and `user` are empty where the probe may not see them."""

    address: str
    port: int
    process: str = ""
    pid: int | None = None
    user: str = ""
    unit: str = ""


class Cpu(Frozen):
    model: str
    cores: int
    threads: int
    architecture: Literal["x86_64", "aarch64", "other"]
    features: tuple[str, ...] = ()


class Memory(Frozen):
    """RAM in bytes. `limit_bytes` is a container's cgroup limit; `usable_bytes` honours it."""

    total_bytes: int
    available_bytes: int
    limit_bytes: int | None = None
    swap_total_bytes: int = 0
    page_bytes: int = 4096

    @property
    def usable_bytes(self) -> int:
        return min(self.total_bytes, self.limit_bytes or self.total_bytes)


class Interpreter(Frozen):
    """A Python on the target. `shared`: other accounts may run it; `complete`: nothing of the
    standard library that the kit needs is missing (Debian's python3-minimal lacks much)."""

    path: str
    version: str = ""
    shared: bool = False
    complete: bool = False
    modules: tuple[str, ...] = ()


class ExistingOllama(Frozen):
    """An Ollama that is on the machine already."""

    binary: str = ""
    unit: str = ""
    listening: bool = False
    version: str = ""
    models: tuple[str, ...] = ()


class Host(Frozen):
    """The machine and its operating system. `python` holds the interpreters that are shared and
    complete, best first, as (path, version)."""

    hostname: str
    machine_id_hash: str
    os_id: str
    os_version: str
    os_codename: str = ""
    os_name: str
    kernel: str
    glibc: str = ""  # its version, or `musl`
    init: Literal["systemd", "other"]
    container: str = ""
    virtualisation: str = ""
    wsl: bool = False
    user: str
    uid: int
    home: str
    sudo: Literal["root", "passwordless", "password", "none"]
    linger: bool = False
    user_bus: bool = False
    python: tuple[tuple[str, str], ...] = ()
    tools: tuple[str, ...] = ()
    on_battery: bool | None = None
    os_like: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    interpreters: tuple[Interpreter, ...] = ()
    timezone: str = ""
    locale: str = ""
    product: str = ""
    laptop: bool = False
    reboot_required: bool = False


class HardwareReport(Frozen):
    """Everything that `choose` may know of the machine. Built by `interpret`, a pure function."""

    schema_version: int = 1
    host: Host
    cpu: Cpu
    memory: Memory
    gpus: tuple[Gpu, ...] = ()
    ignored_gpus: tuple[Gpu, ...] = ()
    disks: tuple[Disk, ...] = ()
    ports: tuple[Port, ...] = ()
    problems: tuple[Problem, ...] = ()
    overrides: tuple[tuple[str, str], ...] = ()
    ollama: ExistingOllama | None = None
    # where the plain values of host, cpu and memory came from; an unknown one says why
    provenance: tuple[tuple[str, str], ...] = ()

    @property
    def fatal(self) -> tuple[Problem, ...]:
        """The problems that stop a run."""
        return tuple(problem for problem in self.problems if problem.fatal)

    def matters(self) -> tuple[str, ...]:
        """What a plan depends on, a line each. Kept with the plan, so that a later change can be told in words.

        Whole GiB: a driver's update moves a total by a few MiB, and a sleeping card's comes from a table. RAM is
        rounded up to what was bought: kernel and firmware keep a part that differs from version to version.
        """
        limited = "limited" if self.memory.limit_bytes else ""
        lines = [
            f"cpu|{self.cpu.model}|{self.cpu.threads}",
            f"memory|{-(-self.memory.usable_bytes // 2**30)}|{limited}",
        ]
        for gpu in self.gpus:
            size = round((gpu.memory_total_bytes.value or 0) / 2**30)
            lines.append(f"gpu|{gpu.vendor}|{gpu.name}|{gpu.kind}|{size}")
        return tuple(lines)

    def fingerprint(self) -> str:
        """A hash of what matters for the plan: changes when hardware changes, not with load."""
        return hashlib.sha256("\n".join(self.matters()).encode()).hexdigest()[:16]
