"""Work that goes on when the connection ends: a transient unit, or a process in a session of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time

from .managers import call


def systemd(manager: str) -> list[str]:
    """The options of systemd-run and systemctl for the given manager."""
    if manager == "systemd-user":
        os.environ.setdefault("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
        return ["--user"]
    return []


def journal_option(manager: str) -> str:
    """The option of journalctl that names a unit of the given manager."""
    return "--user-unit" if manager == "systemd-user" else "-u"


def launch(manager: str, unit: str, command: list[str], log: str, rules: tuple[str, ...] = ()) -> None:
    """Start `command` so that it outlives this process. Raises StepError where the manager refuses.

    `rules`: properties of the unit beyond the usual ones.
    """
    if manager != "supervisord":
        options = systemd(manager)
        call(["systemctl", *options, "reset-failed", f"{unit}.service"], check=False)
        # a specification holds `$` and `%` only as they are: no unit variables in it
        rule = ["--quiet", "--collect", f"--unit={unit}", f"--description={unit}", "--property=Type=exec"]
        rule += [f"--property={more}" for more in rules]
        call(["systemd-run", *options, *rule, "--", *[word.replace("$", "$$") for word in command]])
        return
    with open(log, "ab") as out:
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd="/", start_new_session=True, close_fds=True
        )


def born(pid: int) -> str:
    """Which process has the number `pid`: the boot and the clock tick of its start; empty where none runs.

    Numbers are used again, after a reboot for much the same processes: the number alone, or a word of the command line
    with it, is not enough.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
            boot = stream.read().strip()
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream:
            words = stream.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if words[0] in "ZX" else f"{boot}:{words[19]}"


def alive(pid: int, mark: str) -> bool:
    """Whether the process runs that had the number `pid` when `born` gave `mark`."""
    return bool(mark) and born(pid) == mark


def stop_unit(manager: str, unit: str, pid: int) -> None:
    """End what `launch` started."""
    if manager != "supervisord" and unit:
        call(["systemctl", *systemd(manager), "stop", f"{unit}.service"], check=False)
        return
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGTERM)
    for _ in range(100):
        if not os.path.exists(f"/proc/{pid}"):
            return
        time.sleep(0.1)
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)
