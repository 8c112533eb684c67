"""Backups: whole or not there, sound while others write, their secrets encrypted, every damage found."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from ownstack.runner import backup, backup_check, backup_names, backup_parts, restore
from ownstack.runner.backup_file import MANIFEST, Reader
from ownstack.runner.core import Event, StepError
from tests.fixtures.small_box import CANARY, WORD, SmallBox, identity, rewritten, writer


def silent(event: Event) -> None:
    """Nobody listens."""


@pytest.fixture
def box(tmp_path: Path) -> SmallBox:
    return SmallBox(tmp_path, "first")


def made(box: SmallBox, **more: Any) -> dict[str, Any]:
    return dict(backup.make(box.make_spec(**more), silent)["data"])


def by_word(box: SmallBox) -> dict[str, Any]:
    """With a passphrase, which takes a second or more each time: that is what it is for."""
    return {"recipients": [], "passphrase_file": str(box.passphrase)}


def agree(path: Path) -> str:
    """What is wrong with a copy of the writer's database; empty where nothing."""
    wrong = backup_parts.examine(str(path))
    if wrong:
        return wrong
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as copy:
            ask = "SELECT number, count(*) FROM {} GROUP BY number ORDER BY number"
            left, right = (list(copy.execute(ask.format(name))) for name in ("left_table", "right_table"))
    except sqlite3.Error as error:
        return str(error)
    return "" if left == right else "the two tables differ"


def trials(tmp_path: Path, mode: str, number: int) -> list[str]:
    """What is wrong with each of `number` copies that are made while another process writes."""
    live = tmp_path / "live.db"
    with writer(live, mode):
        found = []
        for _ in range(number):
            copy = tmp_path / "copy.db"
            copy.unlink(missing_ok=True)
            backup_parts.copy_database(str(live), str(copy))
            found.append(agree(copy))
    assert backup_parts.rows(str(copy))["left_table"] > 20
    return found


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_copies_made_beside_a_writer_are_sound(mode: str, tmp_path: Path) -> None:
    assert set(trials(tmp_path, mode, 8)) == {""}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_a_hundred_copies_made_beside_a_writer_are_sound(mode: str, tmp_path: Path) -> None:
    assert set(trials(tmp_path, mode, 100)) == {""}


def test_plain_copies_of_live_files_are_not_and_it_is_seen(tmp_path: Path) -> None:
    """The control: the same look finds what copying the files does to a database that is written to."""
    live, copy = tmp_path / "live.db", tmp_path / "copy.db"
    with writer(live):
        for _ in range(300):
            shutil.copyfile(live, copy)
            wrong = agree(copy)
            if wrong:
                break
    assert wrong, "300 plain copies and not one of them bad: the look sees nothing"


def test_a_backup_holds_everything_and_is_opened_again(box: SmallBox) -> None:
    data = made(box)
    path = Path(data["file"])
    assert path.name.startswith("ownstack-small-box-")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert data["same_disk"]
    assert data["holds"] == {
        "accounts": 2, "chats": 3, "files": 1, "knowledge collections": 1, "workflows": 1, "credentials": 2,
    }  # fmt: skip
    reader = box.reader(str(path))
    assert "data/open_webui/uploads/first-note.txt" in reader.index
    assert reader.index["data/n8n/files"]["part"] == ""
    assert not [name for name in reader.index if "cache" in name or name.endswith(("-wal", "-shm"))]
    assert json.loads((box.var / "backups.json").read_text())["last"]["file"] == str(path)
    assert list((box.var / "work").iterdir()) == []
    found = backup_check.verify(box.verify_spec(str(path), identity_file=str(box.identity)), silent)["data"]
    assert found["opened"]
    assert found["holds"] == data["holds"]


@pytest.mark.parametrize("imported", [None, {"n8n": {"owner": "mara@example.org"}}])
def test_a_backup_tells_whose_accounts_were_imported(imported: dict[str, Any] | None, box: SmallBox) -> None:
    """Not in the clear; one of a box into which nothing was imported, or of an older ownstack, tells of none."""
    if imported is not None:
        box.manifest.write_text(json.dumps({**json.loads(box.manifest.read_text()), "imported": imported}))
    path = made(box)["file"]
    assert backup_check.verify(box.verify_spec(path), silent)["data"]["box"] == {}
    spec = box.verify_spec(path, identity_file=str(box.identity))
    assert backup_check.verify(spec, silent)["data"]["box"]["imported"] == (imported or {})


