"""NVIDIA: reads NVML's answer (or nvidia-smi's) against what the bus and the file system show."""

from __future__ import annotations

import re
from typing import Any

from .cards import devices, support, table_bandwidth, table_capability, tables
from .facts import RawProbe, Row, natural
from .problems import in_container, problem
from .report import Gpu, GpuKind, Memory, Problem, Reading, Source

MIB = 1 << 20
NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND, DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND, FUNCTION_NOT_FOUND = 3, 4, 6, 9, 12, 13
GPU_IS_LOST, MISMATCH, UNKNOWN = 15, 18, 999
VGPU = 2
INIT_PROBLEMS = {
    NO_PERMISSION: "HW-NVIDIA-NO-PERMISSION",
    LIBRARY_NOT_FOUND: "HW-NVIDIA-LIBRARY-MISSING",
    FUNCTION_NOT_FOUND: "HW-NVIDIA-DRIVER-OLD",
    GPU_IS_LOST: "HW-NVIDIA-LOST",
    MISMATCH: "HW-NVIDIA-DRIVER-MISMATCH",
}
READ_PROBLEMS = {
    NO_PERMISSION: "HW-NVIDIA-NO-PERMISSION",
    GPU_IS_LOST: "HW-NVIDIA-LOST",
    NOT_SUPPORTED: "HW-NVIDIA-MEMORY-UNKNOWN",
    MISMATCH: "HW-NVIDIA-DRIVER-MISMATCH",
}
Found = tuple[list[Gpu], list[Problem]]


def read_nvidia(raw: RawProbe, memory: Memory) -> Found:
    """All NVIDIA devices, and the problems that kept any from being read."""
    cards = [row for row in raw.rows("pci") if len(row) >= 6 and row[1] == "0x10de" and row[4] != "vfio-pci"]
    signs = (("module", "nvidia"), ("dt", "tegra_release"), ("dev", "/dev/nvidia0"))
    seen = bool(cards) or any(raw.rows(*sign) for sign in signs)
    if raw.nvml is None and raw.smi is None:
        if raw.rows("dev", "/dev/dxg") and raw.rows("nvlib") and not raw.nvml_error:
            return [], [problem(raw, "HW-NVIDIA-UNREADABLE", "NVIDIA's library is there and was not asked")]
        return unread(raw, cards, memory) if seen or raw.nvml_error else ([], wsl_without_library(raw))
    if raw.nvml is not None and "error" not in raw.nvml:
        try:
            gpus, problems = from_nvml(raw, memory)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            # our own probe wrote the answer; a saved one may be cut short or edited
            return [], [problem(raw, "HW-NVIDIA-UNREADABLE", f"NVML's answer is not understood ({error})")]
        problems += disagreements(raw, gpus)
    elif raw.smi is not None:
        from .nvidia_smi import read_smi

        gpus, problems = read_smi(raw, memory)
    else:
        return [], [init_problem(raw, cards)] if seen or raw.rows("dev", "/dev/dxg") else []
    if unlisted(raw, cards) and not problems:
        detail = f"{len(cards)} on the bus, {listed(raw)} listed"
        problems.append(problem(raw, "HW-NVIDIA-MISSING-CARD", detail))
    shown = {gpu.pci_id for gpu in gpus}
    return gpus + [too_old(row) for row in cards if is_old(row) and row[0] not in shown], problems


def unlisted(raw: RawProbe, cards: list[Row]) -> bool:
    """Whether the driver lists fewer cards than there are. A container may have got only some of them,
    a virtual machine of this host others, and the driver does not take the oldest."""
    ours = [row for row in cards if row[4] != "vfio-pci" and not is_old(row)]
    nodes = sum(1 for row in raw.rows("dev") if row[0].removeprefix("/dev/nvidia").isdigit())
    if in_container(raw) and nodes:
        return listed(raw) < min(nodes, len(ours))
    return listed(raw) < len(ours)


def is_old(row: Row) -> bool:
    known = devices().get(pci_id(row))
    return known is not None and known.old


def listed(raw: RawProbe) -> int:
    """How many cards the driver lists (MIG instances are not cards)."""
    devices = raw.nvml.get("devices") if raw.nvml else None
    return len(devices) if isinstance(devices, list) else len(raw.smi or ())


def wsl_without_library(raw: RawProbe) -> list[Problem]:
    if raw.rows("dev", "/dev/dxg") and not raw.rows("nvlib"):
        return [problem(raw, "HW-WSL-NO-LIBRARY")]
    return []


