"""The same machine without systemd: a fresh clone in an overlay of its root, and the README's command typed there.

Its programs are the product's own choice for this network. They are installed once for each such choice and kept in
the user's cache (tests/hosts/programs.py): a later run fetches none.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import Network, programs
from tests.hosts.browser import Browser, Chat
from tests.hosts.kit import CHECKOUT, Ownstack, packed, wait_ready
from tests.hosts.local import LocalBox

CLONE = Path("/root/a clone")
README = (CHECKOUT / "README.md").read_text()
COMMAND = "./ownstack up --yes"
QUESTIONS_BYTES = 5_000_000  # what asking which registries answer may take
PIDS = "ps -e -o pid=,lstart=,user:32=,comm= | grep ownstack"


@pytest.fixture(scope="module")
def box(network: Network) -> Iterator[LocalBox]:
    with LocalBox(network, "supervised") as made:
        yield made


@pytest.fixture(scope="module")
def ownstack(box: LocalBox) -> Ownstack:
    box.run(f"mkdir '{CLONE}'")
    subprocess.run(box.argv_of(["tar", "-x", "-C", str(CLONE)]), input=packed(), check=True)
    return Ownstack(box, checkout=CLONE)


def test_the_readmes_command_on_a_fresh_clone(box: LocalBox, ownstack: Ownstack) -> None:
    assert f"\n{COMMAND}\n" in README
    kept = programs.archive(ownstack.json("plan")["plan"])
    held = kept.exists()
    if held:
        programs.lay_out(box, kept)
    received, began = box.uplink.received_bytes(), time.monotonic()
    done = box.run(COMMAND, cwd=str(CLONE), timeout_s=1500)
    received = box.uplink.received_bytes() - received
    print(f"{'programs were there' if held else 'fresh'}: {time.monotonic() - began:.1f} s, {received} bytes came in")
    assert "Open it:   http://127.0.0.1:8080" in done.stdout
    if held:
        assert received < QUESTIONS_BYTES
    else:
        programs.keep(box, kept)


def test_a_second_up_changes_nothing_and_restarts_nothing(box: LocalBox, ownstack: Ownstack) -> None:
    before = box.output(PIDS)
    again = ownstack.json("up", "--yes", "--no-verify")
    assert [op["name"] for op in again["operations"] if op["changed"]] == []
    assert box.output(PIDS) == before
    print(f"second up on this machine: {again['seconds']} s")


def test_pyinfras_own_command_finds_nothing_to_change(box: LocalBox, ownstack: Ownstack) -> None:
    before = box.output(PIDS)
    done = box.run(".venv/bin/pyinfra inventory/local.py deploy.py -y", cwd=str(ownstack.checkout))
    assert "Grand total" in done.stdout + done.stderr
    assert box.output(PIDS) == before
    assert ownstack("plan", "--exit-code", check=False).returncode == 0


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
        checks = ownstack.json("verify")["checks"]
        assert [check for check in checks if check["status"] != "ok"] == []
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
