"""Debian 12 over SSH as root: the life of a box, from the first `up` to `down --purge`.

The tests of this file follow each other on one clone of the provisioned host.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Mirror, Provisioned
from tests.hosts import Host, Network, footprint
from tests.hosts.kit import SERVICES, Ownstack, processes, wait_ready

PREFIX = "ownstack-"


@pytest.fixture(scope="module")
def box(network: Network, debian12: Provisioned) -> Iterator[Host]:
    with debian12.clone(network, "life") as host:
        yield host


@pytest.fixture(scope="module")
def ownstack(box: Host, mirror: Mirror) -> Ownstack:
    return mirror.ownstack(box)


def test_the_first_up_is_green(debian12: Provisioned) -> None:
    verdict = debian12.first["verify"]
    assert [check for check in verdict["checks"] if check["status"] != "ok"] == []
    assert len(verdict["checks"]) > 10
    assert debian12.first["changed"] > 10


def test_a_second_up_changes_nothing_and_restarts_nothing(box: Host, ownstack: Ownstack) -> None:
    before = processes(box)
    again = ownstack.json("up", "--yes", "--no-verify")
    assert [op["name"] for op in again["operations"] if op["changed"]] == []
    assert processes(box) == before
    print(f"second up over SSH: {again['seconds']} s")
    assert ownstack("plan", "--exit-code", check=False).returncode == 0


def test_after_a_reboot_it_verifies(box: Host, ownstack: Ownstack) -> None:
    box.reboot()
    wait_ready(box)
    assert ownstack.json("verify")["ok"]


def test_down_keeps_what_is_the_owners(box: Host, ownstack: Ownstack) -> None:
    """Our accounts are lost meanwhile, and another takes one of their ids; `up` again gives all to the right hands."""
    email, password = ownstack.first_password("open_webui")
    sign_in = json.dumps({"email": email, "password": password})
    ownstack("down", "--yes")
    assert box.run("systemctl is-active ownstack-n8n", check=False).stdout.strip() != "active"
    assert box.output("ss -Hltn | awk '{print $4}' | grep -c ':22$'") != "0"
    ids = "getent passwd | grep ^ownstack | cut -d: -f3 | sort"
    before = box.output(ids).split()
    box.run("for name in $(getent passwd | grep -o '^ownstack[^:]*'); do userdel $name; done")
    box.run("useradd --system someone-else")
    assert box.output("id -u someone-else") in before  # what was ours would be theirs
    ownstack("up", "--yes")
    assert box.output(ids).split() != before
    assert box.output("find /var/lib/ownstack /etc/ownstack /opt/ownstack -user someone-else | head -3") == ""
    for service in SERVICES:
        name = service.replace("-", "_")
        owner = box.output(f"stat -c %U /var/lib/ownstack/{name}")
        assert owner == f"{PREFIX}{service}"
        assert box.output(f"find /var/lib/ownstack/{name} ! -user {owner} ! -user root | head -3") == ""
    said = box.run(
        "curl -s -o /dev/null -w '%{http_code}' -H 'content-type: application/json' -d @- "
        "http://127.0.0.1:8080/api/v1/auths/signin",
        data=sign_in,
    )
    assert said.stdout == "200"
    # the webhook of the demo asks the model with the stored credential: it must decrypt
    checks = {check["id"]: check["status"] for check in ownstack.json("verify")["checks"]}
    assert set(checks.values()) == {"ok"}


def test_purge_leaves_the_host_as_it_was(box: Host, ownstack: Ownstack, debian12: Provisioned) -> None:
    ownstack("down", "--purge", "--yes")
    box.run("userdel someone-else")
    assert debian12.before.differences(footprint.take(box)) == []