def unread(raw: RawProbe, cards: list[Row], memory: Memory) -> Found:
    """Cards are there and nothing could be asked: say why, or take a sleeping card from the table."""
    if "no answer" in raw.nvml_error:
        return [], [problem(raw, "HW-NVIDIA-HANG", raw.nvml_error)]
    if raw.rows("module", "nvidia") and cards and all(row[5] == "suspended" for row in cards) and not raw.nvml_error:
        return sleeping(raw, cards)
    if not raw.rows("module", "nvidia") and not raw.rows("dt", "tegra_release"):
        if cards and all(is_old(row) for row in cards):
            return [too_old(row) for row in cards], []
        held = sorted({row[4] or "no driver" for row in cards})
        names = ", ".join(card_name(raw, row) for row in cards)
        return [], [problem(raw, "HW-NVIDIA-DRIVER-MISSING", f"{names} is held by {' and '.join(held)}")]
    if in_container(raw) and not raw.rows("dev", "/dev/nvidia0"):
        return [], [problem(raw, "HW-NVIDIA-NO-DEVICE-NODE", ", ".join(card_name(raw, row) for row in cards))]
    if not raw.rows("nvlib"):
        return [], [problem(raw, "HW-NVIDIA-LIBRARY-MISSING")]
    why = "; ".join(filter(None, [raw.nvml_error, raw.smi_error]))
    return [], [problem(raw, "HW-NVIDIA-UNREADABLE", why)]


def too_old(row: Row) -> Gpu:
    known = devices()[pci_id(row)]
    why = "its generation is older than what the engine and NVIDIA's present drivers support"
    unknown = Reading[int].unknown(why)
    return Gpu(
        vendor="nvidia",
        name=known.name,
        kind=GpuKind.DISCRETE,
        pci_id=row[0],
        memory_total_bytes=unknown,
        memory_free_bytes=unknown,
        usable=False,
        why=why,
    )


def card_name(raw: RawProbe, row: Row) -> str:
    told = next((r[1] for r in raw.rows("nvgpu", row[0]) if len(r) > 1 and r[0] == "model"), "")
    pci = pci_id(row)
    known = devices().get(pci)
    return told or (known.name if known else f"NVIDIA device {pci}")


def pci_id(row: Row) -> str:
    """`10de:2684` of a pci line."""
    return f"{row[1].removeprefix('0x')}:{row[2].removeprefix('0x')}"


def sleeping(raw: RawProbe, cards: list[Row]) -> Found:
    """Runtime-suspended cards: name from the driver's own file, size from the table, nothing woken."""
    gpus = []
    for row in cards:
        name, known = card_name(raw, row), devices().get(pci_id(row))
        driver, target = driver_from_files(raw), table_capability(name)
        usable, why = engine_takes(target.value, driver.value)
        if known is None or known.memory_bytes is None:
            return [], [problem(raw, "HW-GPU-ASLEEP-UNKNOWN", name)]
        gpus.append(
            Gpu(
                vendor="nvidia",
                name=name,
                kind=GpuKind.DISCRETE,
                pci_id=row[0],
                memory_total_bytes=Reading[int](value=known.memory_bytes, source="table"),
                memory_free_bytes=Reading[int].unknown("asleep, and not woken to ask"),
                bandwidth_bytes_per_s=table_bandwidth(name, pci_id(row)),
                compute_capability=target,
                driver_version=driver,
                driver_floor=Reading[str](value=driver_floor(target.value), source="table"),
                usable=usable,
                why=f"{why}; from the table and the driver's files, for the card sleeps and was not asked",
                backend="cuda",
                asleep=True,
            )
        )
    floor = driver_problem(raw, gpus)
    return gpus, [problem(raw, "HW-GPU-ASLEEP", ", ".join(g.name for g in gpus)), *([floor] if floor else [])]


def driver_from_files(raw: RawProbe) -> Reading[str]:
    version = raw.get("module", "nvidia")
    return Reading[str](value=version, source="sysfs") if version else Reading[str].unknown("no module version")


