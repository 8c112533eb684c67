"""Reads the host's part of a probe: operating system, CPU, memory and its limits, disks, ports."""

from __future__ import annotations

import json
import re
from typing import Literal

from .facts import RawProbe
from .problems import in_container
from .report import Cpu, Disk, ExistingOllama, Host, Interpreter, Memory, Port

NO_LIMIT = 1 << 60  # cgroup v1 says "no limit" as a number near 2**63
ANY = "0.0.0.0"  # noqa: S104 - read, not bound
STDLIB = {"json", "ctypes", "zipfile", "http", "ssl", "sqlite3"}
SUDO_GROUPS = {"sudo", "wheel", "admin"}
LAPTOP_CHASSIS = {"8", "9", "10", "14", "30", "31", "32"}  # SMBIOS: portable, laptop, notebook, tablet, convertible
ARM_PARTS = {
    "0xd08": "Cortex-A72",
    "0xd0b": "Cortex-A76",
    "0xd03": "Cortex-A53",
    "0xd40": "Neoverse V1",
    "0xd4f": "Neoverse V2",
    "0xd0c": "Neoverse N1",
    "0xd49": "Neoverse N2",
    "0xd85": "Cortex-X925",
    "0xd87": "Cortex-A725",
    "0xd42": "Cortex-A78AE",
    "0xd05": "Cortex-A55",
    "0xd83": "Neoverse V3AE",
}


def read_host(raw: RawProbe) -> Host:
    darwin = raw.get("host", "system") == "Darwin"
    kernel = raw.get("host", "kernel")
    wsl = "microsoft" in kernel.lower() or "microsoft" in raw.get("host", "version").lower()
    interpreters = read_interpreters(raw)
    libc = raw.get("os", "libc")
    return Host(
        hostname=raw.get("host", "hostname"),
        machine_id_hash=raw.get("host", "machine_id_hash"),
        os_id="macos" if darwin else raw.get("os", "ID", "unknown"),
        os_like=tuple(raw.get("os", "ID_LIKE").split()),
        os_version=raw.get("sysctl", "kern.osproductversion") if darwin else raw.get("os", "VERSION_ID"),
        os_codename=raw.get("os", "VERSION_CODENAME"),
        os_name=f"macOS {raw.get('sysctl', 'kern.osproductversion')}"
        if darwin
        else raw.get("os", "PRETTY_NAME", "Linux"),
        kernel=kernel,
        glibc=libc.removeprefix("glibc").strip(),
        init="systemd" if is_systemd(raw) else "other",
        container=in_container(raw),
        virtualisation=read_virtualisation(raw, wsl),
        wsl=wsl,
        user=raw.get("user", "name"),
        uid=raw.number("user", "uid") or 0,
        home=raw.get("user", "home"),
        groups=tuple(raw.get("user", "groups").split()),
        sudo=read_sudo(raw),
        linger=bool(raw.rows("user", "linger")),
        user_bus=bool(raw.rows("user", "bus")),
        python=tuple((i.path, i.version) for i in interpreters if i.shared and i.complete),
        interpreters=interpreters,
        tools=tuple(raw.get("tools", "list").split()),
        on_battery=read_on_battery(raw),
        timezone=raw.get("timezone", "name"),
        locale=raw.get("locale", "LANG") or raw.get("locale", "system"),
        product=read_product(raw),
        laptop=raw.get("dmi", "chassis_type") in LAPTOP_CHASSIS or raw.get("sysctl", "hw.model").startswith("MacBook"),
        reboot_required=bool(raw.rows("os", "reboot_required")),
    )


def is_systemd(raw: RawProbe) -> bool:
    """systemd really is PID 1: its folder alone may be a left-over of an image."""
    return bool(raw.rows("init", "booted")) and raw.get("init", "pid1", "systemd") in ("systemd", "init")


def read_virtualisation(raw: RawProbe, wsl: bool) -> str:
    if wsl:
        return "wsl"
    told = raw.get("virt", "vm")
    if told:
        return "" if told == "none" else told
    if raw.get("virt", "hypervisor"):
        return raw.get("virt", "hypervisor")
    return "unknown" if "hypervisor" in raw.get("cpu", "flags").split() else ""


