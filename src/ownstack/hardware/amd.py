"""AMD: reads amdgpu's files and the kfd topology. No ROCm is needed on the machine."""

from __future__ import annotations

from typing import Any

from .cards import Card, devices, support, table_bandwidth
from .facts import RawProbe, natural
from .problems import in_container, problem
from .report import Gpu, GpuKind, Memory, Problem, Reading

Found = tuple[list[Gpu], list[Problem]]
# targets that only processors with graphics have
INTEGRATED_GFX = {
    *("gfx902", "gfx909", "gfx90c", "gfx1013", "gfx1033", "gfx1035", "gfx1036", "gfx1037"),
    *("gfx1103", "gfx1150", "gfx1151", "gfx1152", "gfx1153"),
}


def read_amd(raw: RawProbe, memory: Memory) -> Found:
    gpus: list[Gpu] = []
    problems: list[Problem] = []
    for row in (row for row in raw.rows("pci") if len(row) >= 6 and row[1] == "0x1002"):
        found, trouble = read_card(raw, row, memory)
        gpus += found
        problems += trouble
    if gpus:
        problems += node_problems(raw, gpus)
    return gpus, problems


def read_card(raw: RawProbe, row: tuple[str, ...], memory: Memory) -> Found:
    address, _, device, _, driver, status = row[:6]
    pci = f"1002:{device.removeprefix('0x')}"
    known = devices().get(pci)
    files = {r[0]: r[1] for r in raw.rows("gpu", address) if len(r) == 2}
    vram = natural(files.get("mem_info_vram_total"))
    known = known.of_size(vram) if known and vram else known
    name = files.get("product_name") or (known.name if known else f"AMD device {pci}")
    if driver == "vfio-pci":
        return [], []
    if driver != "amdgpu":
        # an old or integrated part that the engine would not use anyway does not stop anything
        id = "HW-AMD-DRIVER-MISSING"
        harmless = known is not None and known.integrated and known.gfx not in support()["amd"]["integrated_gfx"]
        return [], [problem(raw, id, f"{name} is held by {driver or 'no driver'}", fatal=not harmless)]
    if vram is None or (not vram and not natural(files.get("mem_info_gtt_total"))):
        return [], [problem(raw, "HW-AMD-UNREADABLE", name)]
    node = kfd_node(raw, address)
    gfx = gfx_target(node)
    if not gfx.value and known and known.gfx:
        gfx = Reading[str](value=known.gfx, source="table")
    base = {
        "vendor": "amd",
        "name": name,
        "pci_id": address,
        "uuid": f"GPU-{files['unique_id']}" if files.get("unique_id") else "",
        "gfx_target": gfx,
        "driver_version": driver_version(raw),
        "bandwidth_bytes_per_s": table_bandwidth(name, pci, known),
        "display_attached": displays(raw, address),
        "asleep": status == "suspended",
        "vram_bytes": Reading[int](value=vram, source="sysfs"),
    }
    if is_apu(gfx.value, known, node):
        return apu(raw, base, files, memory)
    return discrete(raw, base, files)


def discrete(raw: RawProbe, base: dict[str, Any], files: dict[str, str]) -> Found:
    vram, used = base["vram_bytes"].value, natural(files.get("mem_info_vram_used"))
    free = (
        Reading[int](value=max(vram - used, 0), source="sysfs")
        if used is not None
        else Reading[int].unknown("not told")
    )
    target = base["gfx_target"].value
    if not vram:
        return [], [problem(raw, "HW-AMD-UNREADABLE", base["name"])]
    if target is None:
        return [], [problem(raw, "HW-AMD-TARGET-UNKNOWN", base["name"])]
    usable, backend, why = engine_takes(target)
    gpu = Gpu(
        kind=GpuKind.DISCRETE,
        driver_floor=driver_floor(backend),
        memory_total_bytes=base["vram_bytes"],
        memory_free_bytes=free,
        usable=usable,
        backend=backend,
        why=why,
        **base,
    )
    return [gpu], []


def apu(raw: RawProbe, base: dict[str, Any], files: dict[str, str], memory: Memory) -> Found:
    """VRAM (a carve-out of the RAM, not in MemTotal), GTT (borrowed from MemTotal) and the pool apart.

    The driver serves models from one of the two: GTT where it is the larger (amdgpu's
    `apu_prefer_gtt`), else the carve-out. The pool is therefore the larger, never their sum, and
    GTT never counts for more than the RAM it is borrowed from.
    """
    problems = []
    vram, gtt = base["vram_bytes"].value, natural(files.get("mem_info_gtt_total"))
    if gtt is not None and gtt > memory.usable_bytes:
        problems.append(problem(raw, "HW-AMD-MEMORY-IMPOSSIBLE", f"GTT {gtt} of {memory.usable_bytes} bytes"))
    borrowed = min(gtt or 0, memory.usable_bytes)
    if borrowed > vram:
        total, free = borrowed, min(borrowed - (natural(files.get("mem_info_gtt_used")) or 0), memory.available_bytes)
    else:
        total, free = vram, vram - (natural(files.get("mem_info_vram_used")) or 0)
    target = base["gfx_target"].value
    takes = target in support()["amd"]["integrated_gfx"]
    why = f"{target} is used by the engine" if takes else f"the engine leaves out integrated {target or 'graphics'}"
    gpu = Gpu(
        kind=GpuKind.UNIFIED,
        driver_floor=driver_floor("rocm" if takes else "vulkan"),
        integrated=True,
        memory_total_bytes=Reading[int](value=total, source="sysfs"),
        memory_free_bytes=Reading[int](value=max(free, 0), source="sysfs"),
        gtt_bytes=Reading[int](value=gtt, source="sysfs") if gtt is not None else Reading[int].unknown("not told"),
        usable=takes,
        backend="rocm" if takes else "vulkan",
        why=why,
        **base,
    )
    return [gpu], problems