def test_rows_that_lie_in_the_wal_only_are_in_the_backup(box: SmallBox) -> None:
    with contextlib.closing(sqlite3.connect(box.var / "open_webui/webui.db")) as live:
        live.execute("INSERT INTO chat (path) VALUES ('later')")
        live.commit()
        assert (box.var / "open_webui/webui.db-wal").stat().st_size > 0
        assert made(box)["holds"]["chats"] == 4


def test_nothing_of_it_is_in_the_clear(box: SmallBox) -> None:
    """Not the secrets, and not what services themselves keep in their databases in the clear."""
    (box.var / "open_webui/uploads/plain.txt").write_text(f"{CANARY}-upload")
    with contextlib.closing(sqlite3.connect(box.var / "open_webui/webui.db")) as live:
        live.execute("INSERT INTO chat (path) VALUES (?)", (f"{CANARY}-chat",))
        live.commit()
    path = Path(made(box)["file"])
    whole = path.read_bytes()
    assert CANARY.encode() not in whole
    assert b"plain.txt" not in whole
    assert CANARY in (box.secrets / "n8n_encryption_key").read_text()
    held = box.reader(str(path))
    assert CANARY in held.inside["secrets"]["n8n_encryption_key"]
    assert list(held.inside["sealed"]) == ["n8n/.n8n/config"]
    assert held.read("data/open_webui/uploads/plain.txt").decode() == f"{CANARY}-upload"


def test_without_a_key_nothing_is_written(box: SmallBox) -> None:
    with pytest.raises(StepError) as caught:
        made(box, recipients=[])
    assert caught.value.code == "no-passphrase"
    box.passphrase.write_text("\n")
    with pytest.raises(StepError):
        made(box, **by_word(box))
    with pytest.raises(StepError) as caught:
        made(box, recipients=["age1nonsense"])
    assert caught.value.code == "recipient"
    assert not list((box.folder / "backups").glob("*"))


def test_for_a_recipient_it_opens_with_the_identity_alone(box: SmallBox, tmp_path: Path) -> None:
    path = made(box)["file"]
    other = tmp_path / "other"
    other.write_text(f"# a comment\n{identity()[0]}\n")
    for file, right in ((box.identity, True), (other, False)):
        spec = box.verify_spec(path, identity_file=str(file))
        if right:
            assert backup_check.verify(spec, silent)["data"]["opened"]
        else:
            with pytest.raises(StepError) as caught:
                backup_check.verify(spec, silent)
            assert caught.value.code == "wrong-passphrase"


def test_a_wrong_passphrase_is_told_and_none_is_no_error(box: SmallBox, tmp_path: Path) -> None:
    path = made(box, **by_word(box))["file"]
    assert not backup_check.verify(box.verify_spec(path), silent)["data"]["opened"]
    right = box.verify_spec(path, passphrase_file=str(box.passphrase))
    assert backup_check.verify(right, silent)["data"]["opened"]
    wrong = tmp_path / "wrong"
    wrong.write_text("another passphrase\n")
    with pytest.raises(StepError) as caught:
        backup_check.verify(box.verify_spec(path, passphrase_file=str(wrong)), silent)
    assert caught.value.code == "wrong-passphrase"
    assert WORD not in caught.value.message


def test_every_changed_byte_of_a_part_is_found(box: SmallBox) -> None:
    path = Path(made(box)["file"])
    whole = path.read_bytes()
    members = [one for one in Reader(str(path)).members.values() if one.isfile() and one.size]
    for number, member in enumerate(members):
        place = member.offset_data + number * 7919 % member.size
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        with pytest.raises(StepError) as caught:
            backup_check.verify(box.verify_spec(str(path)), silent)
        assert caught.value.code in ("backup-damaged", "backup-schema"), member.name
    assert len(members) >= 7


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_cut_file_is_found(share: float, box: SmallBox) -> None:
    path = Path(made(box)["file"])
    whole = path.read_bytes()
    last = Reader(str(path)).members[MANIFEST]  # behind it there is only the tar's own padding
    path.write_bytes(whole[: int((last.offset_data + last.size) * share)])
    with pytest.raises(StepError) as caught:
        backup_check.verify(box.verify_spec(str(path)), silent)
    assert caught.value.code == "backup-damaged"