def read_sudo(raw: RawProbe) -> Literal["root", "passwordless", "password", "none"]:
    if raw.get("user", "uid") == "0":
        return "root"
    if raw.get("sudo", "rc") == "0":
        return "passwordless"
    message = raw.get("sudo", "message").lower()
    if not raw.rows("sudo", "rc") or "no new privileges" in message or "not in the sudoers" in message:
        return "none"
    member = SUDO_GROUPS & set(raw.get("user", "groups").split())
    return "password" if member else "none"


def read_product(raw: RawProbe) -> str:
    words = [raw.get("dmi", "sys_vendor"), raw.get("dmi", "product_name")]
    return " ".join(w for w in words if w) or raw.get("dt", "model") or raw.get("sysctl", "hw.model")


def read_on_battery(raw: RawProbe) -> bool | None:
    """None where the machine has no battery (of its own: a mouse's does not count)."""
    told = raw.extras.get("battery")
    supplies = [row for row in raw.rows("power") if len(row) >= 5 and row[4] != "Device"]
    batteries = [row for row in supplies if row[1] == "Battery"]
    if not batteries:
        return None if not isinstance(told, dict) or told.get("plugged") is None else not told["plugged"]
    mains = [row[2] for row in supplies if row[1] in ("Mains", "USB", "USB_C")]
    if mains and all(state in "01" for state in mains):
        return "1" not in mains
    return any(row[3] == "Discharging" for row in batteries)


def read_interpreters(raw: RawProbe) -> tuple[Interpreter, ...]:
    found = []
    for path, _, kind, *rest in (row for row in raw.rows("python") if len(row) >= 3):
        version, modules = [*rest, "", ""][:2]
        has = tuple(filter(None, modules.split(",")))
        found.append(
            Interpreter(path=path, version=version, shared=kind == "shared", complete=set(has) >= STDLIB, modules=has)
        )
    return tuple(found)


def read_cpu(raw: RawProbe) -> Cpu:
    machine = raw.get("host", "machine")
    names = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
    threads = raw.number("cpu", "threads") or raw.number("sysctl", "hw.logicalcpu") or 1
    flags = set(raw.get("cpu", "flags").split())
    return Cpu(
        model=cpu_model(raw),
        cores=raw.number("cpu", "cores") or raw.number("sysctl", "hw.physicalcpu") or threads,
        threads=threads,
        architecture=names.get(machine, "other"),
        features=tuple(sorted(flags & FEATURES)),
    )


# what the engine's CPU back ends are chosen by
FEATURES = {
    "sse4_2", "avx", "f16c", "fma", "bmi2", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512dq", "avx512vl",
    "avx512cd", "avx512_vnni", "avx512vbmi", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "asimdhp", "fphp", "i8mm", "bf16", "sve", "sve2", "sme",
}  # fmt: skip


def cpu_model(raw: RawProbe) -> str:
    for section, key in (("cpu", "model"), ("sysctl", "machdep.cpu.brand_string"), ("cpu", "hardware")):
        if raw.get(section, key):
            return " ".join(raw.get(section, key).split())
    parts = raw.get("cpu", "arm").split()[1:]
    if parts:
        return "Arm " + " + ".join(ARM_PARTS.get(part, f"part {part}") for part in parts)
    return "unknown"


def read_memory(raw: RawProbe) -> Memory | None:
    """None when the total could not be read. Limits: the tightest cgroup on the way up, v1 or v2."""
    darwin_total = raw.number("sysctl", "hw.memsize")
    total = (raw.number("mem", "MemTotal") or 0) * 1024 or darwin_total
    if not total:
        return None
    available = raw.number("mem", "MemAvailable")
    if available is None:
        available = raw.number("mem", "MemFree") or 0
    limit, used = read_limit(raw, total)
    free = available * 1024
    if limit is not None:
        free = min(free, max(limit - used, 0))
    return Memory(
        total_bytes=total,
        available_bytes=min(free, total),
        limit_bytes=limit,
        swap_total_bytes=(raw.number("mem", "SwapTotal") or 0) * 1024,
        page_bytes=raw.number("mem", "page_bytes") or raw.number("sysctl", "hw.pagesize") or 4096,
    )


def read_limit(raw: RawProbe, total: int) -> tuple[int | None, int]:
    """The tightest memory limit below the machine's total, and what is used of it, in bytes."""
    limits = []
    for row in raw.rows("cgroup"):
        if len(row) >= 3 and row[2].isdigit() and int(row[2]) < min(NO_LIMIT, total):
            limits.append((int(row[2]), int(row[3]) if len(row) > 3 and row[3].isdigit() else 0))
    return min(limits) if limits else (None, 0)


