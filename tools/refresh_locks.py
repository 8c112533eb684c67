"""Bring pins, hashes, floors and lock files up to date, and show what changed.

Parts: `kit` and `target` (Python locks), `npm` (package-lock.json), `vendors` (files of releases: what is
pinned is compared with what the vendor publishes, then moved to the newest), `floors` (advisories).
Nothing is written when a vendor publishes another hash for a pinned file: that is looked into first.
"""

from __future__ import annotations

import datetime
import difflib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from ownstack.data import version_key
from ownstack.engine.locks import compile_python
from ownstack.errors import RunError
from ownstack.upgrading import MINOR_BY_MINOR, minor_of
from ownstack.upgrading import path as upgrade_path
from tools import vendors

ROOT = Path(__file__).parents[1]
UV = [sys.executable, "-m", "uv"]


@dataclass
class Refresh:
    """What a run found out. New texts are kept here and written at the end, all or none."""

    root: Path
    read: vendors.Read
    upgrade: bool
    texts: dict[Path, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)  # what must be looked into before anything is written
    unknown: list[str] = field(default_factory=list)  # what could not be checked
    left: list[str] = field(default_factory=list)  # what could be newer and stays
    checked: list[str] = field(default_factory=list)

    @property
    def table(self) -> dict[str, Any]:
        return tomllib.loads((ROOT / "tools/locks.toml").read_text())

    def text(self, name: str | Path) -> str:
        path = self.root / name
        return self.texts.get(path, path.read_text())

    def set(self, name: str | Path, text: str) -> None:
        self.texts[self.root / name] = text


def kit(refresh: Refresh) -> None:
    """The locks of the kit's own environments."""
    for entry in refresh.table["kit"]:
        with tempfile.TemporaryDirectory() as folder:
            lock = Path(folder) / "lock"
            source = str(refresh.root / entry["from"]) if "from" in entry else "-"
            options = ["--extra", entry["extra"]] if "extra" in entry else []
            if "within" in entry:
                within = Path(folder) / "within"
                within.write_text(refresh.text(entry["within"]))
                options += ["-c", str(within)]
            if not refresh.upgrade:
                lock.write_text(refresh.text(entry["lock"]))
            command = [
                *UV, "pip", "compile", "--quiet", "--universal", "--generate-hashes", "--no-annotate", "--no-header",
                "--python-version", "3.11", *options, source, "-o", str(lock),
            ]  # fmt: skip
            names = "\n".join(entry.get("names", []))
            done = subprocess.run(command, input=names, capture_output=True, text=True, check=False)
            if done.returncode:
                refresh.problems.append(f"{entry['lock']}: {done.stderr.strip()}")
            else:
                head = "# Made by tools/refresh-locks. It holds hashes and no addresses.\n"
                refresh.set(entry["lock"], head + lock.read_text())


def target(refresh: Refresh) -> None:
    """The locks of the Python environments that are made on the target."""
    for entry in refresh.table["target"]:
        if refresh.upgrade and "moves" in entry:
            new = _newest_python(entry["moves"])
            line = rf"(?m)^{re.escape(entry['moves'])}==.*$"
            refresh.set(entry["from"], re.sub(line, f"{entry['moves']}=={new}", refresh.text(entry["from"])))
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            requirements, overrides = work / Path(entry["from"]).name, work / Path(entry["overrides"]).name
            requirements.write_text(refresh.text(entry["from"]))
            overrides.write_text(refresh.text(entry["overrides"]))
            if not refresh.upgrade:  # what is locked stays, as far as the requirements allow
                requirements.write_text(requirements.read_text() + _locked_names(refresh.text(entry["lock"])))
            compile_python(requirements, work / "lock", overrides)
            refresh.set(entry["lock"], (work / "lock").read_text())


def _locked_names(lock: str) -> str:
    return "\n" + "\n".join(re.findall(r"(?m)^([a-zA-Z0-9][^\\\n]*?) *\\?$", lock)) + "\n"


def _newest_python(name: str) -> str:
    command = [*UV, "pip", "compile", "--quiet", "--no-deps", "--no-header", "--no-annotate", "-"]
    done = subprocess.run(command, input=name, capture_output=True, text=True, check=True)
    return done.stdout.strip().split("==")[1]