def test_a_database_that_is_damaged_inside_is_found_though_its_hash_is_right(box: SmallBox, tmp_path: Path) -> None:
    """Written by a program that hashes what it copies: the hash says nothing of what is in it."""
    path = Path(made(box)["file"])
    new = tmp_path / "new.tar"
    held, name = box.reader(str(path)), "data/open_webui/webui.db"
    data = held.read(name)
    rewritten(held, str(new), box.make_spec(), {name: data[:4096] + b"\xff" * 4096 + data[8192:]})
    with pytest.raises(StepError) as caught:
        backup_check.verify(box.verify_spec(str(new), identity_file=str(box.identity)), silent)
    assert caught.value.code == "backup-damaged"
    assert "webui.db" in caught.value.message


@pytest.mark.parametrize(
    "name", ["n8n/../../../x", "n8n//tmp/x", "/tmp/x", "n8n/.n8n/./config", "data/n8n//tmp/x", "data/n8n/../x"]
)
def test_no_name_in_it_leads_out_of_the_folder_it_is_laid_in(name: str, box: SmallBox, tmp_path: Path) -> None:
    """For a recipient anybody can encrypt who knows it, and a restore writes as root."""
    held, new = box.reader(str(made(box)["file"])), str(tmp_path / "new.tar")
    if name.startswith("data/"):
        held.index[name] = held.index["data/open_webui/uploads/first-note.txt"]
        rewritten(held, new, box.make_spec(), {})
    else:
        rewritten(held, new, box.make_spec(), {}, sealed={name: "eA=="})
    with pytest.raises(StepError, match="its index is wrong") as caught:
        backup_check.verify(box.verify_spec(new, identity_file=str(box.identity)), silent)
    assert caught.value.code == "backup-damaged"
    with pytest.raises(StepError):
        restore.stage(box.restore_spec(new), silent)
    assert not (box.var / "restore").exists()


@pytest.mark.parametrize("old", [False, True])
def test_what_goes_into_a_configuration_is_looked_at(old: bool, box: SmallBox, tmp_path: Path) -> None:
    held, new = box.reader(str(made(box)["file"])), str(tmp_path / "new.tar")
    forged = "open-webui\nWEBUI_AUTH=false"
    plan = {"vectors": "open-webui" if old else forged, "models": []}
    known = {"plan": plan, "old_vectors": [forged] if old else []}
    rewritten(held, new, box.make_spec(), {"box.json": json.dumps(known).encode()})
    with pytest.raises(StepError, match="no beginning of a collection's name") as caught:
        backup_check.verify(box.verify_spec(new, identity_file=str(box.identity)), silent)
    assert caught.value.code == "backup-damaged"


def test_parts_that_are_missing_or_not_named_are_found(box: SmallBox, tmp_path: Path) -> None:
    path = Path(made(box)["file"])
    for change in ("missing", "more", "link"):
        new = tmp_path / f"{change}.tar"
        with tarfile.open(path) as source, tarfile.open(new, "w") as target:
            for member in source:
                if change == "missing" and member.name == "parts/000002":
                    continue
                if member.name == MANIFEST and change in ("more", "link"):
                    extra = tarfile.TarInfo("parts/999999")
                    if change == "link":
                        extra.type, extra.linkname = tarfile.SYMTYPE, "/etc/passwd"
                    target.addfile(extra)
                target.addfile(member, source.extractfile(member) if member.isfile() else None)
        with pytest.raises(StepError) as caught:
            backup_check.verify(box.verify_spec(str(new)), silent)
        assert caught.value.code == "backup-damaged", change


