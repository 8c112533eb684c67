"""The launcher's first start on bare Debian systems: without Python, and with a python3 that has
neither venv nor pip; as root and as a user; with and without a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import image
from tests.hosts.commands import cache

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# In a mount namespace of its own, so that nothing is left mounted: an overlay of the image, and in
# it the command as the given user.
ENTER = """
set -e
mount -t overlay overlay -o "lowerdir=$LOWER,upperdir=$WORK/upper,workdir=$WORK/work" "$WORK/root"
mount -t proc proc "$WORK/root/proc"
mount --rbind /dev "$WORK/root/dev"
exec chroot --userspec="$AS" "$WORK/root" env -i HOME="$HOME" PATH="$PATH" sh -c "cd '/home/tester/my box' && $1"
"""
MAIN = "def main():\n    import click, pyinfra, ssl, sqlite3, sys\n    print('started', sys.argv[1:])\n"


class Bare:
    """A throw-away Debian with the launcher's files in `/home/tester/my box`; its changes stay between runs."""

    def __init__(self, work: Path, suite: str, python: bool) -> None:
        self.work = work
        self.lower = ":".join(map(str, image.layers(suite, python=python)))
        for name in ("upper", "work", "root"):
            (work / name).mkdir()
        home = work / "upper/home/tester"
        box = home / "my box"
        (box / "src/ownstack/cli").mkdir(parents=True)
        shutil.copy2(ROOT / "ownstack", box)
        shutil.copytree(ROOT / "tools", box / "tools", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
        shutil.copytree(ROOT / "requirements", box / "requirements")
        shutil.copy2(ROOT / "src/ownstack/__main__.py", box / "src/ownstack")
        (box / "src/ownstack/__init__.py").touch()
        (box / "src/ownstack/cli/__init__.py").write_text(MAIN)
        for path in [home, *home.rglob("*")]:
            os.chown(path, image.UNPRIVILEGED, image.UNPRIVILEGED)

    def start(self, user: str, *, network: bool = True) -> subprocess.CompletedProcess[str]:
        home = "/root" if user == "root" else f"/home/{user}"
        variables = {"LOWER": self.lower, "WORK": str(self.work), "AS": user, "HOME": home, "PATH": PATH}
        return subprocess.run(
            ["unshare", "--mount", *(() if network else ("--net",)), "sh", "-c", ENTER, "sh", "./ownstack up 'a b'"],
            env=variables, text=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=600, check=False,
        )  # fmt: skip


@pytest.fixture
def work() -> Iterator[Path]:
    # not below /tmp, which may be an overlay itself or memory
    scratch = cache() / "scratch"
    scratch.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="launcher-", dir=scratch))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("suite", "python", "user"),
    [("bookworm", True, "tester"), ("bookworm", False, "tester"), ("trixie", True, "root"), ("trixie", False, "root")],
)
def test_first_start_on_bare_debian(work: Path, suite: str, python: bool, user: str) -> None:
    bare = Bare(work, suite, python)
    before = _packages(bare)
    first, second = bare.start(user), bare.start(user)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert first.stdout == second.stdout == "started ['up', 'a b']\n"
    assert first.stderr.count("\n") == 1
    assert ("unpacked" in first.stderr) == (not python)
    assert second.stderr == ""
    assert _packages(bare) == before, "the launcher must not install anything into the system"


@pytest.mark.parametrize("python", [True, False])
def test_without_a_network_the_message_names_the_command(work: Path, python: bool) -> None:
    run = Bare(work, "bookworm", python).start("tester", network=False)
    assert run.returncode == 1
    assert run.stdout == ""
    assert "error: " in run.stderr
    assert "sudo apt-get update && sudo apt-get install -y python3 python3-venv" in run.stderr


def _packages(bare: Bare) -> str:
    """The package database as the system sees it now."""
    changed = bare.work / "upper/var/lib/dpkg/status"
    if changed.exists():
        return changed.read_text()
    layers = [Path(folder) / "var/lib/dpkg/status" for folder in bare.lower.split(":")]
    return next(path.read_text() for path in layers if path.exists())