def npm(refresh: Refresh) -> None:
    """package-lock.json of Node services, without download addresses."""
    program = shutil.which("npm")
    if program is None:
        refresh.unknown.append("npm is not installed: package-lock.json was left as it is")
        return
    for entry in refresh.table["npm"]:
        package, lock = f"{entry['folder']}/package.json", f"{entry['folder']}/package-lock.json"
        wanted = json.loads(refresh.text(package))
        if refresh.upgrade:
            view = subprocess.run(
                [program, "view", entry["moves"], "version"], capture_output=True, text=True, check=True
            )
            wanted["dependencies"][entry["moves"]] = view.stdout.strip()
            refresh.set(package, json.dumps(wanted, indent=2) + "\n")
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            (work / "package.json").write_text(refresh.text(package))
            (work / "package-lock.json").write_text(refresh.text(lock))
            # without an upgrade it is enough that lock and package.json agree
            action = ["install", "--package-lock-only"] if refresh.upgrade else ["ci", "--dry-run"]
            # with the rule on peer dependencies that it is installed with (runner/npm.py)
            rules = ["--ignore-scripts", "--legacy-peer-deps", "--no-audit", "--no-fund"]
            command = [program, *action, *rules, "--omit-lockfile-registry-resolved"]
            done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
            if done.returncode:
                refresh.problems.append(f"{lock}: {done.stderr.strip()[-2000:]}")
            elif refresh.upgrade:
                made = json.loads((work / "package-lock.json").read_text())
                refresh.set(lock, json.dumps(made, indent=1, ensure_ascii=False) + "\n")


Place = tuple[Path, Callable[[str], list[vendors.Pin]], Callable[[str, vendors.Pin, vendors.Pin], str]]


def vendor_files(refresh: Refresh) -> None:
    """Compare each pinned file with what its vendor publishes; then move pins to the newest release."""
    tables = sorted(refresh.root.glob("roles/*/artifacts.toml"))
    places: list[Place] = [(path, vendors.table_pins, vendors.table_with) for path in tables]
    places.append((refresh.root / "requirements/uv.vendor", vendors.row_pins, vendors.row_with))
    for path, pins, moved in places:
        for _, together in itertools.groupby(pins(refresh.text(path)), key=lambda pin: pin.group):
            old = list(together)
            agree = [_as_published(refresh, path, pin) for pin in old]
            if not all(agree) or not refresh.upgrade or old[0].step:
                continue
            new = [_newest(refresh, path, pin) for pin in old]
            if len({pin.version for pin in new}) > 1:
                refresh.left.append(f"{_where(refresh, path, old[0])}: its files are not all in the newest release")
                continue
            for before, after in zip(old, new, strict=True):
                if before == after:
                    continue
                write = moved
                if before.component in MINOR_BY_MINOR and minor_of(before.version) != minor_of(after.version):
                    write = vendors.table_with_step
                    _left_out(refresh, path, before, after)
                refresh.set(path, write(refresh.text(path), before, after))


def _left_out(refresh: Refresh, path: Path, old: vendors.Pin, new: vendors.Pin) -> None:
    """A minor version between two releases that was never pinned: data cannot go by."""
    steps = [pin.version for pin in vendors.table_pins(refresh.text(path)) if pin.step]
    try:
        upgrade_path(old.component, old.version, new.version, steps)
    except RunError as error:
        refresh.problems.append(
            f"{_where(refresh, path, old)}: {error.message}: add its latest patch as an [[artifact.step]] first"
        )


def _as_published(refresh: Refresh, path: Path, pin: vendors.Pin) -> bool:
    where = _where(refresh, path, pin)
    try:
        digest, size = vendors.published(pin, refresh.read)
    except vendors.UnknownError as reason:
        refresh.unknown.append(f"{where}: {reason}")
        return False
    if digest != pin.sha256 or (pin.size and size and pin.size != size):
        refresh.problems.append(f"{where}: the vendor publishes {digest}, {size} bytes")
        return False
    refresh.checked.append(where)
    return True


