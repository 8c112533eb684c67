"""Debian 13 over SSH as a user whose sudo asks for a password, under a French locale, without a network.

The whole box, from a clone of the kit whose path has a space in it. There is no way out from the first command on:
everything comes from a mirror folder, its Python (made of Debian 12's packages) too.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ownstack.kit import FOLDERS
from tests.e2e.conftest import Mirror
from tests.hosts import PASSWORD, Host, Network, Options, footprint
from tests.hosts.commands import cache
from tests.hosts.kit import CHECKOUT, SERVICES, Ownstack, wait_ready

# every program line of every process, the host's too, again and again
WATCH = "while :; do cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '; echo; sleep 0.05; done"
ONLY_QDRANT = ("--set", 'roles=["qdrant"]')
LAUNCHER = ("ownstack", "src", "tools", "requirements", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def checkout(mirror: Mirror) -> Iterator[Path]:
    """The kit in a folder with a space in its name, with the lab's rows as its own."""
    with tempfile.TemporaryDirectory(dir=cache().parent) as root:
        clone = Path(root, "my box")
        clone.mkdir()
        for name in LAUNCHER:
            copy = shutil.copytree if (CHECKOUT / name).is_dir() else shutil.copy2
            copy(CHECKOUT / name, clone / name)
        for name in (*FOLDERS, "deploy.py"):
            copy = shutil.copytree if (mirror.lab.kit / name).is_dir() else shutil.copy2
            copy(mirror.lab.kit / name, clone / name)
        yield clone


@pytest.fixture(scope="module")
def box(network: Network, mirror: Mirror) -> Iterator[Host]:
    """With the one system package that a box needs, for packages are no part of a mirror."""
    options = Options("trixie", sudo="password", locale="fr_FR.UTF-8", packages=("zstd",), shared=(mirror.lab.mirror,))
    with Host(network, "french", options) as host:
        host.boot()
        host.uplink.cut()
        yield host


@pytest.fixture
def ownstack(box: Host, mirror: Mirror, checkout: Path, tmp_path: Path) -> Ownstack:
    toml = f'[sources]\nmirror = "{mirror.lab.mirror}"\n'
    return Ownstack(box, user="tester", checkout=checkout, toml=toml)


@pytest.fixture
def word(tmp_path: Path) -> tuple[str, str]:
    return "--sudo-password-file", secret(tmp_path, PASSWORD)


def secret(tmp_path: Path, text: str) -> str:
    path = tmp_path / "word"
    path.write_text(text + "\n")
    return str(path)


def left(box: Host) -> str:
    return box.output("ls -d /opt/ownstack /etc/ownstack /var/lib/ownstack 2>/dev/null || true").strip()


def test_a_wrong_password_is_tried_once_and_changes_nothing(box: Host, ownstack: Ownstack, tmp_path: Path) -> None:
    before = footprint.take(box)
    done = ownstack(
        "up", "--yes", "--json", *ONLY_QDRANT, "--sudo-password-file", secret(tmp_path, "wrong"), check=False
    )
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == "wrong-sudo-password"
    assert before.differences(footprint.take(box)) == []
    told = box.output("journalctl -t sudo --no-pager")
    assert told.count("authentication failure") == 1
    assert "1 incorrect password attempt" in told
    assert "3 incorrect password attempts" not in told


def test_the_password_is_in_no_program_line(
    box: Host, ownstack: Ownstack, word: tuple[str, str], tmp_path: Path
) -> None:
    """Watched while the first of the services is installed."""
    words = tmp_path / "words"
    with words.open("w") as out:
        watch = subprocess.Popen(["sh", "-c", WATCH], stdout=out, stderr=subprocess.DEVNULL)
        try:
            first = ownstack.json("up", "--yes", *ONLY_QDRANT, *word)
        finally:
            watch.terminate()
            watch.wait()
    assert first["verify"]["ok"]
    assert left(box).split() == ["/etc/ownstack", "/opt/ownstack", "/var/lib/ownstack"]
    everything = words.read_text(errors="replace")
    assert "runner.pyz" in everything  # the host's processes were seen, and among all their words
    assert PASSWORD not in everything  # the password was not
    assert "horse 42" not in everything
    assert PASSWORD not in box.output("journalctl --no-pager")


def test_the_whole_box_from_a_mirror_folder_alone(box: Host, ownstack: Ownstack, word: tuple[str, str]) -> None:
    assert box.run("ip route get 192.0.2.77", check=False).returncode != 0
    result = ownstack.json("up", "--yes", *word)
    print(f"the whole box on Debian 13, from a folder: {result['seconds']} s")
    assert [check for check in result["verify"]["checks"] if check["status"] != "ok"] == []
    for service in SERVICES:
        assert box.output(f"systemctl show -p User --value ownstack-{service}") == f"ownstack-{service}"
    python = "readlink -f /opt/ownstack/open_webui/current/bin/python"
    assert box.output(python).startswith("/opt/ownstack/python/releases/3.11")
    assert ownstack.json("up", "--yes", "--no-verify", *word)["changed"] == 0


def test_after_a_reboot_it_verifies(box: Host, ownstack: Ownstack, word: tuple[str, str]) -> None:
    box.reboot()
    wait_ready(box)
    assert ownstack.json("verify", *word)["ok"]
    assert box.output("ls /run/user/1000 /dev/shm /tmp | grep ^ownstack || true").strip() == ""


def test_down_purge_leaves_nothing(box: Host, ownstack: Ownstack, word: tuple[str, str]) -> None:
    ownstack("down", "--purge", "--yes", *word)
    assert left(box) == ""
    assert box.output("getent passwd | grep ^ownstack || true").strip() == ""
    assert box.run("systemctl list-unit-files --no-legend 'ownstack*'", check=False).stdout == ""
