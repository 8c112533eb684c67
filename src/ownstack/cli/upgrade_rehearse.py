"""A rehearsal: the new version starts on a copy of the data, as a second instance, before the real one is touched."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

from ..errors import OwnstackError, RunError, UnreachableError
from .output import note

if TYPE_CHECKING:
    from .upgrade_run import Change

# services that change their own database, and whose data may be copied while they run
REHEARSED = ("open_webui", "n8n")
# why there can be none just now
UNFIT = ("memory", "port-taken", "disk-full")


def wished(change: Change, asked: bool | None, major: bool) -> bool:
    """Whether to rehearse: where it was asked for, and by default for major steps."""
    return change.role in REHEARSED and (major if asked is None else asked)


def rehearse(change: Change, asked: bool) -> bool:
    """Let the new version change a copy and answer; nothing of the box is touched. Whether it was done.

    Raises RunError where it fails, and where it cannot be done although somebody asked for it.
    """
    from ..engine import upgrades
    from ..upgrading import losses

    since = upgrades.young(change.old, datetime.datetime.now(datetime.UTC))
    spec = upgrades.rehearsal_spec(change.plan, change.role, change.patience_s, since)
    try:
        change.step("snapshots.space", upgrades.space_spec(change.old, change.role))
        done = change.step("snapshots.rehearsal", spec)
        lost = losses(done.get("before", {}), done.get("after", {}))
        if lost:
            raise RunError("; ".join(lost))
    except UnreachableError:
        raise
    except OwnstackError as error:
        if error.code in UNFIT and not asked:
            note(f"{change.role} is not rehearsed: {error.message}")
            return False
        raise RunError(
            f"the rehearsal of {change.role} failed: {error.message}",
            hint="nothing was changed: the new version was tried on a copy; `--no-rehearse` goes on without",
            code="no-rehearsal" if error.code in UNFIT else "rehearsal-failed",
        ) from error
    return True
