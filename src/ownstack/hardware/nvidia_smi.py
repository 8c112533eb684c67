"""The second way to NVIDIA's numbers: the CSV of nvidia-smi, where no Python or no NVML answer is there."""

from __future__ import annotations

import re
from typing import Any

from .cards import table_bandwidth
from .facts import RawProbe
from .problems import problem
from .report import Gpu, GpuKind, Memory, Problem, Reading

MIB = 1 << 20
INSTANCE = re.compile(r"^\s*MIG (\S+)\s+Device\s+(\d+): \(UUID: (MIG-[^)]+)\)")
VGPU_NAME = re.compile(r"GRID |[A-Z]\d+[A-Z]*-\d+[ABCQ]$")  # NVIDIA A16-4C, GRID T4-8Q
FAULT = re.compile(r"lost|permission|unknown error", re.IGNORECASE)
CARD = re.compile(r"^GPU (\d+): (.*) \(UUID: (GPU-[^)]+)\)")


def smi_rows(raw: RawProbe) -> list[dict[str, str]]:
    """nvidia-smi's lines by the names of the fields asked for."""
    rows = []
    for line in raw.smi or ():
        values = [value.strip() for value in line.split(",")]
        if len(values) == len(raw.smi_fields):
            rows.append(dict(zip(raw.smi_fields, values, strict=True)))
    return rows


def read_smi(raw: RawProbe, memory: Memory) -> tuple[list[Gpu], list[Problem]]:
    from .nvidia import driver_problem

    gpus: list[Gpu] = []
    problems: list[Problem] = []
    for row in smi_rows(raw):
        found, trouble = read_row(raw, row, memory)
        gpus += found
        problems += trouble
    if len(smi_rows(raw)) != len(raw.smi or ()):
        odd = next((line for line in raw.smi or () if line.count(",") + 1 != len(raw.smi_fields)), "")
        lost = "lost" in odd.lower() or "fallen off" in odd.lower()
        problems.append(problem(raw, "HW-NVIDIA-LOST" if lost else "HW-NVIDIA-UNREADABLE", odd[:200]))
    floor = driver_problem(raw, gpus)
    return gpus, problems + ([floor] if floor else [])


def read_row(raw: RawProbe, row: dict[str, str], memory: Memory) -> tuple[list[Gpu], list[Problem]]:
    from .nvidia import is_integrated, unified

    name = row.get("name", "NVIDIA card")
    base = base_fields(row, name)
    if row.get("mig.mode.current") == "Enabled":
        return read_mig_rows(raw, row, base)
    total, free = row.get("memory.total", ""), row.get("memory.free", "")
    if is_integrated(name, raw) and not FAULT.search(total):
        return [unified(base, memory)], []
    if not (total.isdigit() and free.isdigit() and int(total)):
        words = f"{total} {free}".lower()
        id = "HW-NVIDIA-LOST" if "lost" in words else "HW-NVIDIA-MEMORY-UNKNOWN"
        id = "HW-NVIDIA-NO-PERMISSION" if "permission" in words else id
        return [], [problem(raw, id, f"{name}: nvidia-smi prints {total}")]
    kind = GpuKind.VGPU if VGPU_NAME.search(name) else GpuKind.DISCRETE
    return [Gpu(kind=kind, **base, **sizes(int(total), int(free), row.get("memory.reserved", "")))], []


def base_fields(row: dict[str, str], name: str) -> dict[str, Any]:
    from .nvidia import driver_floor, engine_takes, normal_bus

    capability, driver = told(row, "compute_cap"), told(row, "driver_version")
    limit = told(row, "power.limit").value
    usable, why = engine_takes(capability.value, driver.value)
    try:
        watts = Reading[float](value=float(limit), source="nvidia-smi") if limit else Reading[float].unknown("not told")
    except ValueError:
        watts = Reading[float].unknown(f"nvidia-smi prints {limit}")
    display = told(row, "display_active").value
    return {
        "vendor": "nvidia",
        "name": name,
        "pci_id": normal_bus(row.get("pci.bus_id", "")),
        "uuid": row.get("uuid", ""),
        "driver_version": driver,
        "driver_floor": Reading[str](value=driver_floor(capability.value), source="table"),
        "runtime_version": Reading[str].unknown("nvidia-smi's table does not hold it"),
        "compute_capability": capability,
        "power_limit_watts": watts,
        "display_attached": Reading[bool](value=display == "Enabled", source="nvidia-smi")
        if display in ("Enabled", "Disabled")
        else Reading[bool].unknown("not told"),
        "bandwidth_bytes_per_s": table_bandwidth(name),
        "backend": "cuda",
        "usable": usable,
        "why": why,
    }


def told(row: dict[str, str], field: str) -> Reading[str]:
    value = row.get(field, "")
    if not value or value.startswith("["):
        return Reading[str].unknown(f"nvidia-smi prints {value or 'nothing'}")
    return Reading[str](value=value, source="nvidia-smi")


def sizes(total_mib: int, free_mib: int, reserved: str = "") -> dict[str, Any]:
    return {
        "memory_total_bytes": Reading[int](value=total_mib * MIB, source="nvidia-smi"),
        "memory_free_bytes": Reading[int](value=free_mib * MIB, source="nvidia-smi"),
        "memory_reserved_bytes": Reading[int](value=int(reserved) * MIB, source="nvidia-smi")
        if reserved.isdigit()
        else Reading[int].unknown("not told"),
    }


def read_mig_rows(raw: RawProbe, row: dict[str, str], base: dict[str, Any]) -> tuple[list[Gpu], list[Problem]]:
    """Instances: profile and UUID as `nvidia-smi -L` lists them, sizes from its XML. Never by the profile's
    name: 1g.18gb of an H200 has 16384 MiB."""
    gpus: list[Gpu] = []
    problems: list[Problem] = []
    memory = {(line[0], line[1]): line for line in (text.split() for text in raw.smi_memory) if len(line) == 4}
    parent = ""
    for line in raw.smi_instances:
        if card := CARD.match(line):
            parent = card[3]
        found = INSTANCE.match(line)
        if found is None or parent != row.get("uuid", ""):
            continue
        told = memory.get((parent, found[2]), [])
        if len(told) != 4 or not (told[2].isdigit() and told[3].isdigit() and int(told[2])):
            problems.append(
                problem(raw, "HW-NVIDIA-UNREADABLE", f"memory of the MIG instance {found[1]} of {base['name']}")
            )
            continue
        fields = base | {"name": f"{base['name']} MIG {found[1]}", "uuid": found[3], "parent": parent}
        fields["bandwidth_bytes_per_s"] = table_bandwidth(str(fields["name"]))
        gpus.append(Gpu(kind=GpuKind.MIG, **sizes(int(told[2]), int(told[3])), **fields))
    if not gpus and not problems:
        problems.append(problem(raw, "HW-NVIDIA-MIG-EMPTY", base["name"]))
    return gpus, problems
