"""`backup` as a command: what it refuses, what it tells the box, and what `status` says of backups."""

from __future__ import annotations

import datetime
import json
import time
from pathlib import Path

import pytest

from ownstack.cli import run
from ownstack.cli.status import describe_backup, describe_overdue
from ownstack.plan import Schedule
from tests.cli import standing
from tests.cli.backing import ABOUT, MADE, WORD, box, word
from tests.cli.standing import Box, spec, steps, told
from tests.unit import machines

__all__ = ["box", "word"]


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
    for part in words:
        assert part in out
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
        assert describe_overdue({"every": every, "look": "", "last": last, "failed": failed}) == ""
        soon = {"every": every, "look": "", "last": last, "scheduled": time.time() - 3600}
        assert describe_overdue(soon) == "", "the first of a timer that was set an hour ago is yet to come"
        assert "nothing was heard" in describe_overdue({"every": every, "look": "", "scheduled": last["time"]})
    assert describe_overdue({"every": "never", "last": {"time": 0.1}}) == ""
    assert "yet to come" in describe_backup({"every": every})


@pytest.mark.parametrize(("manager", "words"), [("systemd", "systemctl"), ("systemd-user", "systemctl --user")])
def test_status_names_a_unit_so_that_it_is_found(
    manager: str, words: str, box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = Schedule(every="day", to="/mnt/usb", keep=7)
    plan = machines.plan(box.report).model_copy(update={"backup": wanted, "manager": manager})
    box.state = machines.box(plan)
    monkeypatch.setitem(standing.ANSWERS, "backup.state", {"scheduled": time.time() - 3 * 86400})
    assert run(["status"]) == 0
    assert f"`{words} status ownstack-backup` shows why" in capsys.readouterr().out