def init_problem(raw: RawProbe, cards: list[Row]) -> Problem:
    """NVML did not start, and nvidia-smi did not either: the cause behind its error code."""
    answer = raw.nvml or {}
    code, text = answer.get("error"), str(answer.get("text", ""))
    if code in (DRIVER_NOT_LOADED, NO_PERMISSION) or (code == UNKNOWN and in_container(raw)):
        nodes = raw.rows("dev", "/dev/nvidiactl")
        if raw.rows("module", "nvidia") and not nodes:
            return problem(raw, "HW-NVIDIA-NO-DEVICE-NODE", text)
        if nodes and ("rw" not in nodes[0][0] or code == UNKNOWN):
            return problem(raw, "HW-NVIDIA-NO-PERMISSION", text)
    if code == DRIVER_NOT_LOADED and not raw.rows("module", "nvidia"):
        return problem(raw, "HW-NVIDIA-DRIVER-MISSING", ", ".join(card_name(raw, row) for row in cards) or text)
    id = INIT_PROBLEMS.get(code, "HW-NVIDIA-UNREADABLE") if isinstance(code, int) else "HW-NVIDIA-UNREADABLE"
    return problem(raw, id, f"NVML: {text}")


def from_nvml(raw: RawProbe, memory: Memory) -> Found:
    answer = raw.nvml or {}
    gpus: list[Gpu] = []
    problems: list[Problem] = []
    for device in answer.get("devices", []):
        found, trouble = read_device(raw, answer, device, memory)
        gpus += found
        problems += trouble
    if not answer.get("devices"):
        problems.append(problem(raw, "HW-NVIDIA-MISSING-CARD", "the driver lists none"))
    floor = driver_problem(raw, gpus)
    return gpus, problems + ([floor] if floor else [])


def read_device(raw: RawProbe, answer: dict[str, Any], device: dict[str, Any], memory: Memory) -> Found:
    """One card: itself, or its MIG instances."""
    if "error" in device:
        detail = f"card {device['index']}: {device.get('text', '')}"
        return [], [problem(raw, READ_PROBLEMS.get(device["error"], "HW-NVIDIA-UNREADABLE"), detail)]
    name = text_of(device.get("name")) or "NVIDIA card"
    if device.get("mig") and isinstance(device["mig"], list) and device["mig"][0] == 1:
        return read_instances(raw, answer, device, name)
    base = common(raw, answer, device, name)
    told = device.get("memory", {})
    # the driver's own number is not believed for such parts: some say NOT_SUPPORTED, some an odd total
    if is_integrated(name, raw) and told.get("error") in (None, NOT_SUPPORTED, FUNCTION_NOT_FOUND):
        return [unified(base, memory)], []
    if "error" in told:
        id = READ_PROBLEMS.get(told["error"], "HW-NVIDIA-UNREADABLE")
        return [], [problem(raw, id, f"{name}: {told.get('text', '')}")]
    if not told["total"] > 0:
        return [], [problem(raw, "HW-NVIDIA-MEMORY-UNKNOWN", f"{name}: the driver says {told['total']} bytes")]
    kind = GpuKind.VGPU if device.get("virtualisation") == VGPU else GpuKind.DISCRETE
    return [Gpu(kind=kind, **base, **memory_fields(told))], []


def read_instances(raw: RawProbe, answer: dict[str, Any], device: dict[str, Any], name: str) -> Found:
    """A card in MIG mode is as large as its instances; what the parent says of itself is not asked."""
    gpus: list[Gpu] = []
    problems: list[Problem] = []
    for part in device.get("instances", []):
        told = part.get("memory", part)
        if "error" in told or not told["total"] > 0:
            problems.append(problem(raw, "HW-NVIDIA-UNREADABLE", f"MIG instance of {name}: {told.get('text', '')}"))
            continue
        base = common(raw, answer, device, name)
        base["name"] = text_of(part.get("name")) or f"{name} MIG"
        base |= {"uuid": text_of(part.get("uuid")), "parent": text_of(device.get("uuid"))}
        known = table_bandwidth(base["name"])
        share = share_of_bandwidth(device, base["bandwidth_bytes_per_s"], told["total"])
        base["bandwidth_bytes_per_s"] = known if known.value else share
        gpus.append(Gpu(kind=GpuKind.MIG, **base, **memory_fields(told)))
    if not device.get("instances"):
        problems.append(problem(raw, "HW-NVIDIA-MIG-EMPTY", name))
    return gpus, problems


