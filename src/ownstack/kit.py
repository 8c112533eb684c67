"""Where the kit's own folders are: the checkout, the installed wheel, or a copy named by the user.

Its data (locks, floors, catalogue, cards) may be newer than its code: they come from a bundle then, see `bundle/`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from .errors import ConfigError

FOLDERS = ("roles", "templates", "hardware_profiles", "inventory")
Result = TypeVar("Result")
_held: list[Callable[[], None]] = []


@functools.cache
def kit_root() -> Path:
    """The folder that holds deploy.py, roles/, templates/, hardware_profiles/ and inventory/.

    Order: `OWNSTACK_KIT`, the wheel's own copy, the checkout this module lies in.
    """
    named = os.environ.get("OWNSTACK_KIT")
    here = Path(__file__).resolve()
    places = [Path(named).resolve()] if named else [here.parent / "_kit", here.parents[2]]
    for place in places:
        if all((place / folder).is_dir() for folder in FOLDERS):
            return place
    raise ConfigError(
        f"no kit found in {', '.join(map(str, places))}",
        hint="a kit folder holds " + ", ".join(f"{folder}/" for folder in FOLDERS),
    )


def activate() -> Path:
    """Make `import roles` and `import deploy` mean this kit's; return its root."""
    root = str(kit_root())
    if root not in sys.path:
        sys.path.insert(0, root)
    return kit_root()


def load_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file; a syntax error names the file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}", hint="correct the file's TOML syntax") from error


def kept(function: Callable[..., Result]) -> functools._lru_cache_wrapper[Result]:
    """Like `functools.cache`, for what is read from the data: forgotten when other data are read."""
    wrapped = functools.cache(function)
    _held.append(wrapped.cache_clear)
    return wrapped


@dataclass(frozen=True)
class DataInUse:
    """Which data are read. `folder`: of a bundle; None: the own ones. `note`: why one that is there is not used."""

    folder: Path | None
    serial: int
    note: str = ""


def bundles() -> Path:
    """The user's folder of bundles: `$XDG_DATA_HOME/ownstack/kit`, in it a folder each and the link `current`."""
    base = os.environ.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local", "share")
    return Path(base) / "ownstack" / "kit"


def own_data() -> dict[str, Any]:
    """`serial` of the data that the program carries, and the least version that `needs` them."""
    path = kit_root() / "roles" / "data.toml"
    return load_toml(path) if path.exists() else {"serial": 0, "needs": "0"}


_looked_at: DataInUse | None = None


@kept
def data_in_use() -> DataInUse:
    """The user's bundle where it is newer than what the program carries and whole, else the program's own data."""
    if _looked_at is not None:
        return _looked_at
    link = bundles() / "current"
    if not link.is_symlink():
        return DataInUse(None, own_data()["serial"])
    own = int(own_data()["serial"])
    folder = link.resolve()
    try:
        about = json.loads((folder / "bundle.json").read_bytes())
        note = _unfit(folder, about, own)
        serial = int(about["serial"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        note, serial = f"the data in {folder} cannot be read ({error})", 0
    if note:
        return DataInUse(None, own, f"{note}: the program's own data are used")
    return DataInUse(folder, serial)


def _unfit(folder: Path, about: dict[str, Any], own: int) -> str:
    """Why a bundle is not used; empty where it is."""
    from . import __version__
    from .data import version_key

    if os.geteuid() != folder.stat().st_uid:
        return f"the data in {folder} belong to another account"
    if int(about["serial"]) <= own:
        return f"the program is newer than the data {about['serial']} of `ownstack upgrade --self`"
    if version_key(about["needs"]) > version_key(__version__):
        return f"the data {about['serial']} need ownstack {about['needs']}, this is {__version__}"
    for name, file in about["files"].items():
        if (folder / name).stat().st_size != file["size"]:
            return f"{folder / name} was changed"
    return ""


def own_path(name: str) -> Path:
    """Where the program keeps a file of its data, by the name that it has in a bundle."""
    if name.startswith("fitting/"):
        return Path(__file__).parent / "fitting" / "data" / name.removeprefix("fitting/")
    return kit_root() / name


def data_path(name: str) -> Path:
    """A file or folder of the data in use: `roles/...`, `hardware_profiles`, `fitting/...`."""
    folder = data_in_use().folder
    return own_path(name) if folder is None else folder / name


@contextlib.contextmanager
def data_from(folder: Path | None, serial: int = 0) -> Iterator[None]:
    """Read all data from `folder` (None: the program's own) for a while: to look at a bundle before it counts."""
    global _looked_at
    before, _looked_at = _looked_at, DataInUse(folder, serial)
    forget()
    try:
        yield
    finally:
        _looked_at = before
        forget()


def forget() -> None:
    """Read the data anew from here on: others count now."""
    for clear in _held:
        clear()
