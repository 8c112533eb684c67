"""A backup for a machine on which no box stands: what it says of itself is read first, then a box is made for it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, OwnstackError, RunError

if TYPE_CHECKING:
    from ..engine.apply import Listen
    from ..plan import Plan
    from .site import Site

# there is no runner yet. $1: the backup
TELL = 'command -v tar >/dev/null 2>&1 || exit 3; tar -xOf "$1" manifest.json'


def stands(site: Site) -> bool:
    """Whether programs are there, not only data that an earlier box left."""
    return site.state.stands and bool(site.state.services) and site.state.installed


def described(site: Site, path: str) -> dict[str, Any]:
    """What the backup that a path means says of itself without a key; {} where the target cannot read a tar.

    It is looked for on the target, then here. Raises ConfigError where it is in neither, RunError where a folder has
    those of several boxes, or it is damaged or of another version.
    """
    from ..runner.backup_file import opened
    from ..runner.backup_names import find

    file = _there(site, path)
    if file:
        return _told(site, file)
    with looking(path):
        here = find({"path": path}, lambda event: None)["data"]["file"] if Path(path).exists() else ""
        if not here:
            raise nowhere(site, path)
        with opened(here) as held:
            return dict(held.manifest)


def _there(site: Site, path: str) -> str:
    """The backup on the target; empty where it is not there."""
    from pyinfra.api.command import QuoteString, StringCommand

    from ..runner.backup_names import newest

    rc, out, _ = site.session.command(StringCommand("ls", "-1", "--", QuoteString(path)))
    names = out.splitlines() if rc == 0 else []
    if names == [path]:
        return path
    with looking(path):
        name = newest(names)
    return f"{path}/{name}" if name else ""


def _told(site: Site, file: str) -> dict[str, Any]:
    from pyinfra.api.command import QuoteString, StringCommand

    from ..runner.backup_file import damaged, of_this_schema

    command = StringCommand("sh", "-c", QuoteString(TELL), "sh", QuoteString(file))
    rc, out, err = site.session.command(command, timeout=None)
    if rc == 3:
        return {}
    try:
        about: dict[str, Any] = json.loads(out)
        whole = rc == 0 and {"schema", "versions", "services"} <= about.keys()
    except (ValueError, AttributeError):
        whole = False
    with looking(file):
        if not whole:
            raise damaged(file, f"it is no backup, or its end is missing ({err.strip()[-200:]})")
        of_this_schema(file, about)
    return about


@contextlib.contextmanager
def looking(path: str) -> Iterator[None]:
    """What the runner's own code, used on this machine, finds wrong with a folder, as an error of the run."""
    from ..runner.core import StepError

    try:
        yield
    except StepError as error:
        where = "" if path in error.message else f"{path}: "
        raise RunError(f"{where}{error.message}", hint=error.hint, code=error.code) from error


def nowhere(site: Site, path: str) -> ConfigError:
    return ConfigError(
        f"there is no backup at {path}, neither on {site.session.target} nor here",
        hint="name the file, or the folder that it lies in",
        code="no-backup",
    )


def settings_in(about: dict[str, Any], path: str) -> dict[str, Any]:
    """The settings of a backup for a box that is made for it, without those of a place.

    They lie in the clear, and nothing shows that they are as the box wrote them: they are told before they count.
    """
    from ..engine.backups import PLACE
    from ..runner.backup_file import damaged

    held = about.get("settings", {})
    with looking(path):
        if not isinstance(held, dict):
            raise damaged(path, "its settings cannot be read")
    return {key: value for key, value in held.items() if not key.startswith(PLACE)}


def named(held: dict[str, Any]) -> str:
    """Settings in words."""
    return ", ".join(f"{key} = {json.dumps(held[key])}" for key in sorted(held))


def planned(site: Site) -> Plan:
    """The plan of that box. An engine that is there already may be one only by the settings of the backup."""
    from ..engine.preflight import read_existing

    ollama = site.settings.role("ollama")
    if ollama.use != "own":
        site.state = site.state.model_copy(update=read_existing(site.session, ollama.url))
    return site.plan()


def made(site: Site, plan: Plan, listen: Listen) -> Plan:
    """Carry it out. The plan as it is recorded."""
    from ..engine.apply import execute
    from ..engine.preflight import read_state
    from ..kit import activate

    activate()
    from deploy import apply

    execute(site.session, apply, listen, plan=plan)
    site.state = read_state(site.session, plan.layout)
    return site.recorded_plan()


@contextlib.contextmanager
def empty_box(new: bool) -> Iterator[None]:
    """What fails leaves a box that was made for it: that is said."""
    try:
        yield
    except OwnstackError as error:
        if new:
            error.hint = f"{error.hint}; the box that was made for it stands, empty: the same command goes on with it"
        raise
