"""Snapshots on real folders and databases: whole and opened, put back equal, wherever it is cut off."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sqlite3
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ownstack.runner import restore, snapshots, snapshots_aside, snapshots_data, snapshots_kept, snapshots_rehearsal
from ownstack.runner.core import Event, StepError
from ownstack.runner.n8n import fingerprint
from ownstack.runner.snapshots_counts import counts, database_counts

KEY = "a-key-of-n8n"


def silent(event: Event) -> None:
    """Nobody listens."""


def database(path: Path, **tables: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as made:
        made.execute("PRAGMA journal_mode = WAL")
        for name, rows in tables.items():
            made.execute(f'CREATE TABLE "{name}" (id INTEGER PRIMARY KEY, "startedAt" TEXT)')
            made.executemany(
                f'INSERT INTO "{name}" ("startedAt") VALUES (?)',  # noqa: S608
                [(f"2026-11-{day + 1:02} 10:00:00.000",) for day in range(rows)],
            )
        made.commit()


class Box:
    """The folders of a box with Open WebUI, Qdrant and n8n, and two releases of each program."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.var, self.opt, self.secrets = folder, folder / "var", folder / "opt", folder / "etc/secrets"
        for path in (self.var / "run", self.var / "work", self.secrets):
            path.mkdir(parents=True)
        self.web, self.flow, self.vectors = self.var / "open_webui", self.var / "n8n", self.var / "qdrant"
        database(self.web / "webui.db", user=2, chat=5, file=1, knowledge=1)
        (self.web / "uploads").mkdir()
        (self.web / "uploads/note.txt").write_text("a note")
        (self.web / "uploads/note.txt").chmod(0o640)
        database(
            self.flow / ".n8n/database.sqlite", user=1, workflow_entity=3, credentials_entity=2, execution_entity=9
        )
        (self.flow / ".n8n/config").write_text(json.dumps({"encryptionKey": KEY}))
        collection = self.vectors / "storage/collections/notes"
        collection.mkdir(parents=True)
        (collection / "config.json").write_text("{}")
        for name, text in (("n8n_encryption_key", KEY), ("n8n_api_key", "api"), ("open_webui_kit_password", "kit")):
            (self.secrets / name).write_text(text + "\n")
            (self.secrets / name).chmod(0o600)
        (self.var / "n8n-content.json").write_text(json.dumps({"key_fingerprint": fingerprint(KEY)}))
        (self.var / "manifest.json").write_text(json.dumps({"versions": "old"}))
        (folder / "etc/n8n").mkdir()
        (folder / "etc/n8n/env").write_text("version=2")
        for component in ("open_webui", "n8n", "node"):
            for version in ("1-aa", "2-bb", "3-cc"):
                (self.opt / component / "releases" / version).mkdir(parents=True)
            (self.opt / component / "current").symlink_to("releases/2-bb")

    def place(self, **more: Any) -> dict[str, Any]:
        return {
            "var": str(self.var), "state": str(self.var / "run/upgrade.json"), "lock": str(self.var / "run/lock"),
            "opt": str(self.opt), "secrets_dir": str(self.secrets), "manifest": str(self.var / "manifest.json"),
            "manager": "supervisord", "supervisor": {"bin": "/nonexistent", "config": "/nonexistent"}, **more,
        }  # fmt: skip

    def spec(self, role: str = "n8n", identity: str = "first", **more: Any) -> dict[str, Any]:
        folders = {"n8n": {"n8n": self.flow}, "open_webui": {"open_webui": self.web, "qdrant": self.vectors}}[role]
        databases = {"n8n": [".n8n/database.sqlite"], "open_webui": ["webui.db"], "qdrant": []}
        items = [{"name": name, "place": str(path), "databases": databases[name]} for name, path in folders.items()]
        count = {
            "databases": [
                {"service": name, "path": str(path / databases[name][0])}
                for name, path in folders.items()
                if databases[name]
            ],
            "since": "2026-11-05 00:00:00.000", "qdrant": None, "engine": "",
            "n8n_data": str(self.flow) if role == "n8n" else "",
        }  # fmt: skip
        return self.place(
            id=identity, run=identity, kind="upgrade", role=role, about={"from": {role: "2"}, "to": {role: "3"}},
            plan={"roles": []}, secrets=[f"{name}_" for name in folders], units=[], items=items,
            records=["n8n-content.json"] if role == "n8n" else [], components=[role, "node", "nowhere"], count=count,
            configuration=[str(self.folder / "etc/n8n/env"), str(self.folder / "etc/never")], **more,
        )  # fmt: skip

    def status(self) -> str:
        return str(json.loads((self.var / "run/upgrade.json").read_text())["status"])

    def days_later(self) -> None:
        """Whoever upgraded died, and the box goes on with the newer version."""
        path = self.var / "run/upgrade.json"
        state = json.loads(path.read_text())
        path.write_text(json.dumps({**state, "time": state["time"] - 7 * 86400}))

    def content(self) -> dict[str, str]:
        """All that people would miss: rows, bytes, modes, links."""
        found = {}
        for path in sorted([*self.var.rglob("*"), *(self.folder / "etc").rglob("*")]):
            name = str(path.relative_to(self.folder))
            if name.startswith(("var/snapshots", "var/run", "var/work")) or name.endswith(("-wal", "-shm")):
                continue
            mode = f"{stat.S_IMODE(path.lstat().st_mode):o} {path.lstat().st_uid}"
            if path.suffix in (".db", ".sqlite"):
                with contextlib.closing(sqlite3.connect(path)) as opened:
                    found[name] = mode + "\n".join(opened.iterdump())
            elif path.is_file():
                found[name] = mode + path.read_text()
            else:
                found[name] = mode
        for link in self.opt.glob("*/current"):
            found[str(link.relative_to(self.folder))] = os.readlink(link)
        return found

    def changed_by_the_new_version(self, role: str = "n8n") -> None:
        """As a switch and a migration leave it: another program, another schema, new files, another key, a manifest."""
        link = self.opt / role / "current"
        link.unlink()
        link.symlink_to("releases/3-cc")
        path = self.flow / ".n8n/database.sqlite" if role == "n8n" else self.web / "webui.db"
        with contextlib.closing(sqlite3.connect(path)) as opened:
            opened.execute("DROP TABLE user")
            opened.execute("CREATE TABLE migrated (id INTEGER)")
            opened.commit()
        (path.parent / "left-by-the-new-one").write_text("x")
        (self.folder / "etc/n8n/env").write_text("version=3")
        (self.secrets / f"{role}_new_secret").write_text("x\n")
        (self.var / "manifest.json").write_text(json.dumps({"versions": "new"}))
        if role == "n8n":
            (self.secrets / "n8n_encryption_key").write_text("another\n")
            (self.flow / ".n8n/config").unlink()
            (self.var / "n8n-content.json").unlink()


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


