"""Observe a machine: run the probe, then NVML where an NVIDIA driver is seen. Interprets nothing."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import zipfile
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

from ..errors import DetectionError
from .cards import devices
from .facts import RawProbe, make_anonymous

PORT_LINES = ("port\t", "portuser\t", "portcgroup\t", "uid\t")
PROBE_TIMEOUT_S = 20
NVML_TIMEOUT_S = 8
SMI_OLD_FIELDS = (
    *("index", "name", "uuid", "pci.bus_id", "driver_version"),
    *("memory.total", "memory.free", "memory.used"),
)
SMI_FIELDS = (
    *SMI_OLD_FIELDS,
    *("memory.reserved", "compute_cap", "mig.mode.current", "display_active", "power.limit", "clocks.max.memory"),
)
# runs a zip application that comes on stdin: nothing is written on the target
RUN_FROM_STDIN = """
import base64, io, sys, types, zipfile
archive = zipfile.ZipFile(io.BytesIO(base64.b64decode(sys.stdin.read())))
sys.modules["pynvml"] = module = types.ModuleType("pynvml")
exec(compile(archive.read("pynvml.py"), "pynvml.py", "exec"), module.__dict__)
exec(compile(archive.read("__main__.py"), "nvml_probe.py", "exec"), {"__name__": "__main__"})
"""
# the NVML library is found here even where the linker's cache does not know it (WSL2, NixOS, containers)
LIBRARY_PATH = "/usr/lib/wsl/lib:/run/opengl-driver/lib:/usr/local/nvidia/lib64"


class Target(Protocol):
    """Where to observe: this machine, or a session over SSH."""

    def shell(self, script: str, timeout: int = ..., root: bool | None = ...) -> tuple[int, str, str]: ...


class LocalTarget:
    """This machine, by subprocesses. A process that hangs in the kernel is left behind, not waited for."""

    python = sys.executable

    def shell(self, script: str, timeout: int = 60, root: bool | None = None) -> tuple[int, str, str]:
        process = subprocess.Popen(
            ["/bin/sh", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return 124, "", f"no answer within {timeout} s"
        return process.returncode, out.decode("utf-8", "replace"), err.decode("utf-8", "replace")


@cache
def probe_script() -> str:
    return resources.files(__package__).joinpath("probe.sh").read_text(encoding="utf-8")


@cache
def nvml_zipapp() -> bytes:
    """Our NVML probe and nvidia-ml-py's one module as a Python zip application, made in memory."""
    import pynvml

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        sources = {
            "__main__.py": resources.files(__package__).joinpath("nvml_probe.py").read_bytes(),
            "pynvml.py": Path(pynvml.__file__).read_bytes(),
        }
        for name, data in sources.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def collect(target: Target | None = None, *, wake: bool = False, both: bool = False) -> RawProbe:
    """Observe `target` (default: this machine).

    NVIDIA devices that are all asleep are left asleep where the table knows their size (waking costs
    seconds and battery); `wake` asks them all the same. `both`: run nvidia-smi as well where NVML
    answered, for a saved probe that can be compared.
    Raises DetectionError when the probe itself cannot run.
    """
    target = target or LocalTarget()
    # as the login user: who that is, and what sudo lets him do, is part of the answer
    rc, out, err = target.shell(probe_script(), PROBE_TIMEOUT_S, root=False)
    lines = tuple(make_anonymous(line) for line in out.splitlines() if "\t" in line)
    if not lines:
        raise DetectionError(
            f"the hardware probe did not run (status {rc}): {err.strip()[:300]}",
            hint="it needs a POSIX shell at /bin/sh and a user that may run commands",
            code="HW-PROBE-INCOMPLETE",
        )
    raw = RawProbe(lines=lines, extras=local_extras() if isinstance(target, LocalTarget) else {})
    if not nvidia_driver_seen(raw) or (asleep(raw) and not wake and sizes_known(raw)):
        return raw
    raw = raw.model_copy(update=ask_nvml(target, raw))
    hung = "no answer" in raw.nvml_error
    if (raw.nvml is None or both or "error" in raw.nvml) and not hung:
        raw = raw.model_copy(update=ask_smi(target, raw))
    return raw


def see_ports(target: Target, raw: RawProbe) -> RawProbe:
    """Look at the listening ports again, as root where the target allows it: names all processes."""
    _, out, _ = target.shell("PROBE_ONLY=ports; export PROBE_ONLY\n" + probe_script(), PROBE_TIMEOUT_S)
    lines = tuple(line for line in out.splitlines() if line.startswith(PORT_LINES))
    kept = tuple(line for line in raw.lines if not line.startswith(PORT_LINES))
    return raw.model_copy(update={"lines": kept + lines}) if lines else raw


def nvidia_driver_seen(raw: RawProbe) -> bool:
    """Whether there is any sign of NVIDIA's own driver, not merely of a card."""
    return bool(
        raw.rows("module", "nvidia") or raw.rows("nvlib") or raw.rows("nvidia") or raw.rows("dt", "tegra_release")
    )


def asleep(raw: RawProbe) -> bool:
    """Whether every NVIDIA device on the bus is runtime-suspended."""
    states = [row[5] for row in raw.rows("pci") if len(row) > 5 and row[1] == "0x10de"]
    return bool(states) and all(state == "suspended" for state in states)


