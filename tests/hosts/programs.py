"""The programs of a box without a mirror, installed once for each choice of artefacts and kept in the user's cache.

A later run lays them out where a box expects them, and its `up` finds them complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from ownstack.plan import ChosenArtifact

from .commands import cache
from .local import LocalBox

PROGRAMS = "opt/ownstack"


def archive(plan: dict[str, Any]) -> Path:
    """Where the programs of a plan are kept: named by all that the plan chose to install."""
    artifacts = [ChosenArtifact.model_validate(one) for role in plan["roles"] for one in role["artifacts"]]
    chosen = [[one.name, one.variant, one.version, one.platform, one.digest] for one in artifacts]
    digest = hashlib.sha256(json.dumps(sorted(chosen)).encode()).hexdigest()[:16]
    return cache().parent / "lab" / f"programs-{digest}.tar.zst"


def keep(box: LocalBox, path: Path) -> None:
    """Take the releases of a box in which `up` has run; not the links to them, nor the kit's own runner."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}")
    without = ("--exclude=*/current", f"--exclude={PROGRAMS}/base")
    subprocess.run(["tar", "-C", box.upper, "--use-compress-program=zstd -T0 -3", *without, "-cf", part, PROGRAMS],
                   check=True)  # fmt: skip
    part.rename(path)


def lay_out(box: LocalBox, path: Path) -> None:
    box.run(f"tar -C / --zstd -xpf '{path}'")