def kept(found: dict[str, str]) -> dict[str, str]:
    """Without the secret that a new version brought: nothing refers to it any more."""
    return {name: text for name, text in found.items() if not name.endswith("_new_secret")}


@pytest.mark.parametrize("role", ["n8n", "open_webui"])
def test_program_and_data_go_back_together(role: str, box: Box) -> None:
    before = box.content()
    taken = snapshots.take(box.spec(role), silent)["data"]
    assert box.content() == before, "taking it changes nothing"
    assert box.status() == "taken"
    assert Path(taken["folder"]).stat().st_mode & 0o077 == 0
    box.changed_by_the_new_version(role)
    done = snapshots.revert(box.place(), silent)["data"]
    assert (done["reverted"], done["role"], done["from"]) == (True, role, {role: "2"})
    assert kept(box.content()) == before
    assert box.status() == "reverted"
    assert sorted(os.listdir(box.var / "run")) == ["lock", "upgrade.json"]
    assert not (box.var / "snapshots").exists(), "the copy is in its place"
    assert not snapshots.revert(box.place(), silent)["data"]["reverted"]


def test_a_kept_upgrade_leaves_the_last_snapshot_and_two_releases(box: Box) -> None:
    for identity, version in (("first", "2-bb"), ("second", "3-cc")):
        link = box.opt / "n8n/current"
        snapshots.take(box.spec(identity=identity), silent)
        target = "releases/3-cc" if version == "2-bb" else "releases/4-dd"
        (box.opt / "n8n" / target).mkdir(exist_ok=True)
        link.unlink()
        link.symlink_to(target)
        snapshots.commit(box.place(), silent)
        assert box.status() == "done"
    rows = snapshots_kept.held(box.place(), silent)["data"]["snapshots"]
    assert [row["id"] for row in rows] == ["second"]
    assert rows[0]["counts"]["tables"]["n8n"]["workflows"] == 3
    assert rows[0]["links"] == {"n8n": "releases/3-cc", "node": "releases/2-bb"}
    assert sorted(os.listdir(box.opt / "n8n/releases")) == ["3-cc", "4-dd"]
    assert sorted(os.listdir(box.opt / "node/releases")) == ["1-aa", "2-bb", "3-cc"], "what did not move stays as it is"
    assert not snapshots.commit(box.place(), silent)["changed"]


def test_a_python_that_an_environment_was_made_with_stays(box: Box) -> None:
    python = box.opt / "node/releases/1-aa/bin/python3"
    python.parent.mkdir()
    python.write_text("")
    for version in ("2-bb", "3-cc"):
        (box.opt / "open_webui/releases" / version / "bin").mkdir()
    (box.opt / "open_webui/releases/2-bb/bin/python").symlink_to(python)
    link = box.opt / "node/current"
    link.unlink()
    link.symlink_to("releases/3-cc")
    assert snapshots_kept.prune(str(box.opt), {"node": "releases/2-bb"}) == []
    (box.opt / "open_webui/releases/2-bb/bin/python").unlink()
    assert [Path(path).name for path in snapshots_kept.prune(str(box.opt), {"node": "releases/2-bb"})] == ["1-aa"]


