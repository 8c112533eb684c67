"""An older kit for the lab: the versions that a box had before, so that upgrades go between real pairs.

`tests/fixtures/older/<role>/` holds the files of `roles/<role>/` that were other ones then: locks, made as
tools/refresh-locks makes the product's own. All of these versions were above their security floors in November 2026.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path

from ownstack.data import lock_hash
from ownstack.runner import npm, python_env

from . import lab
from .commands import cache, environment, run

FOLDER = lab.KIT / "tests/fixtures/older"
VERSIONS = {"open_webui": "0.11.4", "n8n": "2.40.7", "ollama": "0.32.15"}
# what takes a minute and more to make: kept in the cache for the next run's older box
HEAVY = ("open_webui", "n8n")
BUILD = """
import json, sys
from tests.hosts import lab
lab.carry.obtain(lab.chosen("ollama", json.load(sys.stdin)), print)
"""


def kit(built: lab.Lab, target: Path, say: Callable[[str], None] = print) -> Path:
    """Make `target`, the lab's kit with older versions; the lab's mirror serves both from then on."""
    shutil.copytree(built.kit, target)
    floors = tomllib.loads((target / "roles/floors.toml").read_text())
    for role, version in VERSIONS.items():
        lab.lower(floors["floor"], role, version)  # where advisories have raised it since
        shutil.copytree(FOLDER / role, target / "roles" / role, dirs_exist_ok=True)
    (target / "roles/floors.toml").write_text(lab.toml(floors))
    for role in HEAVY:
        _lock(target / "roles" / role)
    _engine(built, target, say)
    lab.languages(built, say, target / "roles")
    lab.packages_of_n8n(built, say, target / "roles/n8n")
    return target


def _lock(role: Path) -> None:
    """Name the version, and the hash of the lock where the table carries it."""
    path = role / "artifacts.toml"
    table = tomllib.loads(path.read_text())
    for artifact in table["artifact"]:
        for row in artifact["variant"]:
            if "lock" in row:
                row["version"] = VERSIONS[role.name]
                if "sha256" in row:
                    row["sha256"] = hashlib.sha256((role / row["lock"]).read_bytes()).hexdigest()
    path.write_text(lab.toml(table))


def _engine(built: lab.Lab, target: Path, say: Callable[[str], None]) -> None:
    """Ollama of that version, built here and packed as its vendor does; its rows name it."""
    path, version = target / "roles/ollama/artifacts.toml", VERSIONS["ollama"]
    rows = tomllib.loads(path.read_text())
    (artifact,) = rows["artifact"]
    vendor = next(row for row in artifact["variant"] if row.get("url") and lab.fits(row))
    before = dict(vendor)
    for row in artifact["variant"]:
        if row["kind"] == "build":
            row["version"] = version
    path.write_text(lab.toml(rows))
    source = lab.registry_row(lab.table(path)[0])
    assert source is not None
    # in a process of its own, in which the kit is the older one; what it makes is kept in the cache
    kit_of_it = environment(OWNSTACK_KIT=str(target), PYTHONPATH=str(lab.KIT))
    run(sys.executable, "-P", "-c", BUILD, data=json.dumps(source), env=kit_of_it, cwd=lab.KIT, timeout_s=1800)
    made = lab.archive("ollama", before, source, say)
    place = built.mirror / lab.place_of(made.url)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.hardlink_to(made.path)
    vendor.update(url=made.url, version=version, sha256=made.sha256, size=made.path.stat().st_size)
    path.write_text(lab.toml(rows))


def kept(role: Path) -> Path:
    """The layer (`Options.programs`) of the cache that holds what `role`, a folder of a kit, installs by its lock."""
    row = _row(role)
    digest = hashlib.sha256(lock_hash(row, role).encode())
    for module in (npm, python_env):
        digest.update(inspect.getsource(module).encode())
    return cache().parent / "lab" / f"programs-{role.name}-{row['version']}-{digest.hexdigest()[:16]}"


def keep(role: Path, layer: Path) -> Path:
    """Keep a program that takes minutes to make, where it is in the tree of a provisioned host."""
    place = kept(role)
    there = (layer / "opt/ownstack" / role.name / "releases").glob(f"{_row(role)['version']}-*")
    if not place.exists() and any(there):
        with tempfile.TemporaryDirectory(dir=place.parent) as work:
            inside = Path(work, "layer/opt/ownstack", role.name, "releases")
            inside.mkdir(parents=True)
            (found,) = (layer / inside.relative_to(Path(work, "layer"))).glob(f"{_row(role)['version']}-*")
            run("cp", "-a", found, inside)
            Path(work, "layer").rename(place)
    return place


def _row(role: Path) -> lab.Row:
    rows = (row for artifact in lab.table(role / "artifacts.toml") for row in artifact["variant"])
    return next(row for row in rows if "lock" in row)
