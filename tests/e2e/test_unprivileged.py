"""Debian 12 over SSH as a user who cannot become root: user units with linger, a reboot, and away again.

The programs are those of the provisioned host, laid into the user's folder (a third fresh installation would
cost minutes): `up` asks the mirror for nothing. That such a user can install is shown with Qdrant alone, at the end.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Mirror, Provisioned
from tests.hosts import Host, Network, Options
from tests.hosts.image import UNPRIVILEGED
from tests.hosts.kit import SERVICES, Ownstack, wait_ready

OPT = "home/tester/.local/share/ownstack/opt"
FOLDERS = (".local/share/ownstack", ".config/ownstack", ".local/state/ownstack")


@pytest.fixture(scope="module")
def box(network: Network, debian12: Provisioned) -> Iterator[Host]:
    with Host(network, "nobody", Options(sudo="none", packages=("zstd",))) as host:
        seed(host, debian12)
        host.boot()
        host.run("loginctl enable-linger tester")
        yield host


def seed(host: Host, debian12: Provisioned) -> None:
    """Programs of the provisioned host in the user's folder: links to its files, folders of the user's own.

    Copies, where another lane has made that host, on another file system.
    """
    target = host.folder / "upper" / OPT
    target.parent.mkdir(parents=True)
    way = "-al" if debian12.layer.stat().st_dev == target.parent.stat().st_dev else "-a"
    subprocess.run(["cp", way, debian12.layer / "opt/ownstack", target], check=True)
    shutil.rmtree(target / "base")  # the kit's own runner, which every `up` brings
    for folder in (target, *target.parents):
        if folder.name == "home":
            break
        subprocess.run(["chown", f"{UNPRIVILEGED}:{UNPRIVILEGED}", folder], check=True)
    subprocess.run(
        ["find", target, "-type", "d", "-exec", "chown", f"{UNPRIVILEGED}:{UNPRIVILEGED}", "{}", "+"], check=True
    )


@pytest.fixture(scope="module")
def ownstack(box: Host, mirror: Mirror) -> Ownstack:
    made = mirror.ownstack(box)
    made.user = "tester"
    return made


def units(box: Host, *words: str) -> str:
    return box.run(f"systemctl --user {' '.join(words)}", user="tester", check=False).stdout.strip()


def test_up_is_green_in_user_units(box: Host, ownstack: Ownstack, mirror: Mirror) -> None:
    before = len(mirror.files.asked)
    result = ownstack.json("up", "--yes")
    assert [one.path for one in mirror.files.asked[before:]] == [], "all programs are there"
    print(f"up without root: {result['seconds']} s")
    found = {check["id"]: check["status"] for check in result["verify"]["checks"]}
    # whose ports the others are, root alone could tell
    assert {name for name, status in found.items() if status != "ok"} <= {"no-open-ports"}
    assert found.get("no-open-ports") in (None, "skipped", "ok")
    for service in SERVICES:
        assert units(box, "is-active", f"ownstack-{service}") == "active"
        assert units(box, "is-enabled", f"ownstack-{service}") == "enabled"
    assert box.output("ls -d /opt/ownstack /etc/ownstack /var/lib/ownstack 2>/dev/null || true") == ""
    assert box.output("getent passwd | grep ^ownstack || true") == ""
    assert box.output("ps -eo user=,args= | grep '[/]ownstack/' | awk '{print $1}' | sort -u") == "tester"


def test_what_is_less_protected_is_said(ownstack: Ownstack) -> None:
    said = ownstack("plan")
    assert "smaller sandbox and no network policy" in said.stderr + said.stdout


def test_a_second_up_changes_nothing(ownstack: Ownstack) -> None:
    again = ownstack.json("up", "--yes", "--no-verify")
    assert [op["name"] for op in again["operations"] if op["changed"]] == []


def test_after_a_reboot_it_verifies_before_anyone_signs_in(box: Host, ownstack: Ownstack) -> None:
    box.reboot()
    wait_ready(box)
    assert ownstack.json("verify")["ok"]


def test_purge_leaves_nothing(box: Host, ownstack: Ownstack) -> None:
    ownstack("down", "--purge", "--yes")
    assert box.output(f"cd /home/tester && ls -d {' '.join(FOLDERS)} 2>/dev/null || true") == ""
    assert units(box, "list-unit-files", "--no-legend", "'ownstack*'") == ""
    assert box.output("ps -eo args= | grep '[/]ownstack/' || true") == ""
    assert box.output("ss -Hltn | awk '{print $4}' | grep -v ':22$' || true") == ""


def small(box: Host, ownstack: Ownstack) -> Ownstack:
    """A box of one service."""
    return Ownstack(box, user="tester", variables=ownstack.variables, toml=f'roles = ["qdrant"]\n{ownstack.toml}')


def test_the_user_can_install_a_service_too(box: Host, ownstack: Ownstack, mirror: Mirror) -> None:
    before = len(mirror.files.asked)
    alone = small(box, ownstack)
    result = alone.json("up", "--yes")
    assert result["verify"]["ok"]
    assert any("/qdrant/" in one.path for one in mirror.files.asked[before:])
    alone("down", "--purge", "--yes")


@pytest.mark.slow
def test_without_linger_it_is_said_and_the_services_come_and_go_with_the_user(box: Host, ownstack: Ownstack) -> None:
    box.run("loginctl disable-linger tester")
    alone = small(box, ownstack)
    try:
        assert alone.json("up", "--yes")["verify"]["ok"]
        assert "`loginctl enable-linger` changes that" in alone("plan").stdout
        end = time.monotonic() + 60  # ten seconds after the last session systemd ends what is the user's
        while box.output(f"systemctl is-active user@{UNPRIVILEGED} || true") not in ("inactive", "failed"):
            assert time.monotonic() < end, "the user's services go on"
            time.sleep(0.5)
        assert box.output("ss -Hltn 'sport = 6333'") == ""
        assert alone.json("up", "--yes")["verify"]["ok"]
    finally:
        alone("down", "--purge", "--yes")
        box.run("loginctl enable-linger tester")
