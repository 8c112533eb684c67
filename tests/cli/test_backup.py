"""`backup` and `restore` as commands: what they refuse, in which order they work, what they do when a part fails."""

from __future__ import annotations

import datetime
import json
import re
import shlex
import time
import types
from pathlib import Path
from typing import Any

import pytest

from ownstack.cli import restore, restore_bare, run
from ownstack.cli.site import read_settings
from ownstack.cli.status import describe_backup, describe_overdue
from ownstack.engine import preflight
from ownstack.engine.session import MARK, Session, Target
from ownstack.errors import RunError
from ownstack.plan import Schedule
from ownstack.runner import backup
from ownstack.state import BoxState
from ownstack.verify.check import Check, Outcome
from tests.cli import standing
from tests.cli.standing import Box
from tests.fixtures.small_box import SmallBox
from tests.unit import machines

WORD = "four words in a row"
ABOUT: dict[str, Any] = {
    "file": "/mnt/b.tar", "created": "20261101T020304Z", "hostname": "old", "kit_version": "0.1.0", "versions": {},
    "bytes": 9, "parts": 4, "holds": {"accounts": 2, "chats": 3}, "opened": True, "models": [],
    "services": ["open_webui", "n8n"], "box": {"vectors": "open-webui", "models": []},
}  # fmt: skip
MADE = {"file": "/mnt/b.tar", "bytes": 2**20, "holds": {"chats": 3}, "removed": [], "seconds": 1.0, "models": [],
        "without_models": ""}  # fmt: skip


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Box:
    found = standing.stand(monkeypatch)
    standing.carried(monkeypatch, tmp_path)
    monkeypatch.setitem(standing.ANSWERS, "backup.make_outliving", MADE)
    monkeypatch.setitem(standing.ANSWERS, "backup.verify", ABOUT)
    monkeypatch.setitem(standing.ANSWERS, "backup.find", {"file": "/mnt/b.tar"})
    monkeypatch.setitem(standing.ANSWERS, "restore.models", {"models": []})
    verdict(monkeypatch, Outcome.ok("fine"))
    return found


@pytest.fixture
def word(tmp_path: Path) -> str:
    path = tmp_path / "word"
    path.write_text(WORD + "\n")
    return str(path)


def verdict(monkeypatch: pytest.MonkeyPatch, outcome: Outcome) -> None:
    one = Check("open-webui-account", "The kit signs in", lambda context: outcome, "look", "open_webui")
    monkeypatch.setattr("ownstack.verify.runner.all_checks", lambda plan: [one])


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def steps(box: Box) -> list[str]:
    found = []
    for command in box.seen.commands:
        match = re.search(r"runner'? '?([a-z0-9_]+\.[a-z0-9_]+)'? --json", command)
        if match and '"dry": true' not in command:
            found.append(match[1])
    return found


def spec(box: Box, step: str) -> dict[str, Any]:
    named = [c for c in box.seen.commands if f"{step} --json" in c.replace("'", "")]
    (command,) = [c for c in named if '"dry": true' not in c]
    words = shlex.split(command)
    while "--json" not in words:  # a shell within a shell
        words = shlex.split(next(word for word in words if "--json" in word))
    found: dict[str, Any] = json.loads(words[words.index("--json") + 1])
    return found


def test_without_a_key_it_is_refused_before_the_box_is_asked(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["backup", "--json"]) == 2
    error = told(capsys)["error"]
    assert error["code"] == "no-passphrase"
    assert "--recipient" in error["hint"]
    assert run(["restore", "/mnt/b.tar", "--json", "--yes"]) == 2
    assert told(capsys)["error"]["code"] == "no-passphrase"
    assert box.seen.commands == []