def sizes_known(raw: RawProbe) -> bool:
    """Whether the table holds the memory of every NVIDIA device on the bus."""
    ids = [f"10de:{row[2].removeprefix('0x')}" for row in raw.rows("pci") if len(row) > 2 and row[1] == "0x10de"]
    return all(id in devices() and devices()[id].memory_bytes for id in ids)


def target_python(target: Target, raw: RawProbe) -> str:
    """An interpreter that can run the zipapp, or nothing."""
    if isinstance(target, LocalTarget):
        return target.python
    for path, _, kind, *rest in (row for row in raw.rows("python") if len(row) >= 3):
        if kind == "shared" and len(rest) == 2 and {"json", "ctypes", "zipfile"} <= set(rest[1].split(",")):
            return path
    return ""


def ask_nvml(target: Target, raw: RawProbe) -> dict[str, Any]:
    """NVML's answer as fields of RawProbe; what goes wrong becomes `nvml_error`."""
    python = target_python(target, raw)
    if not python:
        return {"nvml_error": "no complete python3 on the target"}
    archive = base64.b64encode(nvml_zipapp()).decode()
    script = (
        f"LD_LIBRARY_PATH=${{LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}}{LIBRARY_PATH}; export LD_LIBRARY_PATH\n"
        f'limit=$(command -v timeout) && limit="$limit -s KILL {NVML_TIMEOUT_S - 2}"\n'
        f"$limit {shlex.quote(python)} -I -c {shlex.quote(RUN_FROM_STDIN)} <<'END'\n{archive}\nEND\n"
    )
    rc, out, err = target.shell(script, NVML_TIMEOUT_S)
    if rc in (124, 137):
        return {"nvml_error": f"no answer from the driver within {NVML_TIMEOUT_S - 2} s"}
    try:
        answer = json.loads(out)
    except ValueError:
        return {"nvml_error": f"the NVML probe ended with status {rc}: {(err or out).strip()[-300:]}"}
    return {"nvml": answer} if isinstance(answer, dict) else {"nvml_error": "the NVML probe printed no object"}


def ask_smi(target: Target, raw: RawProbe) -> dict[str, Any]:
    """nvidia-smi's CSV as fields of RawProbe; old versions do not know all fields."""
    if not raw.rows("nvidia", "smi"):
        return {"smi_error": "nvidia-smi is not installed"}
    error = ""
    for fields in (SMI_FIELDS, SMI_OLD_FIELDS):
        query = f"--query-gpu={','.join(fields)} --format=csv,noheader,nounits"
        rc, out, err = target.shell(
            'PATH="$PATH:/usr/lib/wsl/lib:/usr/local/nvidia/bin"; LC_ALL=C; export PATH LC_ALL\n'
            'limit=$(command -v timeout) && limit="$limit -s KILL 6"\n'
            f"$limit nvidia-smi {query}; rc=$?; echo; $limit nvidia-smi -L; exit $rc",
            NVML_TIMEOUT_S * 2,
        )
        rows, _, instances = out.partition("\n\n")
        if rc == 0:
            found = {"smi": lines_of(rows), "smi_fields": fields, "smi_instances": lines_of(instances)}
            return found | ({"smi_memory": ask_instances(target)} if "MIG " in instances else {})
        error = "no answer within 6 s" if rc in (124, 137) else " ".join((out + err).split())[:400]
        if "not a valid field" not in out + err:
            break
    return {"smi_error": error or "nvidia-smi failed"}


def ask_instances(target: Target) -> tuple[str, ...]:
    """Memory of MIG instances, which only nvidia-smi's XML tells: card's UUID, index, total and free MiB."""
    _, xml, _ = target.shell('PATH="$PATH:/usr/lib/wsl/lib:/usr/local/nvidia/bin"; nvidia-smi -q -x', NVML_TIMEOUT_S)
    lines = []
    for card in xml.split("<gpu ")[1:]:
        uuid = re.search(r"<uuid>(GPU-[^<]+)</uuid>", card)
        for part in card.split("<mig_device>")[1:]:
            index, total, free = (
                re.search(pattern, part, re.DOTALL)
                for pattern in (
                    r"<index>(\d+)<",
                    r"<fb_memory_usage>.*?<total>(\d+) MiB",
                    r"<fb_memory_usage>.*?<free>(\d+) MiB",
                )
            )
            if uuid and index and total and free:
                lines.append(f"{uuid[1]} {index[1]} {total[1]} {free[1]}")
    return tuple(lines)


def lines_of(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def local_extras() -> dict[str, Any]:
    """What psutil knows beyond the probe: battery, and the processes behind listening ports."""
    try:
        import psutil
    except ImportError:
        return {}
    extras: dict[str, Any] = {}
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    if battery is not None:
        extras["battery"] = {"plugged": battery.power_plugged, "percent": battery.percent}
    if shutil.which("ss") is None:
        extras["ports"] = listening_processes(psutil)
    return extras


def listening_processes(psutil: Any) -> list[dict[str, Any]]:
    found = []
    try:
        connections = psutil.net_connections("tcp")
    except (psutil.Error, OSError):
        return []
    for connection in connections:
        if connection.status != psutil.CONN_LISTEN or connection.pid is None:
            continue
        try:
            process = psutil.Process(connection.pid)
            name, user = process.name(), process.username()
        except psutil.Error:
            continue
        found.append(
            {"address": connection.laddr.ip, "port": connection.laddr.port, "pid": process.pid}
            | {
                "process": name,
                "user": user,
            }
        )
    return found