def test_rows_that_lie_in_the_log_of_a_killed_service_are_in_the_snapshot(box: Box) -> None:
    path = box.flow / ".n8n/database.sqlite"
    script = (
        "import os, sqlite3, sys; d = sqlite3.connect(sys.argv[1]); d.execute('PRAGMA wal_autocheckpoint = 0');"
        "d.execute('INSERT INTO workflow_entity DEFAULT VALUES'); d.commit(); os._exit(9)"
    )
    subprocess.run(["python3", "-c", script, str(path)], check=False)
    assert path.with_name("database.sqlite-wal").stat().st_size > 0
    taken = snapshots.take(box.spec(), silent)["data"]
    assert taken["counts"]["tables"]["n8n"]["workflows"] == 4
    copy = Path(taken["folder"]) / "data/n8n/.n8n/database.sqlite"
    assert database_counts("n8n", str(copy), still=True)["workflows"] == 4
    assert not copy.with_name("database.sqlite-wal").exists()


# -- what it refuses -----------------------------------------------------------------------------------------


def damage(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.seek(4096)
        stream.write(os.urandom(4096))


def test_a_damaged_database_is_found_before_anything_changes(box: Box) -> None:
    damage(box.flow / ".n8n/database.sqlite")
    spec = box.spec()
    spec["count"]["databases"] = []  # else counting would find it first
    with pytest.raises(StepError) as caught:
        snapshots.take(spec, silent)
    assert caught.value.code in ("snapshot", "database")
    assert "damaged" in caught.value.message or "cannot be counted" in caught.value.message
    assert box.status() == "taking"
    before = (box.flow / ".n8n/database.sqlite").read_bytes()
    assert snapshots.revert(box.place(), silent)["data"]["reverted"]
    assert (box.flow / ".n8n/database.sqlite").read_bytes() == before
    assert not (box.var / "snapshots").exists()


def test_a_collection_that_cannot_be_read_is_found(box: Box) -> None:
    (box.vectors / "storage/collections/notes/config.json").write_text("{")
    with pytest.raises(StepError, match="collection notes cannot be read") as caught:
        snapshots.take(box.spec("open_webui"), silent)
    assert caught.value.code == "snapshot"


@pytest.mark.parametrize("fault", ["changed", "lost"])
def test_a_key_that_does_not_fit_the_data_is_found(fault: str, box: Box) -> None:
    secret = box.secrets / "n8n_encryption_key"
    secret.write_text("another\n") if fault == "changed" else secret.unlink()
    with pytest.raises(StepError) as caught:
        snapshots.take(box.spec(), silent)
    assert "n8n_encryption_key" in caught.value.message
    assert KEY not in caught.value.message


def test_a_second_one_is_refused_while_one_is_open(box: Box) -> None:
    snapshots.take(box.spec(), silent)
    with pytest.raises(StepError) as caught:
        snapshots.take(box.spec(identity="second"), silent)
    assert caught.value.code == "upgrade-pending"
    assert not snapshots.revert(box.place(id="second"), silent)["data"]["reverted"], "it is not the second one's"
    assert box.status() == "taken"
    with pytest.raises(StepError):
        snapshots_kept.drop({**box.place(), "ids": ["first"]}, silent)


def test_too_little_space_is_said_before_anything_stops(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    small = shutil.disk_usage(box.var)._replace(free=70 << 20)
    (box.flow / "files").mkdir()
    (box.flow / "files/large").write_bytes(os.urandom(4 << 20))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: small)
    with pytest.raises(StepError, match="MiB free") as caught:
        snapshots.take(box.spec(), silent)
    assert caught.value.code == "disk-full"
    assert not (box.var / "run/upgrade.json").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MB of its own."""
    path = tmp_path / "disk"
    path.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "none", str(path)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip(f"a file system of its own needs root: {made.stderr.decode().strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_disk_that_fills_up_while_copying(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    box = Box(small_disk / "box")
    (box.flow / "files").mkdir()
    (box.flow / "files/large").write_bytes(os.urandom(7 << 20))

    def files() -> dict[Path, bytes]:
        """Without what SQLite itself puts beside a database that is looked at."""
        found = [path for path in box.flow.rglob("*") if path.is_file() and not path.name.endswith(("-shm", "-wal"))]
        return {path: path.read_bytes() for path in found}

    before = files()
    monkeypatch.setattr(snapshots, "space", lambda spec, emit: None)  # as if the disk were filled meanwhile
    with pytest.raises(StepError, match="no space left") as caught:
        snapshots.take(box.spec(), silent)
    assert caught.value.code == "disk-full"
    assert box.status() == "taking"
    assert not (box.var / "snapshots").exists(), "the journal may need the space"
    snapshots.revert(box.place(), silent)
    assert files() == before


def test_a_disk_that_a_migration_filled_is_no_hindrance_to_going_back(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = Box(small_disk / "box")
    (box.flow / "files").mkdir()
    (box.flow / "files/large").write_bytes(os.urandom(3 << 20))
    with monkeypatch.context() as patched:
        patched.setattr(snapshots, "space", lambda spec, emit: None)
        snapshots.take(box.spec(), silent)
    wanted = {path: path.read_bytes() for path in (box.flow / "files").iterdir()}
    with contextlib.suppress(OSError):
        (box.flow / "grown").write_bytes(os.urandom(12 << 20))
    assert shutil.disk_usage(small_disk).free < 1 << 20
    assert snapshots.revert(box.place(), silent)["data"]["reverted"]
    assert {path: path.read_bytes() for path in (box.flow / "files").iterdir()} == wanted
    assert not (box.flow / "grown").exists()


# -- a folder that is a mount, or lies elsewhere -------------------------------------------------------------


def test_a_data_folder_that_is_a_mount_of_its_own(small_disk: Path, tmp_path: Path) -> None:
    box = Box(tmp_path / "box")
    shutil.copytree(box.flow, small_disk, dirs_exist_ok=True)
    shutil.rmtree(box.flow)
    box.flow.mkdir()
    subprocess.run(["mount", "--bind", str(small_disk), str(box.flow)], check=True)
    try:
        before = box.content()
        snapshots.take(box.spec(), silent)
        box.changed_by_the_new_version()
        assert snapshots.revert(box.place(), silent)["data"]["reverted"]
        assert os.path.ismount(box.flow)
        assert kept(box.content()) == before
        assert not (box.var / "snapshots").exists()
    finally:
        subprocess.run(["umount", "-l", str(box.flow)], check=True)


def test_a_data_folder_that_is_a_link(box: Box) -> None:
    elsewhere = box.folder / "elsewhere"
    box.flow.rename(elsewhere)
    box.flow.symlink_to(elsewhere)
    before = (elsewhere / ".n8n/config").read_text()
    snapshots.take(box.spec(), silent)
    box.changed_by_the_new_version()
    snapshots.revert(box.place(), silent)
    assert box.flow.is_symlink()
    assert (elsewhere / ".n8n/config").read_text() == before
    assert not (elsewhere / ".n8n/left-by-the-new-one").exists()


# -- cut off -------------------------------------------------------------------------------------------------


class Cut(BaseException):
    """The process ends here, as by SIGKILL."""


TOUCHING = {
    snapshots_data: ("_remove", "_rename", "copy_folder", "put_file", "switch", "write_secret", "empty"),
    snapshots: ("_remove", "copy_folder", "discard"),
    snapshots_kept: ("_remove",),
    snapshots_aside: ("_move", "write_json", "sync_folder"),
}


def cut_at(monkeypatch: pytest.MonkeyPatch, limit: int) -> list[str]:
    """End before the call with this number of all that change something."""
    done: list[str] = []

    def counted(name: str, real: Any) -> Any:
        def one(*words: Any, **more: Any) -> Any:
            if len(done) == limit:
                raise Cut
            done.append(name)
            return real(*words, **more)

        return one

    for module, names in TOUCHING.items():
        for name in names:
            monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    return done


def upgraded(tmp_path: Path, role: str) -> Iterator[tuple[int, Box, dict[str, Any]]]:
    """Boxes between two versions, one for each point of cutting off: its number, and what the box held before."""
    for limit in range(60):
        box = Box(tmp_path / str(limit))
        before = box.content()
        snapshots.take(box.spec(role), silent)
        box.changed_by_the_new_version(role)
        yield limit, box, before


def reverted(box: Box, monkeypatch: pytest.MonkeyPatch, limit: int) -> dict[str, Any] | None:
    """Put back, cut off at a point; None where that point came."""
    with monkeypatch.context() as patched:
        cut_at(patched, limit)
        try:
            done: dict[str, Any] = snapshots.revert(box.place(), silent)["data"]
        except Cut:
            return None
    return done


def started_meanwhile(box: Box, role: str) -> None:
    """The machine starts again, and the program that the link names: the newer one changes whatever data is there."""
    path = box.flow / ".n8n/database.sqlite" if role == "n8n" else box.web / "webui.db"
    if os.readlink(box.opt / role / "current") == "releases/3-cc" and path.exists():
        with contextlib.closing(sqlite3.connect(path)) as opened:
            opened.execute("DROP TABLE IF EXISTS user")
            opened.execute("CREATE TABLE IF NOT EXISTS migrated (id INTEGER)")
            opened.commit()


@pytest.mark.parametrize("role", ["n8n", "open_webui"])
def test_going_back_may_be_cut_off_anywhere_and_ends_the_same(
    role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a program starts before it is gone on with: that finds no data which was put back already."""
    points = 0
    for limit, box, before in upgraded(tmp_path, role):
        if reverted(box, monkeypatch, limit) is not None:
            break
        points += 1
        started_meanwhile(box, role)
        if box.status() == "taken":
            assert snapshots.revert(box.place(), silent)["data"]["reverted"]
        assert box.status() == "reverted"
        assert kept(box.content()) == before, limit
    else:
        pytest.fail("it never came to its end")
    assert points >= 5


def beside(box: Box) -> list[str]:
    """The files that only the newer version writes, where they lie now."""
    return sorted(str(path.relative_to(box.folder)) for path in box.folder.rglob("left-by-the-new-one"))


@pytest.mark.parametrize("role", ["n8n", "open_webui"])
def test_what_people_have_worked_with_lies_aside_wherever_it_is_cut_off(
    role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = 0
    for limit, box, before in upgraded(tmp_path, role):
        box.days_later()
        done = reverted(box, monkeypatch, limit)
        points += done is None
        if box.status() == "taken":
            done = snapshots.revert(box.place(), silent)["data"]
        assert kept(box.content()) == before, limit
        (row,) = snapshots_kept.held(box.place(), silent)["data"]["replaced"]
        database = "n8n/.n8n/database.sqlite" if role == "n8n" else "open_webui/webui.db"
        with contextlib.closing(sqlite3.connect(box.var / "snapshots/first.replaced" / database)) as opened:
            assert opened.execute("SELECT count(*) FROM migrated").fetchone() == (0,), limit
        assert len(beside(box)) == 1, limit
        if done:
            assert done["replaced"] == row["paths"]
        if not points or limit >= points:
            break
    else:
        pytest.fail("it never came to its end")
    assert points >= 8


def test_what_lies_aside_is_told_and_dropped_on_demand(box: Box) -> None:
    snapshots.take(box.spec(), silent)
    box.changed_by_the_new_version()
    box.days_later()
    told = snapshots.recover(box.place(), silent)
    (row,) = snapshots_kept.held(box.place(), silent)["data"]["replaced"]
    assert told.endswith(f"as they were before it; what was there since is kept in {row['paths'][0]}")
    assert (row["role"], row["kind"], row["to"], row["bytes"] > 1000) == ("n8n", "upgrade", {"n8n": "3"}, True)
    snapshots.take(box.spec(identity="second"), silent)
    snapshots.commit(box.place(), silent)
    assert len(beside(box)) == 1, "a further upgrade leaves it where it is"
    dropped = snapshots_kept.drop({**box.place(), "ids": ["first"]}, silent)["data"]["removed"]
    assert dropped == row["paths"]
    assert beside(box) == []
    assert snapshots_kept.held(box.place(), silent)["data"]["replaced"] == []
    assert len(snapshots_kept.held(box.place(), silent)["data"]["snapshots"]) == 1


def test_a_second_one_never_takes_the_place_of_the_first(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off after it was set aside; then the service started, and people came in once more."""
    snapshots.take(box.spec(), silent)
    box.changed_by_the_new_version()
    box.days_later()
    with monkeypatch.context() as patched:
        patched.setattr(snapshots, "_put_back", lambda *words: (_ for _ in ()).throw(Cut))
        with pytest.raises(Cut):
            snapshots.revert(box.place(), silent)
    assert not box.flow.exists()
    box.flow.mkdir()
    (box.flow / "made since").write_text("x")
    assert snapshots.revert(box.place(), silent)["data"]["reverted"]
    (row,) = snapshots_kept.held(box.place(), silent)["data"]["replaced"]
    assert [sorted(os.listdir(path)) for path in row["paths"]] == [[".n8n"], ["made since"]]


def test_where_it_cannot_be_kept_aside_nothing_is_put_back(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshots.take(box.spec("open_webui"), silent)
    box.changed_by_the_new_version("open_webui")
    box.days_later()
    after = box.content()
    real = snapshots_aside._move

    def second_fails(place: str, path: str) -> None:
        if place.endswith("qdrant"):
            raise OSError(28, "No space left on device")
        real(place, path)

    with monkeypatch.context() as patched:
        patched.setattr(snapshots_aside, "_move", second_fails)
        with pytest.raises(StepError, match="cannot be kept aside") as caught:
            snapshots.revert(box.place(), silent)
    assert caught.value.code == "disk-full"
    assert box.content() == after
    assert box.status() == "taken"
    assert snapshots.revert(box.place(), silent)["data"]["reverted"]


def test_a_run_that_takes_back_what_filled_the_disk_keeps_nothing(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """A migration may take longer than people need to come in; the earlier version needs its space."""
    before = box.content()
    snapshots.take(box.spec(), silent)
    box.changed_by_the_new_version()
    box.days_later()
    full = shutil.disk_usage(box.var)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    assert snapshots.revert(box.place(id="first"), silent)["data"]["replaced"] == []
    assert beside(box) == []
    assert kept(box.content()) == before


@pytest.mark.parametrize("how", ["mounted", "linked"])
def test_on_a_disk_of_its_own_it_lies_beside(how: str, small_disk: Path, tmp_path: Path) -> None:
    box = Box(tmp_path / "box")
    data = small_disk / "n8n"
    shutil.copytree(box.flow, data)
    shutil.rmtree(box.flow)
    if how == "linked":
        box.flow.symlink_to(data)
    else:
        box.flow.mkdir()
        subprocess.run(["mount", "--bind", str(data), str(box.flow)], check=True)
    try:
        before = box.content()
        snapshots.take(box.spec(), silent)
        box.changed_by_the_new_version()
        box.days_later()
        (path,) = snapshots.revert(box.place(), silent)["data"]["replaced"]
        assert path == str(
            small_disk / "n8n.replaced-first" if how == "linked" else box.var / "snapshots/first.replaced/n8n"
        )
        assert (Path(path) / ".n8n/left-by-the-new-one").exists()
        assert kept(box.content()) == before
        snapshots_kept.drop({**box.place(), "ids": ["first"]}, silent)
        assert not Path(path).exists()
        assert not (box.var / "snapshots").exists()
    finally:
        subprocess.run(["umount", "-l", str(box.flow)], check=how == "mounted")


def test_a_copy_that_was_half_removed_is_not_put_back_again(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where data lies on another disk its copy is put back by copying, and removed afterwards."""
    monkeypatch.setattr(snapshots_data, "one_disk", lambda copy, place: False)
    real = restore._remove
    before = box.content()
    snapshots.take(box.spec(), silent)
    box.changed_by_the_new_version()

    def half(path: str) -> None:
        if "/snapshots/" in path:
            os.unlink(os.path.join(path, ".n8n/database.sqlite"))
            raise Cut
        real(path)

    with monkeypatch.context() as patched:
        patched.setattr(snapshots_data, "_remove", half)
        with pytest.raises(Cut):
            snapshots.revert(box.place(), silent)
    assert box.status() == "taken"
    assert snapshots.revert(box.place(), silent)["data"]["reverted"]
    assert kept(box.content()) == before


def test_taking_may_be_cut_off_anywhere_and_changed_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = 0
    for limit in range(60):
        box = Box(tmp_path / str(limit))
        before = box.content()
        with monkeypatch.context() as patched:
            cut_at(patched, limit)
            try:
                snapshots.take(box.spec("open_webui"), silent)
            except Cut:
                points += 1
            else:
                break
        assert box.status() == "taking"
        assert snapshots_kept.held(box.place(), silent)["data"]["snapshots"] == []
        snapshots.revert(box.place(), silent)
        assert box.content() == before
        assert not (box.var / "snapshots").exists()
    assert points >= 3


def test_putting_back_never_looks_before_a_copy_that_is_begun_is_made(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client may die while `take` has not even written that it is at work."""
    real = snapshots.space

    def meanwhile(spec: dict[str, Any], emit: Any) -> Any:
        with pytest.raises(StepError) as caught:
            snapshots.revert(box.place(), silent)
        assert caught.value.code == "busy"
        return real(spec, emit)

    monkeypatch.setattr(snapshots, "space", meanwhile)
    assert not (box.var / "run/upgrade.json").exists()
    snapshots.take(box.spec(), silent)
    assert snapshots.revert(box.place(), silent)["data"]["reverted"]


def test_a_commit_that_was_cut_off_is_finished(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshots.take(box.spec(), silent)
    box.changed_by_the_new_version()
    after = box.content()
    with monkeypatch.context() as patched:
        patched.setattr(snapshots, "prune", lambda opt, before: (_ for _ in ()).throw(Cut))
        with pytest.raises(Cut):
            snapshots.commit(box.place(), silent)
    assert box.status() == "passed"
    assert not snapshots.revert(box.place(), silent)["data"]["reverted"], "what has passed is not taken back"
    snapshots.commit(box.place(), silent)
    assert box.status() == "done"
    assert box.content() == after


def full(path: str, value: Any, mode: int = 0o644) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_no_hindrance_to_keeping_what_has_passed(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshots.take(box.spec(), silent)
    box.changed_by_the_new_version()
    after = box.content()
    with monkeypatch.context() as patched:
        patched.setattr(snapshots, "write_json", full)
        snapshots.commit(box.place(), silent)
    assert box.status() == "passed"
    now = snapshots.revert(box.place(id="first"), silent)["data"]
    assert (now["reverted"], now["stays"]) == (False, True)
    snapshots.commit(box.place(), silent)
    assert box.status() == "done"
    assert box.content() == after
    assert snapshots_kept.held(box.place(), silent)["data"]["snapshots"][0]["id"] == "first"
    assert not (box.var / "run/upgrade.json.next").exists()


@pytest.mark.parametrize("status", ["taking", "taken", "passed", "done"])
def test_after_a_start_of_the_machine_it_is_ended(status: str, box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    before = box.content()
    with monkeypatch.context() as patched:
        if status == "taking":
            patched.setattr(snapshots, "copy_folder", lambda source, target: (_ for _ in ()).throw(Cut))
        with contextlib.suppress(Cut):
            snapshots.take(box.spec(), silent)
        if status != "taking":
            box.changed_by_the_new_version()
        if status == "passed":
            patched.setattr(snapshots, "prune", lambda opt, links: (_ for _ in ()).throw(Cut))
        if status in ("passed", "done"):
            with contextlib.suppress(Cut):
                snapshots.commit(box.place(), silent)
    assert box.status() == status
    after = box.content()
    told = snapshots.recover(box.place(), silent)
    assert ("cut off" in told) == (status != "done")
    assert ("it is finished now" in told) == (status == "passed")
    assert kept(box.content()) == (before if status in ("taking", "taken") else kept(after))
    assert snapshots.recover(box.place(), silent) == ""


def test_without_its_copy_no_earlier_program_opens_the_newer_data(box: Box) -> None:
    """Somebody who needed space took it away."""
    snapshots.take(box.spec(), silent)
    box.changed_by_the_new_version()
    after = box.content()
    shutil.rmtree(box.var / "snapshots")
    told = snapshots.recover(box.place(), silent)
    assert f"is gone from {box.var}/snapshots/first: what is there stays" in told
    back = snapshots.revert(box.place(), silent)["data"]
    assert (back["reverted"], back["gone"]) == (False, f"{box.var}/snapshots/first")
    assert box.content() == after
    snapshots.commit(box.place(), silent)
    assert (box.status(), box.content()) == ("done", after)


# -- the way back later --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["silent", "damaged", "key"])
def test_what_is_not_sound_today_can_be_gone_back_from(fault: str, box: Box) -> None:
    """A newer version that broke its data, or does not answer, is why somebody goes back."""
    before = box.content()
    snapshots.take(box.spec(), silent)
    box.changed_by_the_new_version()
    (box.secrets / "n8n_encryption_key").write_text(KEY + "\n")
    (box.flow / ".n8n/config").write_text(json.dumps({"encryptionKey": KEY}))
    snapshots.commit(box.place(), silent)
    spec = {**box.spec(identity="today"), "kind": "rollback"}
    if fault == "silent":
        spec["count"] = {**spec["count"], "engine": "http://127.0.0.1:9"}
    if fault == "key":
        (box.secrets / "n8n_encryption_key").write_text("another\n")
    path = box.flow / ".n8n/database.sqlite"
    if fault == "damaged":
        path.write_bytes(path.read_bytes()[:4096] + b"\xff" * 8192)
    with pytest.raises(StepError):
        snapshots.take({**spec, "kind": "upgrade"}, silent)
    snapshots.revert(box.place(), silent)
    snapshots.take(spec, silent)
    snapshots.put({**box.place(), "from": "first"}, silent)
    now = kept(box.content())
    for name in ("var/manifest.json", "etc/n8n/env"):  # written anew by whoever goes back
        now.pop(name), before.pop(name)
    assert now == before


def test_later_todays_data_stays_aside_and_both_ways_are_open(box: Box) -> None:
    old = box.content()
    snapshots.take(box.spec(), silent)
    box.changed_by_the_new_version()
    (box.secrets / "n8n_encryption_key").write_text(KEY + "\n")
    (box.flow / ".n8n/config").write_text(json.dumps({"encryptionKey": KEY}))
    snapshots.commit(box.place(), silent)
    today = box.content()
    snapshots.take({**box.spec(identity="today"), "kind": "rollback"}, silent)
    snapshots.put({**box.place(), "from": "first"}, silent)
    written_anew = ("var/manifest.json", "etc/n8n/env")  # by whoever goes back
    now = kept(box.content())
    for name in written_anew:
        now.pop(name), old.pop(name)
    assert now == old
    assert snapshots.revert(box.place(), silent)["data"]["kind"] == "rollback"
    assert box.content() == today, "a way back that fails undoes itself"
    assert [row["id"] for row in snapshots_kept.held(box.place(), silent)["data"]["snapshots"]] == ["first"]
    snapshots.take({**box.spec(identity="again"), "kind": "rollback"}, silent)
    snapshots.put({**box.place(), "from": "first"}, silent)
    snapshots.commit(box.place(), silent)
    assert [row["id"] for row in snapshots_kept.held(box.place(), silent)["data"]["snapshots"]] == ["again"]


def test_putting_back_leaves_alone_what_it_is_told_to(box: Box) -> None:
    snapshots.take(box.spec("open_webui"), silent)
    snapshots.commit(box.place(), silent)
    (box.vectors / "storage/newer").write_text("opened by a newer version")
    (box.web / "later").write_text("x")
    snapshots.take(box.spec("open_webui", "today"), silent)
    snapshots.put({**box.place(), "from": "first", "leave": ["qdrant"]}, silent)
    assert (box.vectors / "storage/newer").exists()
    assert not (box.web / "later").exists()


@pytest.mark.parametrize("leave", [[], ["n8n-content.json"]])
def test_a_record_that_it_is_told_to_leave_stays(leave: list[str], box: Box) -> None:
    """Which models the kit pulled, say: the way back of an engine leaves models as they are."""
    record = box.var / "n8n-content.json"
    then, today = record.read_text(), json.dumps({"key_fingerprint": fingerprint(KEY), "more": "since"})
    snapshots.take(box.spec(), silent)
    snapshots.commit(box.place(), silent)
    record.write_text(today)
    snapshots.take(box.spec(identity="today"), silent)
    snapshots.put({**box.place(), "from": "first", "leave": leave}, silent)
    assert record.read_text() == (today if leave else then)


def test_it_is_not_put_back_without_a_copy_of_today_or_without_its_program(box: Box) -> None:
    with pytest.raises(StepError, match="today's data was not copied"):
        snapshots.put({**box.place(), "from": "first"}, silent)
    snapshots.take(box.spec(), silent)
    snapshots.commit(box.place(), silent)
    shutil.rmtree(box.opt / "n8n/releases/2-bb")
    snapshots.take(box.spec(identity="today"), silent)
    before = box.content()
    with pytest.raises(StepError, match="the earlier n8n is gone") as caught:
        snapshots.put({**box.place(), "from": "first"}, silent)
    assert caught.value.code == "no-release"
    assert box.content() == before


def test_discarded_ones_are_gone(box: Box) -> None:
    snapshots.take(box.spec(), silent)
    snapshots.commit(box.place(), silent)
    assert snapshots_kept.drop({**box.place(), "ids": ["first", "../../etc"]}, silent)["changed"]
    assert not (box.var / "snapshots").exists()
    assert (box.folder / "etc").exists()


# -- counting ------------------------------------------------------------------------------------------------


def test_people_things_are_counted_and_old_runs_are_not(box: Box) -> None:
    data = counts(box.spec()["count"], silent)["data"]
    assert data["tables"] == {"n8n": {"accounts": 1, "workflows": 3, "credentials": 2, "runs": 5}}
    assert data["key"] == fingerprint(KEY)
    web = counts(box.spec("open_webui")["count"], silent)["data"]["tables"]["open_webui"]
    assert web == {"accounts": 2, "chats": 5, "files": 1, "knowledge collections": 1}


def test_runs_that_n8n_prunes_are_not_counted(box: Box) -> None:
    """It marks them first and deletes them an hour later; and it keeps no more than its newest 10,000."""
    path = box.flow / ".n8n/database.sqlite"

    def runs() -> int:
        return database_counts("n8n", str(path), "2026-11-05 00:00:00.000")["runs"]

    with contextlib.closing(sqlite3.connect(path)) as live:
        live.execute('ALTER TABLE execution_entity ADD COLUMN "deletedAt" TEXT')
        live.execute("ALTER TABLE execution_entity ADD COLUMN status TEXT DEFAULT 'success'")
        live.commit()
        assert runs() == 5
        live.execute("UPDATE execution_entity SET \"deletedAt\" = '2026-11-09' WHERE id = 9")
        live.execute("UPDATE execution_entity SET status = 'waiting' WHERE id = 8")
        live.commit()
        assert runs() == 3
        row = 'INSERT INTO execution_entity ("startedAt") VALUES (?)'
        live.executemany(row, [("2026-11-20 10:00:00.000",)] * 12_000)
        live.commit()
        before = runs()
        live.execute(
            "UPDATE execution_entity SET \"deletedAt\" = '2026-11-21' "
            "WHERE id <= (SELECT id FROM execution_entity ORDER BY id DESC LIMIT 1 OFFSET 10000)"
        )
        live.commit()
        assert runs() == before


def test_what_is_no_database_cannot_be_counted(box: Box) -> None:
    (box.web / "webui.db").write_text("no database at all, but long enough to be looked at" * 100)
    with pytest.raises(StepError, match="cannot be counted"):
        counts(box.spec("open_webui")["count"], silent)


# -- a copy for a rehearsal ----------------------------------------------------------------------------------


def test_a_copy_for_a_rehearsal_is_whole_while_it_is_written_to(box: Box) -> None:
    path = box.flow / ".n8n/database.sqlite"
    (item,) = box.spec()["items"]
    copy = box.folder / "rehearsal/n8n"
    copy.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as live:
        live.execute("INSERT INTO workflow_entity DEFAULT VALUES")
        live.commit()
        for _ in range(2):
            snapshots_rehearsal.copy_live(item, str(copy))
            assert database_counts("n8n", str(copy / ".n8n/database.sqlite"), still=True)["workflows"] == 4
            assert not (copy / ".n8n/database.sqlite-wal").exists()
    assert (copy / ".n8n/config").read_text() == (box.flow / ".n8n/config").read_text()
    assert (copy / ".n8n/database.sqlite").stat().st_mode == path.stat().st_mode


def test_a_copy_for_a_rehearsal_is_of_its_own_database_alone(box: Box) -> None:
    (item,) = box.spec()["items"]
    link, other = box.flow / ".n8n/database.sqlite", box.folder / "other.sqlite"
    link.rename(other)
    link.symlink_to(other)
    with pytest.raises(StepError) as caught:
        snapshots_rehearsal.copy_live(item, str(box.folder / "rehearsal/n8n"))
    assert caught.value.code == "link"


def test_a_copy_for_a_rehearsal_bears_a_file_that_goes_meanwhile(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """As SQLite's journals do."""
    (item,) = box.spec()["items"]
    copy = box.folder / "rehearsal/n8n"
    copy.parent.mkdir()
    real, tries = snapshots_data.copy_folder, []

    def first_fails(source: str, target: str) -> None:
        tries.append(source)
        if len(tries) == 1:
            raise StepError("cp: cannot stat 'database.sqlite-journal': No such file or directory")
        real(source, target)

    monkeypatch.setattr(snapshots_rehearsal, "copy_folder", first_fails)
    snapshots_rehearsal.copy_live(item, str(copy))
    assert len(tries) == 2
    assert (copy / ".n8n/config").read_text() == (box.flow / ".n8n/config").read_text()
