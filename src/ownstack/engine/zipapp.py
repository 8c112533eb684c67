"""The runner as one file: the same bytes for the same code."""

from __future__ import annotations

import io
import zipfile
from functools import cache
from pathlib import Path

from .. import runner


@cache
def runner_zipapp() -> bytes:
    """A zip of the runner's modules with an entry point, with fixed times and order."""
    folder = Path(runner.__path__[0])
    files = {"__main__.py": (folder / "start.py").read_bytes()}
    files |= {f"ownstack_runner/{path.name}": path.read_bytes() for path in sorted(folder.glob("*.py"))}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
    return out.getvalue()
