"""The same machine without systemd: an overlay of its root, where `./ownstack up --yes` runs under supervisord."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hosts import Network
from tests.hosts.browser import Browser, Chat
from tests.hosts.kit import Ownstack, wait_ready
from tests.hosts.local import LocalBox

PIDS = "ps -e -o pid=,lstart=,user:32=,comm= | grep ownstack"


@pytest.fixture(scope="module")
def box(network: Network) -> Iterator[LocalBox]:
    with LocalBox(network, "supervised") as made:
        yield made


@pytest.fixture(scope="module")
def ownstack(box: LocalBox) -> Ownstack:
    return Ownstack(box)


def test_up_is_green(ownstack: Ownstack) -> None:
    result = ownstack.json("up", "--yes")
    assert [check for check in result["verify"]["checks"] if check["status"] != "ok"] == []
    print(f"first up on this machine: {result['seconds']} s")


def test_a_second_up_changes_nothing_and_restarts_nothing(box: LocalBox, ownstack: Ownstack) -> None:
    before = box.output(PIDS)
    again = ownstack.json("up", "--yes", "--no-verify")
    assert [op["name"] for op in again["operations"] if op["changed"]] == []
    assert box.output(PIDS) == before
    print(f"second up on this machine: {again['seconds']} s")


def test_the_browser_sees_an_answer(box: LocalBox, ownstack: Ownstack) -> None:
    email, password = ownstack.first_password("open_webui")
    with ownstack.opened() as address, Browser(namespace=box.uplink.name) as browser:
        chat = Chat(browser, address)
        chat.sign_in(email, password)
        assert chat.ask("Which city is the capital of France?")
        assert browser.foreign(address.split("/")[2]) == set()


def test_without_the_uplink_it_still_verifies(box: LocalBox, ownstack: Ownstack) -> None:
    box.uplink.cut()
    try:
        assert ownstack.json("verify")["ok"]
    finally:
        box.uplink.restore()


def test_a_killed_supervisor_comes_back_with_up(box: LocalBox, ownstack: Ownstack) -> None:
    box.run("pkill -9 -x supervisord", check=False)
    box.run("pkill -9 -u ownstack-qdrant,ownstack-ollama,ownstack-open-webui,ownstack-n8n", check=False)
    ownstack("up", "--yes")
    wait_ready(box)


def test_purge_leaves_nothing(box: LocalBox, ownstack: Ownstack) -> None:
    ownstack("down", "--purge", "--yes")
    assert box.output("ls -d /opt/ownstack /etc/ownstack /var/lib/ownstack 2>/dev/null || true") == ""
    assert box.output("getent passwd | grep ^ownstack || true") == ""
    assert box.output("ps -e -o args= | grep [/]ownstack/ || true") == ""
    assert box.output("ss -Hltn") == ""