def _newest(refresh: Refresh, path: Path, pin: vendors.Pin) -> vendors.Pin:
    try:
        return vendors.newest(pin, refresh.read, refresh.table["hold"].get(pin.component, 0))
    except vendors.UnknownError as reason:
        refresh.left.append(f"{_where(refresh, path, pin)}: {reason}")
        return pin


def _where(refresh: Refresh, path: Path, pin: vendors.Pin) -> str:
    return f"{path.relative_to(refresh.root)}: {pin.component} {pin.version}, {pin.url.rsplit('/', 1)[1]}"


def floors(refresh: Refresh) -> None:
    """Raise floors to what mends every serious advisory; write today's date when all could be asked."""
    path = "roles/floors.toml"
    text = refresh.text(path)
    asked = 0
    for component, repository in refresh.table["advisories"].items():
        try:
            version, why = vendors.floor(repository, refresh.read)
        except vendors.UnknownError as reason:
            refresh.unknown.append(f"advisories of {component}: {reason}")
            continue
        asked += 1
        now = tomllib.loads(text)["floor"].get(component, "0")
        if version and version_key(version) > version_key(now):
            values = {"floor": version, "why": why.replace("\\", "").replace('"', "'")}
            for section, value in values.items():
                text = re.sub(
                    rf'(?ms)(^\[{section}\].*?^{component} = )"[^"]*"',
                    lambda match, value=value: f'{match.group(1)}"{value}"',  # type: ignore[misc]
                    text,
                    count=1,
                )
    if asked == len(refresh.table["advisories"]):
        today = datetime.datetime.now(datetime.UTC).date()
        text = re.sub(r"(?m)^checked = .*$", f"checked = {today}", text)
    refresh.set(path, text)


PARTS = {"kit": kit, "target": target, "npm": npm, "vendors": vendor_files, "floors": floors}


def changes(refresh: Refresh) -> dict[Path, str]:
    """The texts that differ from the files."""
    return {path: text for path, text in refresh.texts.items() if not path.exists() or path.read_text() != text}


def diff(refresh: Refresh) -> str:
    """What changes, readable: hashes are left out of it."""
    lines: list[str] = []
    for path, text in changes(refresh).items():
        before, after = (_without_hashes(one) for one in (path.read_text() if path.exists() else "", text))
        name = str(path.relative_to(refresh.root))
        shown = list(difflib.unified_diff(before, after, name, name, n=1, lineterm=""))
        lines += shown or [f"{name}: only hashes changed"]
    return "\n".join(lines)


def _without_hashes(text: str) -> list[str]:
    kept = [line for line in text.splitlines() if "--hash=" not in line and '"integrity"' not in line]
    return [line.rstrip(" \\") for line in kept]


@click.command()
@click.option(
    "--only", "parts", multiple=True, type=click.Choice(list(PARTS)), help="Do this part only; may be repeated."
)
@click.option("--mirror", default="", help="Folder or address that holds <host>/<path> instead of the vendors' hosts.")
@click.option("--upgrade/--no-upgrade", default=True, help="Move to newer versions, or only check and complete.")
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if anything would change.")
@click.option("--root", default=ROOT, type=click.Path(path_type=Path, exists=True), help="The checkout to work on.")
def main(parts: tuple[str, ...], mirror: str, upgrade: bool, check: bool, root: Path) -> None:
    """Bring pins, hashes, floors and lock files up to date, and show what changed."""
    os.environ.setdefault("UV_SYSTEM_CERTS", "1")  # a company's index is signed by a company's authority
    refresh = Refresh(root, vendors.reader(mirror), upgrade)
    for name in parts or PARTS:
        click.echo(f"{name} ...", err=True)
        PARTS[name](refresh)
    click.echo(diff(refresh))
    click.echo(f"{len(refresh.checked)} vendor files are as their vendors publish them", err=True)
    for line in refresh.left:
        click.echo(f"left as it is: {line}", err=True)
    for line in refresh.unknown:
        click.echo(f"not checked: {line}", err=True)
    for line in refresh.problems:
        click.echo(f"error: {line}", err=True)
    if refresh.problems:
        click.echo("hint: nothing was written; look into these first", err=True)
        sys.exit(1)
    if check:
        sys.exit(1 if changes(refresh) else 0)
    for path, text in changes(refresh).items():
        path.write_text(text)


if __name__ == "__main__":
    main()