def test_the_newest_are_kept_and_files_of_others_stay(box: SmallBox) -> None:
    folder = box.folder / "backups"
    folder.mkdir()
    old = [f"ownstack-small-box-2026010{day}T000000Z.tar" for day in (1, 2, 3)]
    others = ["ownstack-other-20260101T000000Z.tar", "ownstack-small-box-20260101T000000Z.tar.bak", "mine.tar"]
    for name in [*old, *others]:
        (folder / name).write_text("x")
    (folder / "ownstack-small-box-20260104T000000Z.tar.part").write_text("left by a run that was killed")
    data = made(box, keep=2)
    assert sorted(Path(path).name for path in data["removed"]) == old[:2]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*others, old[2], Path(data["file"]).name])


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_a_clock_that_went_ahead_costs_no_new_backup(keep: int, box: SmallBox) -> None:
    folder = box.folder / "backups"
    folder.mkdir()
    ahead = [f"ownstack-small-box-2099010{day}T000000Z.tar" for day in (1, 2)]
    for name in ahead:
        (folder / name).write_text("x")
    new = Path(made(box, keep=keep)["file"]).name
    assert sorted(path.name for path in folder.iterdir()) == [new, *ahead[len(ahead) + 1 - keep :]]


def test_another_box_of_the_same_name_keeps_its_backups(box: SmallBox) -> None:
    folder, stamp = box.folder / "backups", "20260101T000000Z.tar"
    folder.mkdir()
    mine = [f"ownstack-{name}-{'a' * 12}-{stamp}" for name in ("small-box", "its-earlier-name")]
    others = [
        f"ownstack-small-box-{'b' * 12}-{stamp}",
        f"ownstack-small-box-{stamp}",  # older than marks
        f"ownstack-small-box-{'b' * 12}-{stamp}.part",  # at work on it
    ]
    for name in [*mine, *others, f"{mine[0]}.part"]:
        (folder / name).write_text("x")
    data = made(box, keep=1, mark="a" * 12)
    assert sorted(data["removed"]) == sorted(str(folder / name) for name in mine)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*others, Path(data["file"]).name])
    assert f"small-box-{'a' * 12}-" in data["file"]


