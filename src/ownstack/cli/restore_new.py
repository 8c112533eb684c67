"""Before a new machine is made into a box: the backup is looked for, and the settings in it are read."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, RunError

if TYPE_CHECKING:
    from .site import Site


@contextlib.contextmanager
def looking(path: str) -> Iterator[None]:
    """What the runner's own code, used on this machine, finds wrong with a backup, as an error of the run."""
    from ..runner.core import StepError

    try:
        yield
    except StepError as error:
        words = error.message if path in error.message else f"{path}: {error.message}"
        raise RunError(words, hint=error.hint, code=error.code) from error


def nowhere(site: Site, path: str) -> ConfigError:
    return ConfigError(
        f"there is no backup at {path}, neither on {site.session.target} nor here",
        hint="name the file, or the folder that it lies in",
        code="no-backup",
    )


def settings_in(site: Site, path: str) -> dict[str, Any]:
    """The settings in the backup that `path` means, on the machine itself or else here; without those of a place.

    They lie in the clear, and nothing shows that they are as the box wrote them: they are told before they count.
    Raises ConfigError where there is none, RunError where it is damaged or a folder has those of several boxes.
    """
    from ..engine.backups import PLACE

    file = _there(site, path)
    found = _settings_there(site, file) if file else _settings_here(site, path)
    return {key: value for key, value in found.items() if not key.startswith(PLACE)}


def _settings_here(site: Site, path: str) -> dict[str, Any]:
    from ..runner.backup import find
    from ..runner.backup_file import opened

    with looking(path):
        file = find({"path": path}, lambda event: None)["data"]["file"]
        if not file:
            raise nowhere(site, path)
        with opened(file) as held:
            return dict(held.manifest.get("settings", {}))


def _there(site: Site, path: str) -> str:
    """The backup on the machine itself, on which there is nothing of ours yet; empty where it has none there."""
    from pyinfra.api.command import QuoteString, StringCommand

    from ..runner.backup import newest

    rc, out, _ = site.session.command(StringCommand("ls", "-1", "--", QuoteString(path)))
    names = out.splitlines() if rc == 0 else []
    if names == [path]:
        return path
    with looking(path):
        name = newest(names)
    return str(Path(path) / name) if name else ""


def _settings_there(site: Site, file: str) -> dict[str, Any]:
    from pyinfra.api.command import QuoteString, StringCommand

    from ..runner.backup_file import DAMAGED, MANIFEST

    rc, out, err = site.session.command(StringCommand("tar", "-xOf", QuoteString(file), MANIFEST), timeout=600)
    try:
        return dict(json.loads(out).get("settings", {}))
    except (ValueError, TypeError, AttributeError) as error:
        why = err.strip().splitlines()[-1] if rc and err.strip() else "its manifest cannot be read"
        raise RunError(f"{file} is no backup, or it is damaged: {why}", hint=DAMAGED, code="backup-damaged") from error
