"""Restoring: what was there, or what the backup holds, and nothing in between."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ownstack.runner import backup, core, restore, snapshots_aside, snapshots_kept
from ownstack.runner.backup_file import Reader
from ownstack.runner.core import Event, StepError
from tests.fixtures.small_box import SmallBox, identity


def silent(event: Event) -> None:
    """Nobody listens."""


@pytest.fixture
def first(tmp_path: Path) -> SmallBox:
    return SmallBox(tmp_path / "first", "first")


@pytest.fixture
def second(tmp_path: Path, first: SmallBox) -> SmallBox:
    found = SmallBox(tmp_path / "second", "second")
    (found.secrets / "only_here").write_text("stays\n")
    found.identity.write_text(first.identity.read_text())
    return found


@pytest.fixture
def file(first: SmallBox) -> str:
    return str(backup.make(first.make_spec(), silent)["data"]["file"])


def told(box: SmallBox) -> str:
    return str(json.loads((box.var / "run/restore.json").read_text())["status"])


def without_place(box: SmallBox) -> dict[str, str]:
    """The content with the box's own folder taken out, so that two boxes can be compared."""
    return {name: text.replace(str(box.folder), "BOX") for name, text in box.content().items()}


def test_another_box_holds_what_the_first_held(first: SmallBox, second: SmallBox, file: str) -> None:
    spec = second.restore_spec(file)
    before = second.content()
    restore.stage(spec, silent)
    assert second.content() == before, "laying ready changes nothing"
    restore.swap(spec, silent)
    restore.finish(spec, silent)
    now, wanted = without_place(second), without_place(first)
    kept = {"etc/secrets/only_here", "var/manifest.json"}
    made_anew = {"var/open_webui/cache/big"}
    assert {n: t for n, t in now.items() if n not in kept} == {
        n: t for n, t in wanted.items() if n not in (*made_anew, "var/manifest.json")
    }
    assert "etc/secrets/only_here" in now
    assert stat.S_IMODE(second.secrets.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in second.secrets.iterdir()} == {0o600}
    assert told(second) == "done"
    assert not (second.var / "restore").exists()
    assert [path.name for path in second.secrets.parent.iterdir()] == ["secrets"]


def test_uploads_are_where_the_restored_database_says(second: SmallBox, file: str) -> None:
    spec = second.restore_spec(file)
    restore.stage(spec, silent)
    restore.swap(spec, silent)
    with contextlib.closing(sqlite3.connect(second.var / "open_webui/webui.db")) as opened:
        (path,) = opened.execute("SELECT path FROM file").fetchone()
    assert Path(path).read_text() == "note first"
    assert path.startswith(str(second.var))


def test_no_side_file_of_the_replaced_database_stays(second: SmallBox, file: str) -> None:
    """A restored database beside the -wal of another one is a broken database."""
    web = second.var / "open_webui"
    with contextlib.closing(sqlite3.connect(web / "webui.db")) as live:
        live.execute("INSERT INTO chat (path) VALUES ('later')")
        live.commit()
        assert (web / "webui.db-wal").exists()
        spec = second.restore_spec(file)
        restore.stage(spec, silent)
        restore.swap(spec, silent)
    assert not list(web.glob("webui.db-*"))
    with contextlib.closing(sqlite3.connect(web / "webui.db")) as opened:
        assert opened.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert opened.execute("SELECT count(*) FROM chat").fetchone() == (3,)


def test_it_is_taken_back_whole(second: SmallBox, file: str) -> None:
    before = second.content()
    spec = second.restore_spec(file)
    restore.stage(spec, silent)
    restore.swap(spec, silent)
    second.manifest.write_text("{}")  # as `up` with the new data would write it
    assert second.content() != before
    assert restore.revert(spec, silent)["data"]["reverted"]
    assert second.content() == before
    assert told(second) == "reverted"
    assert not restore.revert(spec, silent)["data"]["reverted"]
    assert second.content() == before