@pytest.mark.parametrize("text", ["", "\n", "short one\n"])
def test_a_passphrase_that_is_none_is_refused(
    text: str, box: Box, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "given"
    file.write_text(text)
    assert run(["backup", "--json", "--passphrase-file", str(file)]) == 2
    assert "passphrase" in told(capsys)["error"]["message"]


def test_the_passphrase_goes_into_a_private_file_and_nowhere_else(
    box: Box, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["backup", "--json", "--passphrase-file", word, "--to", "/mnt", "--keep", "3"]) == 0
    assert told(capsys)["data"]["file"] == "/mnt/b.tar"
    assert WORD not in "\n".join(box.seen.commands)
    assert [path.endswith("/word") for path, data in box.seen.files if WORD.encode() in data] == [True]
    made = spec(box, "backup.make_outliving")
    assert (made["to"], made["keep"], made["once"]) == ("/mnt", 3, True)
    assert made["passphrase_file"].endswith("/word")
    assert made["services"][0]["databases"] == ["webui.db"]
    assert any(command.count("rm -rf") for command in box.seen.commands[-2:])


@pytest.mark.parametrize("same", [True, False])
def test_a_backup_on_the_disk_of_the_box_is_told_as_that(
    same: bool, box: Box, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where /mnt/usb is not mounted it is a folder like any other."""
    monkeypatch.setitem(standing.ANSWERS, "backup.make_outliving", {**MADE, "same_disk": same})
    monkeypatch.setitem(standing.ANSWERS, "backup.place", {"elsewhere": not same})
    for more in ((), ("--every", "day")):
        assert run(["backup", "--passphrase-file", word, "--to", "/mnt/usb", *more]) == 0
        assert ("the same disk as the box" in capsys.readouterr().err) == same


def test_a_recipient_needs_no_passphrase(box: Box, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["backup", "--recipient", "age1abc"]) == 0
    out = capsys.readouterr().out
    assert "opened again and sound" in out
    made = spec(box, "backup.make_outliving")
    assert made["recipients"] == ["age1abc"]
    assert "passphrase_file" not in made
    assert made["to"] == "/var/lib/ownstack-backups"
    assert run(["backup", "--json", "--recipient", "age1abc", "--passphrase-file", word]) == 2


def test_a_folder_has_to_be_named_whole(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["backup", "--json", "--recipient", "age1abc", "--to", "here"]) == 2
    assert "absolute" in told(capsys)["error"]["message"]


@pytest.mark.parametrize("to", ["/var/lib/ownstack", "/var/lib/ownstack/open_webui/backups/", "//etc/ownstack/x/../y"])
@pytest.mark.parametrize("more", [(), ("--every", "day")])
def test_a_folder_that_goes_with_the_box_is_refused(
    to: str, more: tuple[str, ...], box: Box, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`down --purge` would take the backups away, and one in a service's data would be a part of the next."""
    assert run(["backup", "--json", "--to", to, "--passphrase-file", word, *more]) == 2
    error = told(capsys)["error"]
    assert error["code"] == "backup-inside"
    assert "/var/lib/ownstack-backups" in error["hint"]
    assert steps(box) == []


def test_a_box_without_age_says_how_to_get_it(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = dict(box.state.manifest or {})
    for part in manifest["plan"]["roles"]:
        part["artifacts"] = [item for item in part["artifacts"] if item["name"] != "age"]
    box.state = box.state.model_copy(update={"manifest": manifest})
    assert run(["backup", "--json", "--recipient", "age1abc"]) == 1
    error = told(capsys)["error"]
    assert error["code"] == "no-age"
    assert "ownstack up" in error["hint"]


def test_verify_looks_and_changes_nothing(box: Box, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["backup", "--verify", "/mnt/b.tar"]) == 0
    out = capsys.readouterr().out
    assert "sound, 4 parts" in out
    assert "2 accounts, 3 chats" in out
    assert spec(box, "backup.verify")["file"] == "/mnt/b.tar"
    assert "passphrase_file" not in spec(box, "backup.verify")
    assert run(["backup", "--verify", "/mnt/b.tar", "--json", "--passphrase-file", word]) == 0
    assert told(capsys)["data"]["opened"]
    assert "passphrase_file" in spec(box, "backup.verify")
    assert run(["backup", "--verify", "b.tar", "--json"]) == 0
    assert spec(box, "backup.verify")["file"] == f"{Path.cwd()}/b.tar", "as restore takes it"
    capsys.readouterr()
    assert "backup.make_outliving" not in steps(box)


@pytest.mark.parametrize("more", [("--every", "day"), ("--to", "/mnt"), ("--recipient", "age1x"), ("--with-models",)])
def test_looking_at_one_and_making_one_do_not_go_together(
    more: tuple[str, ...], box: Box, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["backup", "--json", "--verify", "/mnt/b.tar", *more]) == 2
    assert told(capsys)["error"]["code"] == "usage"
    assert steps(box) == []


def test_the_box_makes_them_itself_and_stops(
    box: Box, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(standing.ANSWERS, "backup.place", {"elsewhere": True})
    assert run(["backup", "--every", "week", "--to", "/mnt/usb", "--passphrase-file", word, "--json"]) == 0
    assert told(capsys)["data"] == {"every": "week", "to": "/mnt/usb", "keep": 7, "drill": False, "same_disk": False}
    files = {path.rpartition("/")[2].removesuffix(".part"): data for path, data in box.seen.files}
    set_up = json.loads(files["backup.json"])
    assert set_up["elsewhere"]
    assert (set_up["prefix"], set_up["run_dir"]) == ("ownstack", "/var/lib/ownstack/run"), "it waits while others work"
    assert set_up["drill"] is None
    assert b"ExecStartPost" not in files["ownstack-backup.service"]
    assert set_up["passphrase_file"] == "/etc/ownstack/secrets/backup_passphrase"
    assert b"OnCalendar=Mon" in files["ownstack-backup.timer"]
    assert b"Persistent=true" in files["ownstack-backup.timer"]
    assert b"/mnt/usb" in files["ownstack-backup.service"]
    assert WORD not in "\n".join(box.seen.commands)
    assert steps(box).index("backup.arm") < steps(box).index("box.write_manifest")
    recorded = spec(box, "box.write_manifest")["values"]["plan"]
    assert recorded["backup"]["every"] == "week"
    box.state = box.state.model_copy(update={"manifest": {**(box.state.manifest or {}), "plan": recorded}})

    assert run(["up", "--yes", "--json"]) == 0, "what `up` plans keeps it"
    assert "backup.arm" in steps(box)
    assert run(["status", "--json"]) == 0
    capsys.readouterr()
    assert run(["backup", "--every", "never", "--json"]) == 0
    assert told(capsys)["data"]["every"] == "never"
    assert "backup.disarm" in steps(box)
    assert "/etc/ownstack/backup.json" in spec(box, "backup.disarm")["files"]
    assert spec(box, "backup.disarm")["units"] == ["ownstack-backup.timer", "ownstack-backup.service"]
    assert spec(box, "box.write_manifest")["values"]["plan"]["backup"] is None
    assert "/etc/ownstack/secrets/backup_passphrase" in spec(box, "artifacts.remove")["paths"]


def test_a_drill_by_the_timer_runs_outside_of_its_walls(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(standing.ANSWERS, "backup.place", {"elsewhere": False})
    assert run(["backup", "--every", "day", "--drill", "--recipient", "age1abc"]) == 0
    assert "Once a week" in capsys.readouterr().out
    files = {path.rpartition("/")[2].removesuffix(".part"): data for path, data in box.seen.files}
    assert b'ExecStartPost=+"/opt/ownstack/base/current/runner" drill.scheduled' in files["ownstack-backup.service"]
    drill = json.loads(files["backup.json"])["drill"]
    assert drill["place"]["root"] == "/var/lib/ownstack/scratch/drill"
    assert spec(box, "box.write_manifest")["values"]["plan"]["backup"]["drill"]


def test_a_backup_that_is_there_is_tried(
    box: Box, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["backup", "--verify", "/mnt/b.tar", "--drill", "--json"]) == 2
    assert told(capsys)["error"]["code"] == "no-passphrase"
    assert steps(box) == []
    good = {"ok": True, "counts": {"accounts": 2, "credentials decrypted": 1}, "seconds": 40.0}
    monkeypatch.setitem(standing.ANSWERS, "drill.run_outliving", good)
    assert run(["backup", "--verify", "/mnt/b.tar", "--drill", "--passphrase-file", word]) == 0
    out = capsys.readouterr().out
    assert "restorable: second instances of the services started on it in 40.0 s" in out
    assert "2 accounts, 1 credentials decrypted" in out
    asked = spec(box, "drill.run_outliving")
    assert asked["file"] == "/mnt/b.tar"
    assert asked["passphrase_file"].startswith("/dev/shm/")
    assert WORD not in "\n".join(box.seen.commands)
    monkeypatch.setitem(standing.ANSWERS, "backup.verify", {**ABOUT, "versions": {"n8n": "99.0"}})
    assert run(["backup", "--verify", "/mnt/b.tar", "--drill", "--json", "--passphrase-file", word]) == 1
    assert told(capsys)["error"]["code"] == "backup-newer"


def test_a_new_backup_is_tried_in_the_same_run(
    box: Box, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drill = {"ok": True, "counts": {"chats": 3}, "seconds": 40.0}
    monkeypatch.setitem(standing.ANSWERS, "backup.make_outliving", {**MADE, "drill": drill})
    assert run(["backup", "--drill", "--passphrase-file", word]) == 0
    assert "restorable: second instances" in capsys.readouterr().out
    names = [one["name"] for one in spec(box, "backup.make_outliving")["drill"]["place"]["services"]]
    assert names == ["qdrant", "open_webui", "n8n"]


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({}, ["no backup was ever tried"]),
        ({"restorable": "good", "drill": "good"}, ["restorable: the backup of 2026-11-01", "tried on 2026-11-02"]),
        ({"drill": "bad"}, ["the restore drill of 2026-11-03 failed: n8n's key"]),
        ({"restorable": "good", "drill": "bad"}, ["of 2026-11-03 failed: n8n's key", "tried on 2026-11-02"]),
        ({"drill": "not"}, ["of 2026-11-03 could not be made: too little memory"]),
    ],
)
def test_status_says_whether_a_backup_was_tried(
    state: dict[str, str], words: list[str], box: Box, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    known = {
        "good": {"ok": True, "created": "20261101T120000Z", "time": noon(2), "tried": True, "message": ""},
        "bad": {"ok": False, "time": noon(3), "tried": True, "message": "n8n's key"},
        "not": {"ok": False, "time": noon(3), "tried": False, "message": "too little memory"},
    }
    monkeypatch.setitem(standing.ANSWERS, "backup.state", {key: known[value] for key, value in state.items()})
    assert run(["status"]) == 0
    out = capsys.readouterr().out
    for word in words:
        assert word in out
    assert run(["status", "--json"]) == 0
    assert told(capsys)["data"]["backup"].get("drill") == known.get(state.get("drill", ""))


def noon(day: int) -> float:
    return datetime.datetime(2026, 11, day, 12).timestamp()


def test_the_next_up_takes_away_what_a_drill_left(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["up", "--yes", "--json"]) == 0
    assert "drill.clear" not in steps(box)
    capsys.readouterr()
    box.state = box.state.model_copy(update={"work": {"drill": {"status": "running"}}})
    monkeypatch.setitem(standing.ANSWERS, "drill.clear", {"cleared": True})
    assert run(["up", "--yes", "--json"]) == 0
    assert "drill.clear" in steps(box)
    assert "a restore drill was cut off" in capsys.readouterr().err


def test_without_systemd_there_is_no_timer_and_it_is_said(
    box: Box, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    box.report = machines.report("container-cgroup-v2")
    box.state = machines.box(machines.plan(box.report))
    assert run(["backup", "--every", "day", "--passphrase-file", word, "--json"]) == 1
    assert told(capsys)["error"]["code"] == "no-timer"
    assert steps(box) == []


@pytest.mark.parametrize(("status", "shown"), [("swapped", True), ("reverted", False), ("done", False)])
def test_status_tells_of_a_restore_that_was_cut_off(
    status: str, shown: bool, box: Box, capsys: pytest.CaptureFixture[str]
) -> None:
    box.state = box.state.model_copy(update={"work": {"restore": {"status": status}}})
    assert run(["status"]) == 0
    assert ("restore" in capsys.readouterr().out) == shown


def test_status_says_when_the_last_one_was_made(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["status"]) == 0
    assert "no backup was made yet" in capsys.readouterr().out
    last = {"file": "/mnt/b.tar", "time": time.time() - 3 * 86400, "bytes": 2**20}
    monkeypatch.setitem(standing.ANSWERS, "backup.state", {"last": last, "failed": None})
    assert run(["status"]) == 0
    assert "(3 days ago), /mnt/b.tar, 1 MiB" in capsys.readouterr().out
    failed = {"time": time.time(), "message": "the disk is not there"}
    monkeypatch.setitem(standing.ANSWERS, "backup.state", {"last": last, "failed": failed})
    assert run(["status"]) == 0
    assert "failed: the disk is not there; the last good one: /mnt/b.tar" in capsys.readouterr().out
    failed = {"time": time.time(), "message": "the box was being worked on: anna", "postponed": True}
    monkeypatch.setitem(standing.ANSWERS, "backup.state", {"last": last, "failed": failed})
    assert run(["status"]) == 0
    assert "was put off: the box was being worked on: anna; the last good one" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("every", "days", "told_of"), [("day", 1.5, False), ("day", 3, True), ("week", 8, False), ("week", 10, True)]
)
def test_status_says_when_one_is_overdue(
    every: str, days: float, told_of: bool, box: Box, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Where its disk is away systemd does not start the unit, and one that was killed has noted nothing."""
    wanted = Schedule(every=every, to="/mnt/usb", keep=7)
    box.state = machines.box(machines.plan(box.report).model_copy(update={"backup": wanted}))
    last = {"file": "/mnt/b.tar", "time": time.time() - days * 86400, "bytes": 2**20}
    monkeypatch.setitem(standing.ANSWERS, "backup.state", {"last": last, "failed": None})
    assert run(["status"]) == 0
    line = f"though one is due every {every}: `systemctl status ownstack-backup`"
    assert (line in capsys.readouterr().out) == told_of
    if told_of:
        failed = {"time": time.time() - 3600, "message": "disk-full"}
        assert describe_overdue({"every": every, "unit": "", "last": last, "failed": failed}) == ""
    assert describe_overdue({"every": "never", "last": {"time": 0.1}}) == ""
    assert "yet to come" in describe_backup({"every": every})


def test_a_restore_in_its_order(box: Box, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["restore", "/mnt/b.tar", "--json", "--yes", "--passphrase-file", word]) == 0
    data = told(capsys)["data"]
    assert data["holds"] == ABOUT["holds"]
    assert [check["status"] for check in data["checks"]] == ["ok"]
    done = steps(box)
    order = ["backup.find", "backup.verify", "restore.stage", "restore.swap", "secrets.fill", "box.control",
             "restore.vectors", "restore.models", "box.activate"]  # fmt: skip
    places = [done.index(name) for name in order]
    assert places == sorted(places)
    assert done.index("restore.finish") > max(i for i, name in enumerate(done) if name == "box.activate")
    assert "restore.revert" not in done
    stopped = spec(box, "restore.swap")["units"]
    assert "ownstack-n8n" in stopped
    assert "ownstack-ollama" not in stopped
    assert WORD not in "\n".join(box.seen.commands)


@pytest.mark.parametrize(
    ("services", "versions", "exchanged", "records"),
    [
        (["open_webui"], {"open-webui": "0.1", "qdrant": "1.0"}, ["open_webui", "qdrant"], []),
        (["n8n"], {"n8n": "1.0"}, ["n8n"], ["n8n-content.json"]),
    ],
)
def test_what_is_not_in_the_backup_stays_as_it_is(
    services: list[str], versions: dict[str, str], exchanged: list[str], records: list[str], box: Box, word: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A box that has more than the one of the backup had: with an empty folder in its place the rest would be lost."""
    about = {**ABOUT, "services": services, "versions": versions, "box": {"vectors": "open-webui-other", "models": []}}
    monkeypatch.setitem(standing.ANSWERS, "backup.verify", about)
    assert run(["restore", "/mnt/b.tar", "--yes", "--passphrase-file", word]) == 0
    for step in ("restore.stage", "restore.swap"):
        assert [one["name"] for one in spec(box, step)["services"]] == exchanged
        assert spec(box, step)["records"] == records
    left = {"open_webui", "n8n", "qdrant"} - set(exchanged)
    said = capsys.readouterr().err
    assert {name for name in left if f"{name} is not in the backup: its data stays" in said} == left


def test_a_restore_that_does_not_verify_is_taken_back(
    box: Box, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict(monkeypatch, Outcome.failed("no sign-in"))
    assert run(["restore", "/mnt/b.tar", "--json", "--yes", "--passphrase-file", word]) == 1
    error = told(capsys)["error"]
    assert error["code"] == "restore-reverted"
    assert "no sign-in" in error["message"]
    done = steps(box)
    assert "restore.finish" not in done
    back = done.index("restore.revert")
    assert "secrets.fill" in done[back:]
    assert "box.activate" in done[back:]
    assert "files.give_up" not in done[back:], "files that somebody edited were put back with the keys that they hold"


def test_an_edited_file_that_held_replaced_keys_is_named(
    box: Box, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = "/etc/ownstack/n8n/env"
    monkeypatch.setitem(standing.ANSWERS, "files.give_up", {"paths": [path]})
    assert run(["restore", "/mnt/b.tar", "--yes", "--passphrase-file", word]) == 0
    assert f"{path} was edited by hand" in capsys.readouterr().err


def test_where_the_way_back_fails_too_the_first_fault_is_told(
    box: Box, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fault, real = {"event": "error", "code": "disk-full", "message": "no room aside", "hint": "free"}, standing.runner
    monkeypatch.setattr(
        standing, "runner", lambda text: [json.dumps(fault)] if "restore.revert" in text else real(text)
    )
    verdict(monkeypatch, Outcome.failed("no sign-in"))
    assert run(["restore", "/mnt/b.tar", "--json", "--yes", "--passphrase-file", word]) == 1
    error = told(capsys)["error"]
    assert (error["code"], error["hint"].split(": ")[0]) == ("disk-full", "free; then run `ownstack up`")
    assert error["message"].startswith("no room aside (on the way back, after this: open-webui-account: no sign-in")


def test_a_fault_of_ours_leaves_no_box_with_half_of_a_backup(
    box: Box, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> None:
        raise ValueError("of ours")

    monkeypatch.setattr("ownstack.verify.runner.verify", broken)
    assert run(["restore", "/mnt/b.tar", "--json", "--yes", "--passphrase-file", word]) == 1
    error = told(capsys)["error"]
    assert error["code"] == "restore-reverted"
    assert "a fault of ownstack (ValueError: of ours)" in error["message"]
    assert "restore.revert" in steps(box)


def test_an_identity_that_is_not_there_is_told_before_anything_is_made(
    box: Box, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["restore", "/mnt/b.tar", "--json", "--yes", "--identity", "/nowhere/identity"]) == 2
    assert "/nowhere/identity" in told(capsys)["error"]["message"]
    assert box.seen.commands == []


@pytest.mark.parametrize("fault", ["", "checks", "newer"])
def test_what_was_uploaded_for_a_restore_goes_whatever_becomes_of_it(
    fault: str, box: Box, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = "/var/lib/ownstack/work/restore-b.tar"
    monkeypatch.setitem(standing.ANSWERS, "backup.find", {"file": path})
    if fault == "newer":
        monkeypatch.setitem(standing.ANSWERS, "backup.verify", {**ABOUT, "versions": {"n8n": "99.0"}})
    if fault == "checks":
        verdict(monkeypatch, Outcome.failed("no sign-in"))
    assert run(["restore", path, "--json", "--yes", "--passphrase-file", word]) == (1 if fault else 0)
    assert steps(box)[-1] == "artifacts.remove"
    assert spec(box, "artifacts.remove")["paths"] == [path]


@pytest.mark.parametrize(
    ("about", "code"),
    [
        ({"versions": {"n8n": "99.0"}}, "backup-newer"),
        ({"versions": {"qdrant": "99.0"}}, "backup-newer"),
        ({"services": ["open_webui", "spare_role"]}, "role-missing"),
        ({"services": ["n8n"], "versions": {"qdrant": "1.0"}}, "backup-vectors"),
    ],
)
def test_what_the_box_cannot_read_is_refused_beforehand(
    about: dict[str, Any], code: str, box: Box, word: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setitem(standing.ANSWERS, "backup.verify", {**ABOUT, **about})
    assert run(["restore", "/mnt/b.tar", "--json", "--yes", "--passphrase-file", word]) == 1
    assert told(capsys)["error"]["code"] == code
    assert not [name for name in steps(box) if name.startswith("restore.")]


def test_a_backup_that_is_nowhere_is_told(
    box: Box, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(standing.ANSWERS, "backup.find", {"file": ""})
    assert run(["restore", "/mnt/none", "--json", "--yes", "--passphrase-file", word]) == 2
    assert told(capsys)["error"]["code"] == "no-backup"


def test_another_embedding_model_indexes_documents_anew(
    box: Box, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = machines.plan(box.report)
    embedding = plan.model("embedding")
    assert embedding is not None
    mine = embedding.model_dump(mode="json")
    same = {"vectors": "open-webui-before", "models": [mine]}
    monkeypatch.setitem(standing.ANSWERS, "backup.verify", {**ABOUT, "box": same})
    assert run(["restore", "/mnt/b.tar", "--json", "--yes", "--passphrase-file", word]) == 0
    assert "open_webui.reindex" not in steps(box)
    assert any("open-webui-before" in data.decode("utf-8", "replace") for _, data in box.seen.files) or any(
        "open-webui-before" in command for command in box.seen.commands
    )
    other = {"vectors": "open-webui", "models": [{**mine, "tag": "other:1"}]}
    monkeypatch.setitem(standing.ANSWERS, "backup.verify", {**ABOUT, "box": other})
    assert run(["restore", "/mnt/b.tar", "--json", "--yes", "--passphrase-file", word]) == 0
    assert spec(box, "open_webui.reindex")["qdrant"]["old"] == "open-webui"
    assert spec(box, "open_webui.reindex")["carried"]
    assert steps(box).index("open_webui.vectors") < steps(box).index("open_webui.reindex")
    capsys.readouterr()


def test_the_next_up_takes_back_what_was_cut_off(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = box.state.model_copy(update={"work": {"restore": {"status": "swapped"}}})
    box.state = cut
    monkeypatch.setattr(preflight, "read_state", lambda session, layout: cut.model_copy(update={"work": {}}))
    assert run(["up", "--yes", "--json"]) == 0
    done = steps(box)
    assert done.index("restore.revert") < done.index("box.write_manifest")
    assert "as it was before it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "step"),
    [
        (["restore", "/mnt/b.tar", "--passphrase-file"], "restore.stage"),
        (["import", "/srv/old"], "imports.stage"),
        (["backup", "--passphrase-file"], "backup.make_outliving"),
        (["backup", "--every", "day", "--passphrase-file"], "backup.arm"),
        (["backup", "--every", "never"], "box.write_manifest"),
        (["password", "--reset"], "n8n.password_reset"),
        (["models", "pull", "another:1b"], "ollama.pull_start"),
    ],
)
def test_an_upgrade_that_was_cut_off_ends_before_anything_else_is_changed(
    words: list[str], step: str, box: Box, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next `up` would put back what the upgrade had copied, and what came meanwhile were gone."""
    standing.cut_off(monkeypatch, box, "n8n")
    monkeypatch.setitem(standing.ANSWERS, "imports.find", {"there": True})
    monkeypatch.setitem(standing.ANSWERS, "backup.place", {"elsewhere": True})
    more = [word] if words[-1] == "--passphrase-file" else []
    run([*words, *more, "--json", *([] if words[0] == "backup" else ["--yes"])])
    done = steps(box)
    assert step in done[done.index("snapshots.revert") :]
    assert step not in done[: done.index("snapshots.revert")]


@pytest.mark.parametrize(
    ("state", "asked"),
    [
        ({"status": "staging", "clean": False}, True),
        ({"status": "done", "clean": False}, True),
        ({"status": "done", "clean": True}, False),
        ({"status": "done"}, False),
    ],
)
def test_the_next_up_takes_away_what_a_restore_had_laid_ready(
    state: dict[str, Any], asked: bool, box: Box, capsys: pytest.CaptureFixture[str]
) -> None:
    box.state = box.state.model_copy(update={"work": {"restore": state}})
    assert run(["up", "--yes", "--json"]) == 0
    assert ("restore.revert" in steps(box)) == asked
    assert ("what it had laid ready" in capsys.readouterr().err) == asked


def test_which_box_it_is_decides_on_what_a_folder_means(box: Box, word: str) -> None:
    from ownstack.engine.backups import mark

    plan = machines.plan(box.report)
    assert run(["restore", "/mnt/usb", "--yes", "--passphrase-file", word]) == 0
    assert spec(box, "backup.find") == {"path": "/mnt/usb", "mark": mark(plan)}
    assert re.fullmatch("[0-9a-f]{12}", mark(plan))
    elsewhere = plan.model_copy(update={"layout": plan.layout.model_copy(update={"var": "/home/anna/box"})})
    assert mark(elsewhere) != mark(plan), "two boxes of one machine"
    host = plan.host.model_copy(update={"machine_id_hash": ""})
    assert mark(plan.model_copy(update={"host": host})) == ""
    assert run(["backup", "--to", "/mnt/usb", "--passphrase-file", word]) == 0
    assert spec(box, "backup.make_outliving")["mark"] == mark(plan)


def bare_machine(
    box: Box, monkeypatch: pytest.MonkeyPatch, names: list[str], about: dict[str, Any] | None = None
) -> None:
    """Nothing stands on it; a folder of it has these backups, which say this of themselves."""
    box.state = BoxState()
    real = standing.runner
    whole = {"schema": 1, "settings": {}, **ABOUT, **(about or {})}

    def answer(text: str) -> list[str] | None:
        if "ls -1 -- /mnt/usb" in text:
            return names
        if "manifest.json" in text and "tar -xOf" in text:
            return [json.dumps(whole)] if about is not None else ["", f"{MARK}2"]
        return real(text)

    def asked(site: Any, plan: Any, listen: Any) -> None:
        raise RunError("made", code="made")

    monkeypatch.setattr(standing, "runner", answer)
    monkeypatch.setattr(restore, "made", asked)


def small_backup(tmp_path: Path, **more: Any) -> str:
    """A real one, on this machine."""
    small = SmallBox(tmp_path / "small", "first")
    return str(backup.make(small.make_spec(versions={}, **more), lambda event: None)["data"]["file"])


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("several", [True, False])
def test_a_new_machine_is_not_made_into_one_of_several_boxes(
    several: bool, there: bool, box: Box, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    names = [f"ownstack-box-{letter * 12}-20260101T000000Z.tar" for letter in ("ab" if several else "a")]
    settings = {"network.n8n": "internet", "sources.mirror": "https://foreign.example"}
    bare_machine(box, monkeypatch, names if there else [], {"settings": settings})
    folder = Path("/mnt/usb")
    if not there:
        folder = Path(small_backup(tmp_path, mark="a" * 12)).parent
        for name in names[1:]:
            (folder / name).write_text("x")
    assert run(["restore", str(folder), "--yes", "--json", "--passphrase-file", word]) == 1
    error = told(capsys)["error"]
    assert error["code"] == ("several-boxes" if several else "made")
    assert steps(box) == []
    if there and not several:
        assert run(["restore", str(folder), "--yes", "--passphrase-file", word]) == 1
        said = capsys.readouterr().err
        assert 'settings in the backup: network.n8n = "internet"\n' in said, "those of a place do not come along"


@pytest.mark.parametrize(
    ("about", "code"),
    [
        ({}, "made"),
        ({"versions": {"n8n": "99.0"}}, "backup-newer"),
        ({"services": ["open_webui", "spare_role"]}, "role-missing"),
        ({"schema": 99}, "backup-schema"),
        ({"settings": {"roles": ["ollama", "models", "open_webui", "qdrant"]}}, "role-missing"),
        (None, "backup-damaged"),
    ],
)
@pytest.mark.parametrize("where", ["/mnt/usb", "/mnt/usb/a.tar"])
def test_what_cannot_be_restored_makes_no_box_of_a_new_machine(
    where: str, about: dict[str, Any] | None, code: str, box: Box, word: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The settings of a backup that lies on that machine count too: with them it has no n8n."""
    names = [where] if where.endswith(".tar") else [f"ownstack-box-{'a' * 12}-20260101T000000Z.tar"]
    bare_machine(box, monkeypatch, names, about)
    assert run(["restore", where, "--yes", "--json", "--passphrase-file", word]) == 1
    error = told(capsys)["error"]
    assert error["code"] == code, error
    assert steps(box) == [], "nothing was changed"


@pytest.mark.parametrize(
    ("make", "rc", "code"),
    [("nothing", 2, "no-backup"), ("an empty folder", 2, "no-backup"), ("a damaged file", 1, "backup-damaged")],
)
def test_no_box_is_made_for_a_backup_that_is_none(
    make: str, rc: int, code: str, box: Box, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A wrong name was told when the new machine had been made into a box, some minutes later."""
    bare_machine(box, monkeypatch, [])
    path = tmp_path / "mine"
    if make == "an empty folder":
        path.mkdir()
    if make == "a damaged file":
        path.write_text("x" * 5000)
    assert run(["restore", str(path), "--yes", "--json", "--passphrase-file", word]) == rc
    error = told(capsys)["error"]
    assert error["code"] == code
    assert str(path) in error["message"]
    assert steps(box) == []


@pytest.mark.parametrize("earlier", [False, True])
def test_data_that_an_earlier_box_left_is_not_replaced_unasked(
    earlier: bool, box: Box, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `down`: the programs are gone, what people wrote is there."""
    before, questions = box.state, []

    def made(site: Any, plan: Any, listen: Any) -> Any:
        site.state = before
        return site.recorded_plan()

    def confirm(question: str, yes: bool, as_json: bool) -> None:
        if not yes:
            questions.append(question.split()[0])

    bare_machine(box, monkeypatch, ["/mnt/usb/a.tar"], {})
    if earlier:
        box.state = machines.box(machines.plan(box.report), installed=False)
    monkeypatch.setattr(restore, "made", made)
    monkeypatch.setattr(restore, "confirm", confirm)
    assert run(["restore", "/mnt/usb/a.tar", "--passphrase-file", word]) == 0
    assert questions == (["Make", "Put"] if earlier else ["Make"])


def test_a_box_that_was_made_for_a_backup_which_does_not_open_is_told(
    box: Box, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = box.state
    bare_machine(box, monkeypatch, ["/mnt/usb/a.tar"], {})
    real = standing.runner

    def answer(text: str) -> list[str] | None:
        if "backup.verify" not in text:
            return real(text)
        refused = {"event": "error", "code": "wrong-passphrase", "message": "it cannot be opened", "hint": "no change"}
        return [json.dumps(refused)]

    def made(site: Any, plan: Any, listen: Any) -> Any:
        site.state = before
        return site.recorded_plan()

    monkeypatch.setattr(standing, "runner", answer)
    monkeypatch.setattr(restore, "made", made)
    assert run(["restore", "/mnt/usb/a.tar", "--yes", "--json", "--passphrase-file", word]) == 1
    error = told(capsys)["error"]
    assert error["code"] == "wrong-passphrase"
    assert "stands, empty" in error["hint"]


@pytest.mark.parametrize("where", ["on the machine", "here"])
def test_a_new_machine_gets_a_box_with_the_settings_of_the_backup(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "use": "code",
        "network.n8n": "internet",
        "folders.notes.path": "/srv/n",
        "folders.notes.service": "n8n",
    }
    file = small_backup(tmp_path, settings=settings)
    if where == "here":
        monkeypatch.setattr(restore_bare, "_there", lambda site, path: "")
    with Session(Target()) as session:
        site: Any = types.SimpleNamespace(session=session)
        for path in (file, str(Path(file).parent)):
            held = restore_bare.settings_in(restore_bare.described(site, path), path)
            found = read_settings(None, ("use=rag",), below=held)
            assert found.base.network.n8n == "internet"
            assert found.base.folders["notes"].path == "/srv/n"
            assert found.base.use == "rag", "what is given here wins"
            assert found.origins["network.n8n"] == "backup"
    assert restore_bare.settings_in({}, file) == {}
    with pytest.raises(RunError, match="its settings cannot be read"):
        restore_bare.settings_in({"settings": ["x"]}, file)


def test_a_file_on_the_machine_that_is_no_backup_is_told(tmp_path: Path) -> None:
    (tmp_path / "it's mine.tar").write_text("x" * 5000)
    with Session(Target()) as session, pytest.raises(RunError) as caught:
        restore_bare.described(types.SimpleNamespace(session=session), str(tmp_path / "it's mine.tar"))  # type: ignore[arg-type]
    assert caught.value.code == "backup-damaged"
    assert "it's mine.tar is damaged: it is no backup" in caught.value.message


def test_an_engine_that_only_the_backup_names_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    site: Any = types.SimpleNamespace(session=None, state=BoxState(), plan=lambda: site.state.existing_ollama)
    monkeypatch.setattr(preflight, "read_existing", lambda session, url: {"existing_ollama": f"0.34.2 at {url}"})
    for use, found in (("own", ""), ("existing", "0.34.2 at http://127.0.0.1:11434")):
        site.settings = read_settings(None, (), below={"ollama.use": use})
        made: Any = restore_bare.planned(site)
        assert made == found
