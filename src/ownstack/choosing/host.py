"""What of the host decides the shape of the box: support, layout, process manager, ports, space."""

from __future__ import annotations

import importlib

from ..errors import ConfigError, DetectionError, UnsupportedError
from ..hardware.report import Disk, HardwareReport, Port
from ..plan import Layout, Plan, ProcessManager
from ..settings import Settings
from ..state import BoxState

TESTED = {("debian", "12"), ("debian", "13")}
EXPECTED = {
    "debian",
    "ubuntu",
    "fedora",
    "linuxmint",
    "pop",
    "raspbian",
    "rocky",
    "almalinux",
    "rhel",
    "arch",
    "opensuse-tumbleweed",
}
OLDEST_GLIBC = (2, 34)


def check_supported(report: HardwareReport, settings: Settings) -> list[str]:
    """Warnings about the system. Raises UnsupportedError or, for hardware that cannot be read, DetectionError."""
    host = report.host
    if host.os_id == "macos":
        raise UnsupportedError(
            "a Mac cannot be the box",
            hint='use it as the controller (`--host user@server`) or as the engine (`[ollama] use = "existing"`)',
        )
    if report.cpu.architecture == "other":
        raise UnsupportedError(
            "this processor is neither x86_64 nor arm64", hint="see the README for supported machines"
        )
    if host.glibc == "musl":
        raise UnsupportedError(
            f"{host.os_name} uses musl, the services need glibc", hint="use Debian, Ubuntu or Fedora"
        )
    parts = host.glibc.split(".")
    if len(parts) >= 2 and parts[0].isdigit() and tuple(map(int, parts[:2])) < OLDEST_GLIBC:
        raise UnsupportedError(
            f"{host.os_name} has glibc {host.glibc}; the services need 2.34 or newer",
            hint="use Debian 12, Ubuntu 22.04 or newer",
        )
    fatal = [problem for problem in report.problems if problem.fatal]
    if fatal and not settings.base.hardware.cpu_only:
        first = fatal[0]
        raise DetectionError(
            f"{first.id}: {first.message}", hint=f"{first.fix}; or `--cpu-only` to go on without it", code=first.id
        )
    warnings = [f"{problem.id}: {problem.message}" for problem in report.problems]
    if (host.os_id, host.os_version.split(".")[0]) not in TESTED:
        word = "expected to work, not tested" if host.os_id in EXPECTED else "unknown to this kit"
        warnings.append(f"{host.os_name} is {word}")
    return warnings


def as_root(report: HardwareReport, settings: Settings) -> bool:
    """Whether the box is installed system-wide."""
    can = report.host.sudo != "none"
    if settings.base.scope == "system" and not can:
        raise UnsupportedError(
            f"{report.host.user} cannot become root on {report.host.hostname}",
            hint='take an account with sudo, or set `scope = "user"`',
            code="no-sudo",
        )
    return can if settings.base.scope == "auto" else settings.base.scope == "system"


def process_manager(report: HardwareReport, root: bool) -> tuple[ProcessManager, list[str]]:
    """The process manager and what it cannot protect."""
    if report.host.init != "systemd":
        return "supervisord", [
            "process 1 is not systemd: services are kept by supervisord, without systemd's sandbox and network policy",
            "nothing starts the box after a reboot here: run `ownstack start`, after a power cut `ownstack up`",
        ]
    if root:
        return "systemd", []
    absent = ["without root all services run under one account, with a smaller sandbox and no network policy"]
    if not report.host.linger:
        absent.append(
            f"services end when {report.host.user} logs out, and do not start at boot: "
            "`loginctl enable-linger` changes that"
        )
    return "systemd-user", absent


def layout(report: HardwareReport, settings: Settings, root: bool, state: BoxState) -> Layout:
    if state.stands and state.manifest is not None:
        return Layout.model_validate(state.manifest["plan"]["layout"])
    return settings.layout(report.host.home, 0 if root else report.host.uid or 1)