@pytest.mark.parametrize("missing", ["", "n8n-content.json"])
def test_cut_off_at_every_rename_it_is_taken_back_whole(
    missing: str, second: SmallBox, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing:
        (second.var / missing).unlink()
    before = second.content()
    spec = second.restore_spec(file)
    rename = restore._rename
    done: list[int] = []

    def counted(limit: int) -> Any:
        done.clear()

        def one(source: str, target: str) -> None:
            if len(done) == limit:
                raise KeyboardInterrupt
            done.append(1)
            rename(source, target)

        return one

    points = 0
    for limit in range(20):
        restore.stage(spec, silent)
        monkeypatch.setattr(restore, "_rename", counted(limit))
        try:
            restore.swap(spec, silent)
        except KeyboardInterrupt:
            points += 1
        else:
            break
        finally:
            monkeypatch.setattr(restore, "_rename", rename)
        assert told(second) == "swapping"
        with pytest.raises(StepError) as caught:
            restore.stage(spec, silent)
        assert caught.value.code == "restore-pending"
        # and the taking back is cut off too, before it goes through
        monkeypatch.setattr(restore, "_rename", counted(limit // 4))
        with contextlib.suppress(KeyboardInterrupt):
            restore.revert(spec, silent)
        monkeypatch.setattr(restore, "_rename", rename)
        restore.revert(spec, silent)
        assert second.content() == before, f"cut off after {limit} renames"
    assert points == (7 if missing else 8)


def days_later(box: SmallBox) -> None:
    """As it is when nobody came for a week."""
    state = json.loads((box.var / "run/restore.json").read_text())
    (box.var / "run/restore.json").write_text(json.dumps({**state, "time": state["time"] - 7 * 86400}))


def worked(box: SmallBox) -> None:
    """What people do with the restored box in that week."""
    with contextlib.closing(sqlite3.connect(box.var / "open_webui/webui.db")) as live:
        live.execute("INSERT INTO chat (path) VALUES ('of that week')")
        live.commit()
    (box.var / "n8n/files/of that week").write_text("x")
    (box.var / "n8n-content.json").write_text("of that week")


def aside(box: SmallBox) -> tuple[dict[str, Any], Path]:
    """The one row of what lies aside, and its folder."""
    (row,) = snapshots_aside.replaced(str(box.var))
    return row, box.var / "snapshots" / f"{row['id']}.replaced"


def apart(content: dict[str, str]) -> dict[str, str]:
    return {name: text for name, text in content.items() if not name.startswith("var/snapshots/")}


def cut_at(patched: pytest.MonkeyPatch, limit: int) -> None:
    """The way back ends before its step with this number."""
    left = [limit]

    def cutting(real: Any) -> Any:
        def one(*words: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return real(*words)

        return one

    for module, name in ((restore, "_rename"), (snapshots_aside, "_move"), (snapshots_aside, "write_json")):
        patched.setattr(module, name, cutting(getattr(module, name)))


@pytest.mark.parametrize("missing", ["", "n8n-content.json"])
def test_what_people_have_worked_with_lies_aside_wherever_its_way_back_is_cut_off(
    missing: str, first: SmallBox, second: SmallBox, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing:
        (second.var / missing).unlink()
    before, spec = second.content(), second.restore_spec(file)
    points = 0
    for limit in range(20):
        restore.stage(spec, silent)
        restore.swap(spec, silent)
        worked(second)
        days_later(second)
        with monkeypatch.context() as patched:
            cut_at(patched, limit)
            try:
                restore.revert(spec, silent)
            except KeyboardInterrupt:
                points += 1
        restore.revert(spec, silent)
        row, folder = aside(second)
        assert apart(second.content()) == before, limit
        assert (row["kind"], row["role"], row["bytes"] > 1000) == ("restore", "restore", True)
        with contextlib.closing(sqlite3.connect(folder / "open_webui/webui.db")) as opened:
            assert opened.execute("SELECT count(*) FROM chat WHERE path = 'of that week'").fetchone() == (1,), limit
        assert (folder / "n8n/files/of that week").exists()
        assert (folder / "n8n-content.json").read_text() == "of that week"
        keys = {path.name: path.read_bytes() for path in first.secrets.iterdir()}
        assert keys.items() <= {path.name: path.read_bytes() for path in (folder / "secrets").iterdir()}.items()
        assert stat.S_IMODE((folder / "secrets").stat().st_mode) == 0o700
        told = {"lock": spec["lock"], "state": "/nonexistent", "var": spec["var"], "ids": [row["id"]]}
        snapshots_kept.drop(told, silent)
        assert second.content() == before, "and on demand it goes"
        if limit >= points:
            break
    assert points >= 10


def exchanged(second: SmallBox, file: str) -> dict[str, Any]:
    """A backup in the place of the box's data, not yet kept for good; the specification of its way back."""
    spec = second.restore_spec(file)
    restore.stage(spec, silent)
    restore.swap(spec, silent)
    return spec


def test_a_full_disk_is_no_hindrance_to_keeping_what_was_restored(
    second: SmallBox, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: str, value: Any, mode: int = 0o644) -> None:
        if (second.var / "restore").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, value, mode)

    spec, real = second.restore_spec(file), core.write_json
    restore.stage(spec, silent)
    restore.swap(spec, silent)
    after = second.content()
    monkeypatch.setattr(restore, "write_json", full)
    restore.finish(spec, silent)
    assert told(second) == "done"
    assert not restore.revert(spec, silent)["data"]["reverted"]
    assert second.content() == after
    assert not (second.var / "restore").exists()
    assert not (second.var / "run/restore.json.next").exists()


def test_a_restore_that_is_taken_back_at_once_keeps_nothing(second: SmallBox, file: str) -> None:
    before, spec = second.content(), exchanged(second, file)
    worked(second)
    assert restore.revert(spec, silent)["data"]["replaced"] == []
    assert second.content() == before


def test_a_run_that_takes_back_what_filled_the_disk_keeps_nothing(
    second: SmallBox, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, spec = second.content(), exchanged(second, file)
    days_later(second)
    full = shutil.disk_usage(second.var)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    assert restore.revert({**spec, "mine": True}, silent)["data"]["replaced"] == []
    assert second.content() == before


def test_what_cannot_be_kept_aside_is_not_taken_away(
    second: SmallBox, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, spec = second.content(), exchanged(second, file)
    worked(second)
    days_later(second)
    after, real = second.content(), snapshots_aside._move

    def last_fails(place: str, path: str) -> None:
        if place == str(second.secrets):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(place, path)

    with monkeypatch.context() as patched:
        patched.setattr(snapshots_aside, "_move", last_fails)
        with pytest.raises(StepError, match="since the restore cannot be kept aside") as caught:
            restore.revert(spec, silent)
    assert caught.value.code == "disk-full"
    assert apart(second.content()) == after
    assert restore.revert(spec, silent)["data"]["reverted"]
    assert apart(second.content()) == before


def test_after_a_start_of_the_machine_it_is_told_where_it_lies(second: SmallBox, file: str) -> None:
    spec = exchanged(second, file)
    worked(second)
    days_later(second)
    told = restore.recover(spec, silent)
    row, folder = aside(second)
    assert told.endswith(f"as it was before it; what was there since is kept in {', '.join(row['paths'])}")
    assert str(folder / "n8n") in row["paths"]


@pytest.mark.parametrize("cut", [False, True])
def test_folders_that_cannot_be_renamed_are_copied_whole(
    cut: bool, second: SmallBox, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An overlay refuses to rename a folder of a layer below."""
    rename, before = os.rename, second.content()

    def refusing(source: str, target: str) -> None:
        if "/restore/" not in source and os.path.isdir(source) and "secrets." not in source:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target)

    def killed(path: str) -> None:
        if path == str(second.var / "n8n"):
            shutil.rmtree(second.var / "n8n/files")
            raise KeyboardInterrupt
        remove(path)

    remove = restore._remove
    spec = second.restore_spec(file)
    restore.stage(spec, silent)
    monkeypatch.setattr(os, "rename", refusing)
    if cut:  # in the middle of taking the copied folder away
        monkeypatch.setattr(restore, "_remove", killed)
        with pytest.raises(KeyboardInterrupt):
            restore.swap(spec, silent)
        monkeypatch.setattr(restore, "_remove", remove)
    else:
        restore.swap(spec, silent)
        assert second.content() != before
        assert not (second.var / "open_webui/cache").exists()
    restore.revert(spec, silent)
    assert second.content() == before


def test_what_was_uploaded_for_a_run_that_was_cut_off_goes(second: SmallBox, file: str) -> None:
    """Only what is used now stays; a backup, while nobody works on the box, takes that away too."""
    work = second.var / "work"
    mine = shutil.copy(file, work / "restore-now.tar")

    def leave() -> None:
        (work / "restore-earlier.tar.0a1b2c3d").write_text("cut off while it was uploaded")
        (work / "import.tar").write_text("x")
        (work / "import").mkdir()
        (work / "import/webui.db").write_text("x")
        (work / "qdrant.part").write_text("a download that goes on")

    leave()
    restore.stage(second.restore_spec(str(mine)), silent)
    assert sorted(path.name for path in work.iterdir()) == ["qdrant.part", "restore-now.tar"]
    restore.revert(second.restore_spec(str(mine)), silent)
    leave()
    backup.make(second.make_spec(), silent)
    assert [path.name for path in work.iterdir()] == ["qdrant.part"]


def test_a_wrong_key_changes_nothing(second: SmallBox, file: str) -> None:
    before = second.content()
    second.identity.write_text(identity()[0] + "\n")
    with pytest.raises(StepError) as caught:
        restore.stage(second.restore_spec(file), silent)
    assert caught.value.code == "wrong-passphrase"
    assert second.content() == before
    with pytest.raises(StepError):
        restore.swap(second.restore_spec(file), silent)
    assert second.content() == before


def test_a_damaged_part_is_never_put_in_place(second: SmallBox, file: str) -> None:
    before = second.content()
    whole = Path(file).read_bytes()
    part = Reader(file).members["parts/000003"]
    place = part.offset_data + part.size - 5
    Path(file).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(StepError) as caught:
        restore.stage(second.restore_spec(file), silent)
    assert caught.value.code == "backup-damaged"
    assert second.content() == before


def test_too_little_space_is_told_before_anything_is_done(
    second: SmallBox, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(second.var)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StepError) as caught:
        restore.stage(second.restore_spec(file), silent)
    assert caught.value.code == "disk-full"
    assert not (second.var / "restore").exists()


@pytest.mark.parametrize("cut", [False, True])
def test_a_data_folder_that_is_a_disk_of_its_own_gets_its_content_exchanged(
    cut: bool, first: SmallBox, second: SmallBox, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a kernel says of a folder on which something is mounted: it is neither moved, nor replaced, nor removed."""
    disk, before = str(second.var / "n8n"), second.content()
    rename, rmdir, remove = os.rename, os.rmdir, restore._remove

    def renaming(source: str, target: str) -> None:
        if disk in (source, target):
            raise OSError(errno.EBUSY, "Device or resource busy")
        rename(source, target)

    def removing(path: Any, **more: Any) -> None:
        if path == disk:
            raise OSError(errno.EBUSY, "Device or resource busy")
        rmdir(path, **more)

    def killed(path: str) -> None:
        if path.endswith("old/n8n.gone"):
            shutil.rmtree(f"{path}/files")
            raise KeyboardInterrupt
        remove(path)

    inode = os.stat(disk).st_ino
    spec = second.restore_spec(file)
    restore.stage(spec, silent)
    monkeypatch.setattr(os, "rename", renaming)
    monkeypatch.setattr(os, "rmdir", removing)
    restore.swap(spec, silent)
    assert os.stat(disk).st_ino == inode
    assert without_place(second)["var/n8n/.n8n/database.sqlite"] == without_place(first)["var/n8n/.n8n/database.sqlite"]
    if cut:  # when it was put back, and what lay aside is being taken away
        monkeypatch.setattr(restore, "_remove", killed)
        with pytest.raises(KeyboardInterrupt):
            restore.revert(spec, silent)
        monkeypatch.setattr(restore, "_remove", remove)
    restore.revert(spec, silent)
    assert os.stat(disk).st_ino == inode
    assert second.content() == before
    assert not (second.var / "restore").exists()


def test_what_a_restore_laid_ready_goes_whenever_it_was_cut_off(
    second: SmallBox, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, spec = second.content(), second.restore_spec(file)
    extract, room = restore.extract, second.var / "restore"

    def cut(held: Reader, member: str, path: str) -> None:
        extract(held, member, path)
        raise KeyboardInterrupt

    monkeypatch.setattr(restore, "extract", cut)
    with pytest.raises(KeyboardInterrupt):
        restore.stage(spec, silent)
    monkeypatch.setattr(restore, "extract", extract)
    for status in ("staging", "staged"):
        assert told(second) == status
        assert not clean(second)
        assert room.exists()
        assert not restore.revert(spec, silent)["data"]["reverted"]
        assert told(second) == "reverted"
        assert clean(second)
        assert not room.exists()
        assert second.content() == before
        restore.stage(spec, silent)
    restore.swap(spec, silent)
    remove = restore._clear
    monkeypatch.setattr(restore, "_clear", lambda spec: None)
    restore.finish(spec, silent)  # and the end of its process, so to speak, before it has tidied up
    monkeypatch.setattr(restore, "_clear", remove)
    (second.var / "run/restore.json").write_text(json.dumps({"status": "done", "clean": False}))
    after = second.content()
    restore.revert(spec, silent)
    assert (told(second), clean(second), room.exists()) == ("done", True, False)
    assert second.content() == after != before


def test_what_has_filled_the_disk_while_it_was_laid_ready_goes_at_once(
    second: SmallBox, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The word that it ended needs space too: noted first, it was never noted, and the next `up` failed as well."""
    before, spec, real = second.content(), second.restore_spec(file), core.write_json

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def noted(path: str, value: Any, mode: int = 0o644) -> None:
        return full() if (second.var / "restore").exists() else real(path, value, mode)

    monkeypatch.setattr(restore, "extract", full)
    monkeypatch.setattr(restore, "write_json", noted)
    with pytest.raises(OSError, match="No space"):
        restore.stage(spec, silent)
    assert (told(second), clean(second)) == ("reverted", True)
    assert not (second.var / "restore").exists()
    assert second.content() == before


def clean(box: SmallBox) -> bool:
    return bool(json.loads((box.var / "run/restore.json").read_text())["clean"])


def test_what_cannot_be_moved_is_named(second: SmallBox, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, spec = second.content(), second.restore_spec(file)
    rename = os.rename

    def refusing(source: str, target: str) -> None:
        if source == str(second.var / "n8n-content.json"):
            raise PermissionError(errno.EPERM, "Operation not permitted", source)
        rename(source, target)

    restore.stage(spec, silent)
    monkeypatch.setattr(os, "rename", refusing)
    with pytest.raises(StepError, match=r"n8n-content\.json cannot be moved: Operation not permitted"):
        restore.swap(spec, silent)
    monkeypatch.setattr(os, "rename", rename)
    assert restore.revert(spec, silent)["data"]["reverted"]
    assert second.content() == before


MOUNTED = """
import os, shutil, subprocess, sys
from pathlib import Path
from ownstack.runner import backup, restore
from tests.fixtures.small_box import SmallBox
silent = lambda event: None
folder = Path(sys.argv[1])
first, second = SmallBox(folder / "first", "first"), SmallBox(folder / "second", "second")
second.identity.write_text(first.identity.read_text())
disk = second.var / "n8n"
shutil.move(disk, folder / "kept")
disk.mkdir()
subprocess.run(["mount", "-t", "tmpfs", "none", str(disk)], check=True)
subprocess.run(["cp", "-a", f"{folder}/kept/.", str(disk)], check=True)
before = second.content()
spec = second.restore_spec(backup.make(first.make_spec(), silent)["data"]["file"])
for last in (restore.revert, restore.finish):
    restore.stage(spec, silent)
    restore.swap(spec, silent)
    restored = second.content()
    assert restored["var/n8n/.n8n/database.sqlite"] == first.content()["var/n8n/.n8n/database.sqlite"]
    last(spec, silent)
    assert os.path.ismount(disk)
    assert second.content() == (before if last is restore.revert else restored)
print("exchanged")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts a file system, in a namespace of its own")
def test_a_data_folder_on_which_a_file_system_is_mounted(tmp_path: Path) -> None:
    command = ["unshare", "--mount", sys.executable, "-P", "-c", MOUNTED, str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=Path(__file__).parents[2])
    assert done.stdout == "exchanged\n", done.stderr
