"""One run at a time, a journal of its steps, and a machine whose power goes in the middle of a restore."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Mirror, Provisioned
from tests.e2e.test_backup import DUMP
from tests.fixtures.small_box import identity
from tests.hosts import Host, Network
from tests.hosts.kit import Ownstack, wait_ready

JOURNAL = "/var/lib/ownstack/journal.jsonl"
# the product, which ends itself without a word right after a step of the runner, or when an operation begins
AFTER_STEP = """
import os, signal, sys
name = sys.argv.pop(1)
from ownstack.engine.session import Session
plain = Session.step
def step(self, step, spec, *more, **given):
    found = plain(self, step, spec, *more, **given)
    if step == name:
        os.kill(os.getpid(), signal.SIGKILL)
    return found
Session.step = step
from ownstack.cli import main
sys.exit(main())
"""
IN_OPERATION = """
import os, signal, sys
name = sys.argv.pop(1)
from ownstack.engine import apply
plain = apply._progress
def counting(listen, names):
    def told(event):
        if event.get("name") == name:
            os.kill(os.getpid(), signal.SIGKILL)
        listen(event)
    return plain(told, names)
apply._progress = counting
from ownstack.cli import main
sys.exit(main())
"""
RENAME = """
import sqlite3
database = sqlite3.connect("/var/lib/ownstack/n8n/.n8n/database.sqlite")
database.execute("UPDATE workflow_entity SET name = 'mine'")
database.commit()
"""


@pytest.fixture(scope="module")
def box(network: Network, debian12: Provisioned) -> Iterator[Host]:
    with debian12.clone(network, "held") as host:
        yield host


@pytest.fixture(scope="module")
def ownstack(box: Host, mirror: Mirror) -> Ownstack:
    return mirror.ownstack(box)


def started(ownstack: Ownstack, *words: str, program: str = "", at: str = "") -> subprocess.Popen[str]:
    """A command that goes on by itself; with `program` it is the product changed by it."""
    argv = ownstack._prepared(*words)
    if program:
        argv = [str(ownstack.checkout / ".venv/bin/python"), "-P", "-c", program, at, *argv[1:]]
    return subprocess.Popen(
        argv, env=ownstack.environment, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def killed(ownstack: Ownstack, program: str, at: str, *words: str) -> None:
    """Run until it kills itself at a point."""
    process = started(ownstack, *words, program=program, at=at)
    said, told = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, (said[-1000:], told[-2000:])


def journal(box: Host) -> list[dict[str, Any]]:
    return [json.loads(line) for line in box.output(f"cat {JOURNAL}").splitlines()]


def test_the_first_up_stands_in_the_journal_step_by_step(box: Host, debian12: Provisioned) -> None:
    lines = [line for line in journal(box) if line["run"] == "up"]
    steps = [op["name"] for op in debian12.first["operations"]]
    for event in ("begin", "end"):
        found = [line["step"] for line in lines if line["event"] == event]
        assert [name for name in found if name in steps] == steps
    order = [(line["event"], line["step"]) for line in lines if line["step"] in steps]
    assert order == [(event, name) for name in steps for event in ("begin", "end")], "no step begins before one ends"
    assert {len(line["plan"]) for line in lines if line["step"] in steps} == {16}
    assert lines[-1]["event"] == "done"


def test_two_at_once_the_second_is_told_who_and_since_when(box: Host, ownstack: Ownstack) -> None:
    box.run("rm /var/lib/ownstack/ollama/.ollama/server.json")
    first = started(ownstack, "up", "--yes", "--no-verify", "--json")
    end = time.monotonic() + 60
    while "up" not in box.run("cat /run/ownstack.lock", check=False).stdout:
        assert time.monotonic() < end
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGSTOP)  # or it may be at its end before it was asked
    try:
        refused = ownstack("restart", "--json", check=False)
    finally:
        os.killpg(first.pid, signal.SIGCONT)
    error = json.loads(refused.stdout)["error"]
    assert error is not None, "the second one was let in"
    assert (refused.returncode, error["code"]) == (1, "busy")
    assert "`ownstack up` by " in error["message"]
    assert " since 20" in error["message"]
    said, _ = first.communicate(timeout=120)
    assert json.loads(said)["ok"], "the first one is not disturbed"
    assert ownstack.json("status")["holder"] == ""


def test_one_that_is_killed_holds_nothing_and_its_step_is_named(box: Host, ownstack: Ownstack) -> None:
    box.run("rm /var/lib/ownstack/ollama/.ollama/server.json")
    killed(ownstack, IN_OPERATION, "Ollama: configuration", "up", "--yes", "--no-verify")
    status = ownstack.json("status")
    assert (status["holder"], status["cut_off"]["step"]) == ("", "Ollama: configuration")
    assert "was cut off at 20" in ownstack("status").stdout
    again = ownstack("up", "--yes", "--no-verify")
    assert "'Ollama: configuration': this run goes on from there" in again.stderr
    assert ownstack.json("status")["cut_off"] is None
    assert box.output("ls /var/lib/ownstack/ollama/.ollama/server.json")


def test_the_power_goes_in_a_restore_and_the_boot_takes_it_back(box: Host, ownstack: Ownstack, tmp_path: Path) -> None:
    """Killed when the new data is in place and the old aside, then the whole host at once."""
    secret, recipient = identity()
    key = tmp_path / "identity"
    key.write_text(secret + "\n")
    made = ownstack.json("backup", "--to", "/srv/backups", "--recipient", recipient)
    box.run("systemctl stop ownstack-n8n && python3 - && systemctl start ownstack-n8n", data=RENAME)
    wait_ready(box)
    before = dumped(box)
    killed(
        ownstack, AFTER_STEP, "restore.swap", "restore", "--yes", "--identity", str(key), made["file"],
    )  # fmt: skip
    assert dumped(box) != before
    box.crash()
    assert box.output("systemctl show -p Result --value ownstack-recover") == "success"
    wait_ready(box)
    assert dumped(box) == before
    (event,) = [line for line in journal(box) if line["event"] == "recovered"]
    assert "as it was before it" in event["what"]
    status = ownstack.json("status")
    assert [one["what"] for one in status["recovered"]] == [event["what"]]
    assert all(service["running"] for service in status["services"])
    done = ownstack.json("up", "--yes")
    assert done["verify"]["ok"]
    assert dumped(box) == before


def dumped(box: Host) -> Any:
    return json.loads(box.run("python3 -", data=DUMP).stdout)


def test_a_healthy_boot_is_not_held_up(box: Host) -> None:
    names = ("Result", "InactiveEnterTimestampMonotonic", "ExecMainStartTimestampMonotonic")
    asked = f"systemctl show ownstack-recover {' '.join(f'-p {name}' for name in names)}"
    box.reboot()
    now = dict(line.split("=", 1) for line in box.output(asked).splitlines())
    assert now["Result"] == "success"
    began, ended = (int(now[f"{name}TimestampMonotonic"]) for name in ("ExecMainStart", "InactiveEnter"))
    print(f"recovery at a healthy boot: {(ended - began) / 1e6:.2f} s")
    assert ended - began < 3_000_000
    assert len([line for line in journal(box) if line["event"] == "recovered"]) <= 1