def choose_ports(settings: Settings, roles: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """Role -> setting key -> port."""
    found = {}
    for name in roles:
        values = settings.role(name).model_dump()
        found[name] = {key: value for key, value in values.items() if key.endswith("port") and isinstance(value, int)}
    return found


def check_ports(report: HardwareReport, plan: Plan, state: BoxState) -> None:
    """Raises ConfigError that names who holds a planned port, before anything is changed."""
    mine = {int(s.get("pid", 0)) for s in state.services.values()}
    taken = {port.port: port for port in report.ports}
    used = {*taken, *(number for role in plan.roles for number in role.ports.values())}
    for role in plan.roles:
        for key, number in role.ports.items():
            port = taken.get(number)
            if port is None or (_ours(port, plan, mine) if state.stands else _named_ours(port, plan)):
                continue
            hint = f"set `[{role.name}] {key} = {free_port(number, used)}`, or stop what holds the port"
            theirs = "ollama" in f"{port.process} {port.unit}" or (
                report.ollama is not None and report.ollama.listening
            )
            if role.name == "ollama" and key == "port" and theirs:
                hint = f'to use it as it is, set `[ollama] use = "existing"`, to adopt it "adopt"; or {hint}'
            raise ConfigError(
                f"port {number} for {role.name} is taken by {describe_port(port)}", hint=hint, code="port-taken"
            )


def _ours(port: Port, plan: Plan, mine: set[int]) -> bool:
    return port.pid in mine or _named_ours(port, plan) or not port.process


def _named_ours(port: Port, plan: Plan) -> bool:
    """The box may stand although its record is gone: moved aside because it was damaged."""
    prefix = f"{plan.layout.prefix}-"
    return port.user.startswith(prefix) or port.unit.startswith(prefix)


def describe_port(port: Port) -> str:
    parts = [port.process or "another program"]
    if port.pid:
        parts.append(f"process {port.pid}")
    if port.unit:
        parts.append(f"unit {port.unit}")
    if port.user:
        parts.append(f"user {port.user}")
    return f"{parts[0]} ({', '.join(parts[1:])})" if len(parts) > 1 else parts[0]


def free_port(number: int, used: set[int]) -> int:
    """The next port that neither another program holds nor the plan gives away."""
    return next(n for n in range(number + 1, number + 1000) if n not in used)


def check_packages(report: HardwareReport, plan: Plan, state: BoxState) -> None:
    """Raises UnsupportedError where the host lacks a system package that only root could add."""
    missing = [name for name in plan.role("base").settings["packages"] if name not in report.host.tools]
    if plan.system or state.stands or not missing:
        return
    names = " ".join(missing)
    raise UnsupportedError(
        f"{report.host.hostname} lacks {names}, which a box without root cannot add",
        hint=f'install the system package {names}; or `[sources] restricted = "yes"` does without',
        code="package-missing",
    )


def check_disk(report: HardwareReport, plan: Plan, state: BoxState) -> None:
    """Raises UnsupportedError when what is still missing does not fit on the disks that get it."""
    if state.installed:
        return
    models = sum(model.download_bytes or 0 for model in plan.models)
    needs: dict[str, tuple[Disk, int]] = {}
    for folder, size in ((plan.layout.opt, plan.disk_needed_bytes - models), (plan.layout.var, models)):
        disk = _disk_of(report, folder)
        if disk is not None:
            place = disk.mount or disk.path
            needs[place] = (disk, needs.get(place, (disk, 0))[1] + size)
    for place, (disk, size) in needs.items():
        if disk.free_bytes < size:
            raise UnsupportedError(
                f"{place} has {disk.free_bytes / 2**30:.1f} GiB free, the plan needs {size / 2**30:.1f} GiB",
                hint="free space, leave out roles (`roles = [...]`), or choose smaller models",
                code="disk-too-small",
            )


def _disk_of(report: HardwareReport, folder: str) -> Disk | None:
    """The disk that `folder` lies on or will lie on."""
    there = (disk for disk in report.disks if f"{folder}/".startswith(disk.path.rstrip("/") + "/"))
    return max(there, key=lambda disk: len(disk.path), default=None)


def role_needs(roles: tuple[str, ...]) -> tuple[int, int]:
    """Memory and disk in bytes that the roles take beside models."""
    found = [importlib.import_module(f"roles.{name}").ROLE for name in roles]
    return sum(r.memory_bytes for r in found), sum(r.disk_bytes for r in found)