def share_of_bandwidth(device: dict[str, Any], whole: Reading[float], part_bytes: int) -> Reading[float]:
    """An instance has as large a share of the memory's channels as of the memory."""
    card = devices().get(table_key(device))
    total = device.get("memory", {}).get("total") or (card.memory_bytes if card else None)
    if whole.value is None or not total:
        return Reading[float].unknown("a MIG instance has a share of the card's, and the card's is not known")
    return Reading[float](value=whole.value * part_bytes / total, source=whole.source)


def common(raw: RawProbe, answer: dict[str, Any], device: dict[str, Any], name: str) -> dict[str, Any]:
    """The fields that every kind of device has."""
    pci = device.get("pci", {})
    bus = normal_bus(str(pci.get("bus", "")))
    capability = device.get("compute_capability")
    cuda = answer.get("cuda")
    limit = device.get("power_limit_mw")
    display = device.get("display_active")
    fields: dict[str, Any] = {
        "vendor": "nvidia",
        "name": name,
        "pci_id": bus,
        "uuid": text_of(device.get("uuid")),
        "driver_version": reading(answer.get("driver")),
        "runtime_version": reading(f"CUDA {cuda // 1000}.{cuda % 1000 // 10}" if isinstance(cuda, int) else cuda),
        "compute_capability": reading(".".join(map(str, capability)) if isinstance(capability, list) else capability),
        "power_limit_watts": reading(limit / 1000 if isinstance(limit, int) else limit),
        "display_attached": reading(bool(display) if isinstance(display, int) else display),
        "bandwidth_bytes_per_s": bandwidth(device, name),
    }
    target = fields["compute_capability"].value
    fields["driver_floor"] = Reading[str](value=driver_floor(target), source="table")
    usable, why = engine_takes(target, fields["driver_version"].value)
    if raw.rows("dt", "tegra_release") and is_integrated(name, raw):
        told = jetson_takes(raw, name)
        if told:
            usable, why = told
            fields["driver_floor"] = Reading[str].unknown("a Jetson goes by the release of its system")
    return fields | {"usable": usable, "why": why, "backend": "cuda"}


def bandwidth(device: dict[str, Any], name: str) -> Reading[float]:
    """2 x highest memory clock x bus width / 8, as the card itself says; else, or where that is absurd, the table."""
    known = table_bandwidth(name, table_key(device))
    clock, width = device.get("memory_clock_mhz"), device.get("bus_width_bits")
    if not (isinstance(clock, int) and isinstance(width, int) and clock * width > 0):
        return known
    told = 2 * clock * 1e6 * width / 8
    if known.value is not None and not 0.5 < told / known.value < 2:
        return known
    return Reading[float](value=told, source="nvml")


def table_key(device: dict[str, Any]) -> str:
    """`10de:2684` from NVML's pciDeviceId, which has the device in its upper half."""
    told = str(device.get("pci", {}).get("device", ""))
    return f"{told[4:]}:{told[:4]}" if len(told) == 8 else ""


def unified(base: dict[str, Any], memory: Memory) -> Gpu:
    """The pool is the machine's RAM, and what is free of it is what the kernel says is available."""
    fields = base | {"integrated": True}
    if fields["bandwidth_bytes_per_s"].value is None:
        fields["bandwidth_bytes_per_s"] = jetson_bandwidth(base["name"], memory)
    return Gpu(
        kind=GpuKind.UNIFIED,
        memory_total_bytes=Reading[int](value=memory.usable_bytes, source="procfs"),
        memory_free_bytes=Reading[int](value=memory.available_bytes, source="procfs"),
        memory_reserved_bytes=Reading[int].unknown("unified memory"),
        **fields,
    )


def jetson_bandwidth(name: str, memory: Memory) -> Reading[float]:
    """Jetson modules of one name differ in memory, and with it in the width of its bus."""
    for row in tables()["jetson"]:
        if row["word"] in name and memory.total_bytes >= row.get("min_gib", 0) << 30:
            return Reading[float](value=row["gb_s"] * 1e9, source="table")
    return Reading[float].unknown(f"{name} is not in the table")


def is_integrated(name: str, raw: RawProbe) -> bool:
    """Known parts that share the machine's RAM; never concluded from an error code alone."""
    names = support()["nvidia"]["integrated"]
    # whole words: a GB100 is a card with memory of its own, a GB10 is not
    if any(re.search(rf"\b{word}\b", name, re.IGNORECASE) for word in names):
        return True
    # a Jetson's own part is not on the bus (or named above); a card that was put in is
    return bool(raw.rows("dt", "tegra_release")) and not any(row[1:2] == ("0x10de",) for row in raw.rows("pci"))


