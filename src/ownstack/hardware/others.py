"""Apple's unified GPU, software renderers, and display adapters that are none."""

from __future__ import annotations

from .cards import table_bandwidth, tables
from .facts import RawProbe
from .problems import problem
from .report import Gpu, GpuKind, Memory, Problem, Reading

MIB = 1 << 20
SMALL_MAC = 36 << 30
SOFTWARE = {"lvp_icd": "llvmpipe (Mesa's lavapipe)", "swiftshader": "SwiftShader"}


def read_apple(raw: RawProbe, memory: Memory) -> list[Gpu]:
    """Apple silicon under macOS: the share of the RAM that Metal may wire.

    `iogpu.wired_limit_mb` where it is set; its default is about 2/3 of the RAM up to 36 GiB and at least
    3/4 above (measured 10.7 to 11.8 of 16, 17.8 of 24, 48 of 64, 107.5 of 128 GiB).
    """
    chip = raw.get("sysctl", "machdep.cpu.brand_string")
    if raw.get("host", "system") != "Darwin" or not chip.startswith("Apple"):
        return []
    total = memory.total_bytes
    limit = (raw.number("sysctl", "iogpu.wired_limit_mb") or 0) * MIB
    if limit:
        pool = Reading[int](value=min(limit, total), source="sysctl")
    else:
        share = total * 2 // 3 if total <= SMALL_MAC else total * 3 // 4
        pool = Reading[int](value=share, source="table")
    gpu = Gpu(
        vendor="apple",
        name=chip,
        kind=GpuKind.UNIFIED,
        integrated=True,
        memory_total_bytes=pool,
        memory_free_bytes=Reading[int](value=min(pool.value or 0, memory.available_bytes), source="command"),
        bandwidth_bytes_per_s=apple_bandwidth(chip, raw.number("sysctl", "hw.physicalcpu")),
        driver_version=Reading[str](value=f"macOS {raw.get('sysctl', 'kern.osproductversion')}", source="sysctl"),
        backend="metal",
        why="Metal",
    )
    return [gpu]


def apple_bandwidth(chip: str, cores: int | None) -> Reading[float]:
    """By the chip's name; chips of one name with two memory widths differ in their number of CPU cores."""
    rows = [row for row in tables()["apple"] if row["chip"] == chip]
    fitting = [row for row in rows if row.get("cores", cores) == cores]
    if not fitting:
        return table_bandwidth(chip)
    return Reading[float](value=fitting[0]["gb_s"] * 1e9, source="table")


def read_software(raw: RawProbe, memory: Memory, wanted: bool) -> list[Gpu]:
    """Renderers that run on the CPU, by the manifests of installed Vulkan drivers. Never a GPU by themselves."""
    found = []
    names = {row[1] for row in raw.rows("icd") if len(row) > 1}
    for word, name in SOFTWARE.items():
        if any(word in manifest for manifest in names):
            why = "counted because a setting says so" if wanted else "a software renderer runs on the CPU: it is no GPU"
            found.append(
                Gpu(
                    vendor="software",
                    name=name,
                    kind=GpuKind.SOFTWARE,
                    memory_total_bytes=Reading[int](value=memory.usable_bytes, source="procfs"),
                    memory_free_bytes=Reading[int](value=memory.available_bytes, source="procfs"),
                    usable=wanted,
                    backend="vulkan",
                    why=why,
                )
            )
    return found


def read_displays(raw: RawProbe) -> tuple[list[Gpu], list[Problem]]:
    """Adapters that only show a picture are named and left out; unknown accelerators are pointed at."""
    names = {row["vendor"]: row["name"] for row in tables()["display"]}
    shown: list[Gpu] = []
    problems: list[Problem] = []
    for row in (row for row in raw.rows("pci") if len(row) >= 6):
        vendor, pci = row[1].removeprefix("0x"), f"{row[1]}:{row[2]}".replace("0x", "")
        if row[4] == "vfio-pci" and vendor in ("10de", "1002", "8086"):
            shown.append(unread(f"GPU {pci}", row[0], "held by vfio-pci for a virtual machine"))
        elif vendor in names and row[3].startswith("0x03"):
            shown.append(unread(names[vendor], row[0], "shows a picture only; it computes nothing"))
        elif vendor not in ("10de", "1002", "8086"):
            problems.append(problem(raw, "HW-UNKNOWN-ACCELERATOR", f"{pci} at {row[0]}"))
    return shown, problems


def unread(name: str, address: str, why: str) -> Gpu:
    nothing = Reading[int].unknown(why)
    return Gpu(
        vendor="other",
        name=name,
        kind=GpuKind.DISCRETE,
        pci_id=address,
        memory_total_bytes=nothing,
        memory_free_bytes=nothing,
        usable=False,
        why=why,
    )
