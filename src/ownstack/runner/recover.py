"""What is put in order after a start of the machine, before the services run: work that a power cut left half-done.

Each part of the kit that exchanges data has a line in `RECOVERERS`. Where nothing is pending all of it takes
milliseconds and touches nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from . import restore, snapshots
from .core import Emit, Result, Spec, StepError
from .journal import holder, note
from .managers import call, shown

# name in the specification -> puts right what is pending and says what it did; "" where nothing was
RECOVERERS: dict[str, Callable[[Spec, Emit], str]] = {
    "restore": restore.recover,
    "upgrade": snapshots.recover,
}


def at_start(spec: Spec, emit: Emit) -> Result:
    """Finish or take back what was cut off; the journal says which.

    spec: journal, prefix, and for each recoverer what it is told. data: told. Raises StepError when one of them failed;
    the others were tried all the same.
    """
    told: list[str] = []
    failed: StepError | None = None
    if holder(spec["prefix"]):  # somebody works on the box: their run puts it right
        return {"changed": False, "data": {"told": told}}
    for name, recover in RECOVERERS.items():
        if name not in spec:
            continue
        try:
            what = recover(spec[name], emit)
        except (OSError, StepError) as error:
            failed = error if isinstance(error, StepError) else StepError(f"{name}: {error}")
            what = f"{name} is half-done and could not be taken back: {error}; `ownstack up` tries again"
        if what:
            told.append(what)
            note(spec["journal"], "recovered", name, what=what)
    if failed is not None:
        raise failed
    return {"changed": bool(told), "data": {"told": told}}


def arm(spec: Spec, emit: Emit) -> Result:
    """Let it run at each start of the machine. spec: manager (of systemd), unit. data: armed (it was so before)."""
    ctl = ["systemctl", "--user"] if spec["manager"] == "systemd-user" else ["systemctl"]
    if len(ctl) > 1:
        os.environ.setdefault("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
    now = shown(ctl, [spec["unit"]], "UnitFileState", "NeedDaemonReload")
    right = now == [{"UnitFileState": "enabled", "NeedDaemonReload": "no"}]
    if not right and not spec.get("dry"):
        call([*ctl, "daemon-reload"])
        call([*ctl, "enable", "--quiet", spec["unit"]])
    return {"changed": not right, "data": {"armed": right}}


STEPS: dict[str, Any] = {"arm": arm, "at_start": at_start}