def read_disks(raw: RawProbe) -> tuple[Disk, ...]:
    """One entry for each folder asked for; df prints its lines in the order of the folders."""
    paths = [row[0] for row in raw.rows("diskpath") if row]
    types = {row[0]: row[1] for row in raw.rows("mount") if len(row) > 1}
    rows = [row for row in raw.rows("disk") if len(row) >= 3]
    if len(paths) != len(rows):
        paths = [row[0] for row in rows]
    found: dict[str, Disk] = {}
    for path, row in zip(paths, rows, strict=True):
        if path in found or not (row[1].isdigit() and row[2].isdigit()):
            continue
        found[path] = Disk(
            path=path,
            total_bytes=int(row[1]) * 1024,
            free_bytes=int(row[2]) * 1024,
            mount=row[0],
            filesystem=types.get(row[0], ""),
            device=row[3] if len(row) > 3 else "",
        )
    return tuple(found.values())


def decode_address(text: str) -> tuple[str, int] | None:
    """`0100007F:1F90` of /proc/net/tcp{,6}: words of 4 bytes in the machine's (little) order; None: is none."""
    if not re.fullmatch(r"([0-9A-Fa-f]{8}|[0-9A-Fa-f]{32}):[0-9A-Fa-f]{1,4}", text):
        return None
    address, _, port = text.partition(":")
    words = [bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8)]
    data = b"".join(words)
    if len(data) == 4:
        return ".".join(map(str, data)), int(port, 16)
    if data == bytes(16):
        return "::", int(port, 16)
    if data == bytes(15) + b"\1":
        return "::1", int(port, 16)
    if data.startswith(bytes(10) + b"\xff\xff"):
        return ".".join(map(str, data[12:])), int(port, 16)
    return ":".join(data[i : i + 2].hex().lstrip("0") or "0" for i in range(0, 16, 2)), int(port, 16)


def read_ports(raw: RawProbe) -> tuple[Port, ...]:
    names = {row[0]: row[1] for row in raw.rows("uid") if len(row) > 1}
    units = {row[0]: unit_of(row[1]) for row in raw.rows("portcgroup") if len(row) > 1 and unit_of(row[1])}
    owners: dict[tuple[str, int], tuple[str, int]] = {}
    for text, process, number in (row for row in raw.rows("portuser") if len(row) == 3):
        host, _, local = text.rpartition(":")
        host = re.sub(r"%.*", "", host.strip("[]"))
        if local.isdigit() and number.isdigit():
            owners[(ANY if host == "*" else host, int(local))] = (process, int(number))
    extra = {(e["address"], e["port"]): e for e in raw.extras.get("ports", [])}
    found = set()
    for row in raw.rows("port"):
        key = decode_address(row[1]) if len(row) > 2 else None
        if key is None:
            continue
        address, port = key
        process, pid = owners.get(key) or owners.get((ANY, port) if address == "::" else key) or ("", 0)
        if not pid and key in extra:
            process, pid = extra[key]["process"], extra[key]["pid"]
        found.add((port, address, process, pid, names.get(row[2], row[2]), units.get(str(pid), "")))
    return tuple(
        Port(address=address, port=port, process=process, pid=pid or None, user=user, unit=unit)
        for port, address, process, pid, user, unit in sorted(found)
    )


def unit_of(cgroup: str) -> str:
    """The systemd unit of a control group's path: its last part that names one."""
    parts = [p for p in cgroup.split("/") if p.endswith((".service", ".scope"))]
    return parts[-1] if parts and not parts[-1].startswith("init.") else ""


def read_ollama(raw: RawProbe) -> ExistingOllama | None:
    if not raw.rows("ollama"):
        return None
    try:
        version = str(json.loads(raw.get("ollama", "api")).get("version", ""))
    except (ValueError, AttributeError):
        version = ""
    return ExistingOllama(
        binary=raw.get("ollama", "binary"),
        unit=raw.get("ollama", "unit"),
        listening=bool(raw.rows("ollama", "listening")),
        version=version,
        models=tuple(row[0] for row in raw.rows("ollama", "models") if row),
    )
