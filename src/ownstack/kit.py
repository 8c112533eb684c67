"""Where the kit's own folders are: the checkout, the installed wheel, or a copy named by the user."""

from __future__ import annotations

import functools
import os
import sys
import tomllib
from pathlib import Path
from typing import Any

from .errors import ConfigError

FOLDERS = ("roles", "templates", "hardware_profiles", "inventory")


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
