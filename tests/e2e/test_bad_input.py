"""A disk that is too small, and a lock with a wrong hash that is mended later, on a real host."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hosts import Host, Network, Options
from tests.hosts.kit import CHECKOUT, Ownstack

pytestmark = pytest.mark.e2e
ONLY_QDRANT = ("--set", 'roles=["qdrant"]')


@pytest.fixture(scope="module")
def box(network: Network) -> Iterator[Host]:
    with Host(network, "refusing", Options(suite="bookworm")) as host:
        host.boot()
        yield host


def refused(ownstack: Ownstack, *words: str) -> tuple[int, dict[str, Any]]:
    """Exit status and error of an `up` that must fail."""
    done = ownstack("up", "--yes", "--json", *ONLY_QDRANT, *words, check=False)
    answer = json.loads(done.stdout)
    assert not answer["ok"]
    return done.returncode, answer["error"]


def test_a_disk_that_is_too_small_is_told_beforehand(box: Host) -> None:
    box.output("mount -t tmpfs -o size=20m none /opt")
    try:
        status, error = refused(Ownstack(box), "--set", "qdrant.port=7000")
    finally:
        box.output("umount /opt")
    assert (status, error["code"]) == (3, "disk-too-small")
    assert "/opt" in error["message"]


@pytest.mark.slow  # the same by the lab's mirror is in test_refusals.py
def test_a_wrong_hash_in_the_lock_is_mended_later(box: Host, tmp_path: Path) -> None:
    kit = tmp_path / "kit"
    for name in ("roles", "templates", "hardware_profiles", "inventory"):
        shutil.copytree(CHECKOUT / name, kit / name)
    shutil.copy(CHECKOUT / "deploy.py", kit)
    lock = kit / "roles/qdrant/artifacts.toml"
    right = "8019db3c315d27fe663d639a6cdc6f60dff2ae903312daea492b159b553ad66f"
    text = lock.read_text()
    assert right in text
    lock.write_text(text.replace(right, "0" * 64))
    wrong = Ownstack(box, variables={"OWNSTACK_KIT": str(kit)})
    status, error = refused(wrong, "--set", "qdrant.port=7000")
    assert (status, error["code"]) == (1, "fetch-hash")
    assert box.output("find /opt/ownstack -name qdrant -type f").strip() == ""
    assert box.output("find /var/lib/ownstack/work -type f").strip() == ""
    # the same host, the right lock: it goes on where it stopped
    assert Ownstack(box).json("up", "--yes", *ONLY_QDRANT, "--set", "qdrant.port=7000")["verify"]["ok"]
