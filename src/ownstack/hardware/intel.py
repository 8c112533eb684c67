"""Intel: Arc cards under i915 and xe, and integrated graphics."""

from __future__ import annotations

from .amd import displays, has_vulkan
from .cards import UNKNOWN_SIZE, Card, devices, table_bandwidth
from .facts import RawProbe, natural
from .problems import problem
from .report import Gpu, GpuKind, Memory, Problem, Reading

Found = tuple[list[Gpu], list[Problem]]


def read_intel(raw: RawProbe, memory: Memory) -> Found:
    gpus: list[Gpu] = []
    problems: list[Problem] = []
    for row in (row for row in raw.rows("pci") if len(row) >= 6 and row[1] == "0x8086"):
        found, trouble = read_card(raw, row, memory)
        gpus += found
        problems += trouble
    cards = [gpu for gpu in gpus if gpu.usable]
    if cards and not any(row[0].startswith("/dev/dri/renderD") for row in raw.rows("dev") if row):
        problems.append(problem(raw, "HW-INTEL-NO-DEVICE-NODE", cards[0].name))
    if cards and not has_vulkan(raw, "intel"):
        problems.append(problem(raw, "HW-VULKAN-MISSING", cards[0].name))
    return gpus, problems


def read_card(raw: RawProbe, row: tuple[str, ...], memory: Memory) -> Found:
    address, _, device, kind, driver, status = row[:6]
    pci = f"8086:{device.removeprefix('0x')}"
    known = devices().get(pci)
    name = known.name if known else f"Intel device {pci}"
    if driver == "vfio-pci":
        return [], []
    if is_integrated(address, known, raw):
        return [integrated(raw, address, name, pci, memory, status)], []
    if driver not in ("i915", "xe"):
        if kind.startswith("0x12"):
            return [], []
        return [], [problem(raw, "HW-INTEL-DRIVER-MISSING", f"{name} is held by {driver or 'no driver'}")]
    size = card_memory(raw, address, known)
    trouble = [problem(raw, "HW-INTEL-MEMORY-UNKNOWN", name)] if size.value is None else []
    free = natural(next((r[1] for r in raw.rows("gpu", address) if r[0] == "lmem_avail_bytes"), None))
    gpu = Gpu(
        vendor="intel",
        name=name,
        kind=GpuKind.DISCRETE,
        pci_id=address,
        memory_total_bytes=size,
        memory_free_bytes=Reading[int](value=free, source="sysfs")
        if free is not None
        else Reading[int].unknown(f"{driver} does not tell it"),
        bandwidth_bytes_per_s=table_bandwidth(name, pci),
        driver_version=Reading[str](value=f"{driver} of kernel {raw.get('host', 'kernel')}", source="sysfs"),
        display_attached=displays(raw, address),
        asleep=status == "suspended",
        backend="vulkan",
        usable=not trouble,
        why=UNKNOWN_SIZE if trouble else "used by the engine's Vulkan back end",
    )
    return [gpu], trouble


def is_integrated(address: str, known: Card | None, raw: RawProbe) -> bool:
    """Integrated graphics (and their virtual functions) sit at 00:02; a card never does. The table overrules."""
    if known is not None:
        return known.integrated
    local = any(r[0].startswith(("tile", "lmem")) for r in raw.rows("gpu", address) if r)
    return ":00:02." in address and not local


def card_memory(raw: RawProbe, address: str, known: Card | None) -> Reading[int]:
    """xe: sum of the tiles; i915: lmem; else the table, else the size of a fully mapped region 2."""
    files = [r for r in raw.rows("gpu", address) if len(r) >= 2]
    tiles = [natural(r[1].removeprefix("0x")) for r in files if r[0].startswith("tile") and r[0].endswith("_vram")]
    if tiles and all(tiles):
        return Reading[int](value=sum(size or 0 for size in tiles), source="sysfs")
    local = natural(next((r[1] for r in files if r[0] == "lmem_total_bytes"), None))
    if local:
        return Reading[int](value=local, source="sysfs")
    if known and known.memory_bytes:
        return Reading[int](value=known.memory_bytes, source="table")
    region = next((r[1] for r in files if r[0] == "bar2"), "").split()
    first, last = (natural(text, 16) for text in (*region, "", "")[:2])
    if first is not None and last is not None:
        size = last - first + 1
        if size >= 1 << 32:  # 256 MiB is the window of a machine without resizable BAR: says nothing
            return Reading[int](value=size, source="sysfs")
    return Reading[int].unknown("no driver file, not in the table, region 2 not fully mapped")


def integrated(raw: RawProbe, address: str, name: str, pci: str, memory: Memory, status: str) -> Gpu:
    return Gpu(
        vendor="intel",
        name=name,
        kind=GpuKind.UNIFIED,
        integrated=True,
        pci_id=address,
        memory_total_bytes=Reading[int](value=memory.usable_bytes, source="procfs"),
        memory_free_bytes=Reading[int](value=memory.available_bytes, source="procfs"),
        bandwidth_bytes_per_s=table_bandwidth(name, pci),
        display_attached=displays(raw, address),
        asleep=status == "suspended",
        backend="vulkan",
        usable=False,
        why="integrated graphics: the engine leaves it out",
    )