def memory_fields(told: dict[str, Any], source: Source = "nvml") -> dict[str, Any]:
    return {
        "memory_total_bytes": Reading[int](value=told["total"], source=source),
        "memory_free_bytes": Reading[int](value=min(told["free"], told["total"]), source=source),
        "memory_reserved_bytes": reading(told.get("reserved"), source),
    }


def reading(value: Any, source: Source = "nvml") -> Reading[Any]:
    """NVML's value, or why there is none."""
    if isinstance(value, dict):
        return Reading[Any].unknown(str(value.get("text", "not told")))
    return Reading[Any](value=value, source=source) if value is not None else Reading[Any].unknown("not told")


def text_of(value: Any) -> str:
    return value if isinstance(value, str) else ""


def normal_bus(bus: str) -> str:
    """NVML writes `00000000:01:00.0`, sysfs `0000:01:00.0`."""
    domain, _, rest = bus.lower().partition(":")
    number = natural(domain, 16)
    return f"{number:04x}:{rest}" if rest and number is not None else bus


def version_tuple(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def engine_takes(capability: str | None, driver: str | None) -> tuple[bool, str]:
    """Whether Ollama uses the device (its documentation's floors), and why not."""
    floors = support()["nvidia"]
    if capability and version_tuple(capability) < version_tuple(floors["compute_capability"]):
        return False, f"compute capability {capability} is below the engine's {floors['compute_capability']}"
    floor = driver_floor(capability)
    if driver and version_tuple(driver) < version_tuple(floor):
        return False, f"driver {driver} is older than {floor}, which the engine needs for this card"
    return True, f"compute capability {capability or 'unknown'}, driver {driver or 'unknown'}"


def driver_floor(capability: str | None) -> str:
    """The oldest driver for a compute capability: the engine's documentation."""
    floors = support()["nvidia"]
    old = bool(capability) and version_tuple(capability or "") <= version_tuple(floors["old_compute_capability"])
    return str(floors["old_driver"] if old else floors["driver"])


def jetson_takes(raw: RawProbe, name: str) -> tuple[bool, str] | None:
    """Jetson's integrated GPUs: by the release of its system, not by the driver's number (540.4 in R36)."""
    floors = support()["nvidia"]
    if any(word in name for word in floors["jetson_ordinary"]):
        return None
    release = re.search(r"R(\d+)", raw.get("dt", "tegra_release"))
    number = int(release[1]) if release else 0
    if number in floors["jetson_releases"]:
        return True, f"Jetson release R{number}"
    return False, f"the engine has no libraries for Jetson release R{number} on {name}"


def driver_problem(raw: RawProbe, gpus: list[Gpu]) -> Problem | None:
    """One problem for all cards that an update of the driver would make usable."""
    old = [gpu for gpu in gpus if not gpu.usable and gpu.why.startswith("driver ")]
    return problem(raw, "HW-NVIDIA-DRIVER-OLD", f"{old[0].name}: {old[0].why}") if old else None


def disagreements(raw: RawProbe, gpus: list[Gpu]) -> list[Problem]:
    """Compare with nvidia-smi's lines where the probe holds both. Whole MiB may round either way."""
    if raw.smi is None:
        return []
    from .nvidia_smi import smi_rows

    trouble = []
    rows = {row.get("uuid", ""): row for row in smi_rows(raw)}
    for gpu in gpus:
        row = rows.get(gpu.uuid)
        if row is None or gpu.kind is GpuKind.UNIFIED:
            if gpu.kind is GpuKind.DISCRETE and row is None:
                trouble.append(f"{gpu.name} {gpu.uuid} is not in nvidia-smi's list")
            continue
        told, total = row.get("memory.total", ""), gpu.memory_total_bytes.value or 0
        if told.isdigit() and abs(int(told) * MIB - total) > MIB:
            trouble.append(f"{gpu.name}: memory {told} MiB against {total / MIB:.0f} MiB")
        for field, reading_ in (("driver_version", gpu.driver_version), ("compute_cap", gpu.compute_capability)):
            if row.get(field) and reading_.value and row[field] != reading_.value and "[" not in row[field]:
                trouble.append(f"{gpu.name}: {field} {row[field]} against {reading_.value}")
    return [problem(raw, "HW-NVIDIA-DISAGREE", "; ".join(trouble))] if trouble else []