def test_a_run_that_fails_leaves_nothing_and_removes_nothing(box: SmallBox, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = box.folder / "backups"
    folder.mkdir()
    (folder / "ownstack-small-box-20260101T000000Z.tar").write_text("x")

    def broken(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(backup_parts, "add_tree", broken)
    with pytest.raises(StepError) as caught:
        made(box, keep=1)
    assert caught.value.code == "disk-full"
    assert [path.name for path in folder.iterdir()] == ["ownstack-small-box-20260101T000000Z.tar"]
    assert not (box.var / "backups.json").exists()


FULL = """
import subprocess, sys
from pathlib import Path
from ownstack.runner import backup, sealed
from ownstack.runner.core import StepError
from tests.fixtures.small_box import SmallBox
folder, where, size = Path(sys.argv[1]), *sys.argv[2:]
box = SmallBox(folder, "first")
(box.var / "open_webui/uploads/large").write_bytes(bytes(2 << 20))
(folder / "backups").mkdir()
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder / where)], check=True)
backup._space = lambda spec, folder: None  # it fills up later than at the first look
try:
    backup.make(box.make_spec(), lambda event: None)
except StepError as error:
    print(error.code, error.message.removeprefix(f"{folder}/"), [*(folder / "backups").iterdir()])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts a file system, in a namespace of its own")
@pytest.mark.parametrize(
    ("where", "size"),
    [("var/work", "8k"), ("var/work", "256k"), ("backups", "256k")],
    ids=["copying a database", "encrypting", "writing"],
)
def test_of_two_disks_the_full_one_is_named(where: str, size: str, tmp_path: Path) -> None:
    command = ["unshare", "--mount", sys.executable, "-P", "-c", FULL, str(tmp_path), where, size]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=Path(__file__).parents[2])
    assert done.stdout == f"disk-full {where} has too little space for a backup []\n", done.stderr


def test_it_has_its_name_only_when_it_was_looked_at(box: SmallBox, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*_: Any) -> None:
        assert [path.suffix for path in (box.folder / "backups").iterdir()] == [".part"]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(backup, "contents", cut)
    with pytest.raises(StepError) as caught:
        made(box)
    assert caught.value.code == "disk-full"
    assert list((box.folder / "backups").iterdir()) == []


def test_a_timer_whose_note_cannot_be_written_tells_why_it_failed(
    box: SmallBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(backup, "write_json", full)
    with pytest.raises(StepError) as caught:
        backup.scheduled(box.make_spec(elsewhere=True), silent)
    assert caught.value.code == "disk-away"


def test_a_live_database_that_is_damaged_makes_no_backup(box: SmallBox) -> None:
    path = box.var / "open_webui/webui.db"
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xff" * 4096 + data[8192:])
    with pytest.raises(StepError) as caught:
        made(box)
    assert caught.value.code == "database"
    assert not list((box.folder / "backups").glob("*.tar*"))


def test_links_in_a_service_folder_are_not_followed(box: SmallBox, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "shadow").write_text("of somebody else")
    (box.var / "open_webui/uploads/link").symlink_to(outside / "shadow")
    (box.var / "open_webui/linked").symlink_to(outside)
    os.mkfifo(box.var / "open_webui/uploads/pipe")
    path = made(box)["file"]
    held = box.reader(path)
    assert not {"link", "linked", "pipe", "shadow"} & {Path(name).name for name in held.index}
    assert {"webui.db", "first-note.txt"} <= {Path(name).name for name in held.index}


@pytest.mark.parametrize("linked", ["n8n/.n8n/database.sqlite", "n8n/.n8n/config", "n8n/.n8n"])
def test_a_database_of_another_service_is_not_saved_as_its_own(linked: str, box: SmallBox) -> None:
    """A link in n8n's folder to Open WebUI's database: after a restore, or in a drill, it would be n8n's to read."""
    link, others = box.var / linked, box.var / "open_webui"
    link.rename(box.folder / "gone")
    link.symlink_to(others if linked.endswith(".n8n") else others / "webui.db")
    with pytest.raises(StepError) as caught:
        made(box)
    assert caught.value.code == "link"
    assert linked in caught.value.message
    assert not list((box.folder / "backups").iterdir())


def test_a_data_folder_may_be_a_link_itself(box: SmallBox) -> None:
    (box.var / "n8n").rename(box.folder / "disk")
    (box.var / "n8n").symlink_to(box.folder / "disk")
    assert made(box)["holds"]["workflows"] == 1


def test_two_at_once_are_refused(box: SmallBox) -> None:
    with open(box.var / "run/lock", "a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StepError) as caught:
            made(box)
    assert caught.value.code == "busy"


def test_an_engine_that_is_down_keeps_nothing_else_from_being_saved(box: SmallBox) -> None:
    models = {"url": "http://127.0.0.1:1", "folder": "", "record": "/none", "planned": [], "with_models": False}
    data = made(box, models=models)
    assert "Ollama does not answer" in data["without_models"]
    assert data["holds"]["chats"] == 3


def test_who_disconnects_takes_no_passphrase_away(box: SmallBox, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read before the long work begins."""
    fill = backup._fill

    def without(*given: Any) -> Any:
        assert not box.passphrase.exists()
        return fill(*given)

    monkeypatch.setattr(backup, "_fill", without)
    assert Path(made(box, **by_word(box), once=True)["file"]).exists()


def test_a_timer_says_why_it_failed_and_forgets_it_when_it_worked(box: SmallBox) -> None:
    with pytest.raises(StepError) as caught:  # the disk was another one when the timer was set, and is away now
        backup.scheduled(box.make_spec(elsewhere=True), silent)
    assert caught.value.code == "disk-away"
    noted = backup.state({"state": str(box.var / "backups.json")}, silent)["data"]
    assert "disk" in noted["failed"]["message"]
    assert not (box.folder / "backups").exists(), "nothing is written where the disk belongs"
    backup.scheduled(box.make_spec(), silent)
    noted = backup.state({"state": str(box.var / "backups.json")}, silent)["data"]
    assert noted["failed"] is None
    assert noted["last"]["holds"]["chats"] == 3


@pytest.mark.parametrize("turn", ["at last", "never"])
@pytest.mark.parametrize("why", ["held", "upgrade", "restore", "locked"])
def test_a_timer_waits_while_somebody_works_on_the_box(
    why: str, turn: str, box: SmallBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upgrade, say: the backup would hold the new version's data under the name of the old one."""
    spec = box.make_spec(prefix="ownstack-of-a-test", run_dir=str(box.var / "run"))
    held, state = ["`ownstack upgrade` by anna"], box.var / f"run/{why}.json"
    lock = contextlib.ExitStack()
    if why == "held":
        monkeypatch.setattr(backup, "holder", lambda prefix: held[0])
    elif why == "locked":
        lock.enter_context(backup.alone(spec["lock"]))
    else:
        state.write_text(json.dumps({"status": backup.UNSETTLED[why][2]}))

    def asleep(seconds: float) -> None:
        assert not (box.folder / "backups").exists()
        if turn == "at last":
            held[0] = ""
            lock.close()
            state.unlink(missing_ok=True)
        else:
            clock[0] += 4000

    clock = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", asleep)
    with lock:
        done = backup.scheduled(spec, silent)
    failed = backup.state({"state": spec["state"]}, silent)["data"]["failed"]
    if turn == "at last":
        assert Path(done["data"]["file"]).exists()
        assert failed is None
        return
    assert not done["changed"]
    assert failed["postponed"]
    words = {"held": "by anna", "upgrade": "an upgrade was cut off", "restore": "a restore was cut off"}
    assert words.get(why, "is going on") in failed["message"]
    assert not (box.folder / "backups").exists()


def test_what_a_person_asks_for_does_not_wait_for_itself(box: SmallBox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup, "holder", lambda prefix: "`ownstack backup` by anna")
    assert Path(made(box)["file"]).exists()


def test_the_passphrase_of_a_timer_is_a_secret_and_in_no_backup(box: SmallBox) -> None:
    place = box.make_spec(**by_word(box), secret="backup_passphrase")
    assert backup.place(place, silent)["data"] == {"elsewhere": False}
    assert 0 <= time.time() - backup.state(place, silent)["data"]["scheduled"] < 60
    kept = box.secrets / "backup_passphrase"
    assert kept.read_text().strip() == WORD
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    path = made(box, unsaved=["backup_passphrase"])["file"]
    assert "backup_passphrase" not in box.reader(path).inside["secrets"]
    with pytest.raises(StepError) as caught:
        backup.place({**place, "recipients": ["age1wrong"]}, silent)
    assert caught.value.code == "recipient"


def test_the_newest_of_a_folder_is_found(tmp_path: Path) -> None:
    mine, other = (f"ownstack-a-{letter * 12}-2026010" for letter in "ab")
    end = "T000000Z.tar"

    def put(*names: str) -> None:
        for name in names:
            (tmp_path / name).write_text("x")

    def find(path: Path, mark: str = "") -> Any:
        return backup_names.find({"path": str(path), "mark": mark}, silent)["data"]["file"]

    put("z.tar", f"ownstack-a-20260102{end}", f"ownstack-a-20260101{end}")
    assert find(tmp_path, "a" * 12) == find(tmp_path) == str(tmp_path / f"ownstack-a-20260102{end}"), "without marks"
    put(f"{mine}3{end}", f"{mine}4{end}", f"{other}5{end}")
    assert find(tmp_path, "a" * 12) == str(tmp_path / f"{mine}4{end}"), "of a box its own"
    for path in tmp_path.glob("ownstack-a-2026*"):
        path.unlink()
    for mark in ("", "c" * 12):
        with pytest.raises(StepError) as caught:
            find(tmp_path, mark)
        assert caught.value.code == "several-boxes"
        assert all(name in caught.value.message for name in (f"{mine}4{end}", f"{other}5{end}"))
        assert f"{mine}3{end}" not in caught.value.message
    (tmp_path / f"{other}5{end}").unlink()
    assert find(tmp_path, "c" * 12) == str(tmp_path / f"{mine}4{end}"), "of another machine, where it is the only one"
    assert find(tmp_path / "z.tar") == str(tmp_path / "z.tar")
    assert find(tmp_path / "none") == ""


def test_accounts_in_what_a_backup_holds_are_those_of_open_webui() -> None:
    """n8n has a table of that name too, and would take their place."""
    tables = {
        "data/open_webui/webui.db": {"user": 3},
        "data/n8n/.n8n/database.sqlite": {"user": 1, "workflow_entity": 2},
    }
    assert backup_check.holds({"tables": tables, "vectors": None}) == {"accounts": 3, "workflows": 2}