def engine_takes(target: str) -> tuple[bool, str, str]:
    """By ROCm where its libraries hold the target, else by Vulkan; never with another target's code."""
    if target in support()["amd"]["gfx"]:
        return True, "rocm", f"{target} is in the engine's ROCm list"
    if not target.startswith(("gfx6", "gfx7")):
        return True, "vulkan", f"{target} is not in the engine's ROCm list; Vulkan is used"
    return False, "", f"{target} is older than what the engine supports"


def is_apu(target: str | None, known: Card | None, node: dict[str, str]) -> bool:
    """By target, then by table; older kernels put processor and graphics into one kfd node."""
    if target in INTEGRATED_GFX or (known is not None and known.integrated):
        return True
    return known is None and (natural(node.get("cpu_cores_count")) or 0) > 0


def kfd_node(raw: RawProbe, address: str) -> dict[str, str]:
    """The kfd topology's node of a PCI address: location_id is bus << 8 | device << 3 | function."""
    domain, bus, rest = address.split(":")
    slot, function = rest.split(".")
    location = int(bus, 16) << 8 | int(slot, 16) << 3 | int(function)
    nodes: dict[str, dict[str, str]] = {}
    for row in raw.rows("kfd"):
        if len(row) == 3:
            nodes.setdefault(row[0], {})[row[1]] = row[2]
    for node in nodes.values():
        same = node.get("location_id") == str(location) and (natural(node.get("domain")) or 0) == int(domain, 16)
        if same and node.get("gfx_target_version", "0") != "0":
            return node
    return {}


def gfx_target(node: dict[str, str]) -> Reading[str]:
    """kfd's decimal 110501 is gfx1151; 90010 is gfx90a."""
    told = natural(node.get("gfx_target_version"))
    if not told:
        return Reading[str].unknown("not in the kfd topology")
    return Reading[str](value=f"gfx{told // 10000}{told // 100 % 100:x}{told % 100:x}", source="kfd")


def driver_version(raw: RawProbe) -> Reading[str]:
    """Only AMD's own package has a module version; the kernel's own driver is as old as the kernel."""
    version = raw.get("module", "amdgpu")
    return Reading[str](value=version or f"kernel {raw.get('host', 'kernel')}", source="sysfs")


def driver_floor(backend: str) -> Reading[str]:
    """What the engine's documentation asks for. The kernel's own driver has no such number to compare with."""
    if backend != "rocm":
        return Reading[str].unknown("the engine names none for Vulkan")
    return Reading[str](value=support()["amd"]["driver"], source="table")


def displays(raw: RawProbe, address: str) -> Reading[bool]:
    states = [r[2] for r in raw.rows("gpu", address) if len(r) == 3 and r[0] == "connector"]
    if not states:
        return Reading[bool].unknown("no connectors are listed")
    return Reading[bool](value="connected" in states, source="sysfs")


def node_problems(raw: RawProbe, gpus: list[Gpu]) -> list[Problem]:
    """Device nodes that the engine needs, for the GPUs that it would use."""
    wanted = [gpu for gpu in gpus if gpu.usable]
    if not wanted:
        return []
    nodes = {row[0]: row[1] for row in raw.rows("dev") if len(row) == 2}
    renders = [access for path, access in nodes.items() if path.startswith("/dev/dri/renderD")]
    rocm = any(gpu.backend == "rocm" for gpu in wanted)
    if not renders or (rocm and "/dev/kfd" not in nodes):
        return [problem(raw, "HW-AMD-NO-DEVICE-NODE", ", ".join(gpu.name for gpu in wanted))]
    if any(gpu.backend == "vulkan" for gpu in wanted) and not has_vulkan(raw, "radeon"):
        return [problem(raw, "HW-VULKAN-MISSING", ", ".join(gpu.name for gpu in wanted))]
    closed = "rw" not in renders or (rocm and nodes["/dev/kfd"] != "rw")
    if closed and raw.get("user", "uid") != "0":
        # with root the service gets an account of its own in the group; without, it runs as this user
        alone = raw.get("sudo", "rc") != "0" and not {"sudo", "wheel", "admin"} & set(raw.get("user", "groups").split())
        return [problem(raw, "HW-AMD-NO-PERMISSION", fatal=alone and not in_container(raw))]
    return []


def has_vulkan(raw: RawProbe, word: str) -> bool:
    """Whether a Vulkan driver's manifest carries the word (radeon_icd.json, intel_icd.json, ...)."""
    return any(word in row[1] for row in raw.rows("icd") if len(row) > 1)
