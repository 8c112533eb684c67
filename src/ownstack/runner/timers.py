"""What the box does by itself at its times: the timer's units or, where there are no timers, a program that waits."""

from __future__ import annotations

import contextlib
import os

from .core import Emit, Result, Spec
from .files import with_besides
from .managers import call, manager, shown


def arm(spec: Spec, emit: Emit) -> Result:
    """Let it run. spec: manager, supervisor; systemd: units (a timer first); supervisord: program."""
    if spec["manager"] == "supervisord":
        boss = manager(spec)
        right = boss.status([spec["program"]])[0]["active"]
        if not right and not spec.get("dry"):
            boss.prepare([spec["program"]])
        return {"changed": not right}
    ctl = ["systemctl", "--user"] if spec["manager"] == "systemd-user" else ["systemctl"]
    timer = spec["units"][0]
    now = shown(ctl, spec["units"], "UnitFileState", "ActiveState", "NeedDaemonReload")
    enabled = len(now) == len(spec["units"]) and all(unit.get("UnitFileState") == "enabled" for unit in now)
    right = enabled and now[0].get("ActiveState") == "active" and now[0].get("NeedDaemonReload") != "yes"
    if not right and not spec.get("dry"):
        call([*ctl, "daemon-reload"])
        call([*ctl, "enable", "--quiet", *spec["units"]])
        call([*ctl, "restart", timer])
    return {"changed": not right}


def disarm(spec: Spec, emit: Emit) -> Result:
    """Stop and remove it. spec: as for arm, and files."""
    there = [path for path in with_besides(spec["files"]) if os.path.lexists(path)]
    if not there or spec.get("dry"):
        return {"changed": bool(there)}
    if spec["manager"] == "supervisord":
        manager(spec).stop([spec["program"]])
    else:
        ctl = ["systemctl", "--user"] if spec["manager"] == "systemd-user" else ["systemctl"]
        call([*ctl, "disable", "--now", "--quiet", *spec["units"]], check=False)
    for path in [*there, *_stamps(spec)]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    manager(spec).forget([])
    return {"changed": True}


def _stamps(spec: Spec) -> list[str]:
    """Where systemd notes when a persistent timer ran last."""
    if spec["manager"] == "supervisord":
        return []
    data = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    folder = f"{data}/systemd/timers" if spec["manager"] == "systemd-user" else "/var/lib/systemd/timers"
    return [f"{folder}/stamp-{unit}" for unit in spec["units"] if unit.endswith(".timer")]
