"""Debian 13 over SSH as a user whose sudo asks for a password, under a French locale. Qdrant alone, for speed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import PASSWORD, Host, Network, Options
from tests.hosts.kit import Ownstack

pytestmark = pytest.mark.e2e
# every program line of every process, the host's too, again and again
WATCH = "while :; do cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '; echo; sleep 0.02; done"
ONLY_QDRANT = ("--set", 'roles=["qdrant"]')


@pytest.fixture(scope="module")
def box(network: Network) -> Iterator[Host]:
    options = Options(suite="trixie", sudo="password", locale="fr_FR.UTF-8")
    with Host(network, "french", options) as host:
        host.boot()
        yield host


@pytest.fixture
def ownstack(box: Host) -> Ownstack:
    return Ownstack(box, user="tester")


def secret(tmp_path: Path, text: str) -> str:
    path = tmp_path / "word"
    path.write_text(text + "\n")
    return str(path)


def tries(box: Host) -> str:
    """What sudo wrote of wrong passwords."""
    return box.output("journalctl -t sudo --no-pager | grep -c 'incorrect password' || true").strip()


def left(box: Host) -> str:
    return box.output("ls -d /opt/ownstack /etc/ownstack /var/lib/ownstack 2>/dev/null || true").strip()


def test_a_wrong_password_is_tried_once_and_changes_nothing(box: Host, ownstack: Ownstack, tmp_path: Path) -> None:
    done = ownstack(
        "up", "--yes", "--json", *ONLY_QDRANT, "--sudo-password-file", secret(tmp_path, "wrong"), check=False
    )
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == "wrong-sudo-password"
    assert left(box) == ""
    assert "1 incorrect password attempt" in box.output("journalctl -t sudo --no-pager")
    assert "3 incorrect password attempts" not in box.output("journalctl -t sudo --no-pager")


def test_with_the_password_the_box_stands_system_wide(box: Host, ownstack: Ownstack, tmp_path: Path) -> None:
    word = ("--sudo-password-file", secret(tmp_path, PASSWORD))
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
    assert ownstack.json("up", "--yes", *ONLY_QDRANT, *word)["changed"] == 0
    assert box.output("ls /run/user/1000 /dev/shm /tmp | grep ^ownstack || true").strip() == ""


def test_down_purge_leaves_nothing(box: Host, ownstack: Ownstack, tmp_path: Path) -> None:
    ownstack("down", "--purge", "--yes", *ONLY_QDRANT, "--sudo-password-file", secret(tmp_path, PASSWORD))
    assert left(box) == ""
    assert box.output("getent passwd | grep ^ownstack || true").strip() == ""
