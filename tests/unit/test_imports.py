"""Data from elsewhere: found, read without a trace, checked, laid ready; all of it or nothing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ownstack.runner import imports, imports_n8n, restore, snapshots_aside
from ownstack.runner.core import Event, StepError
from ownstack.runner.imports_source import copy_database, recognised
from tests.fixtures.small_box import SmallBox, writer

KEY = "TheirKey/+0123456789="
# a process that is killed in the middle of its work: what it had committed counts, what it had not does not
KILLED = """
import os, signal, sqlite3, sys
work = sqlite3.connect(sys.argv[1], isolation_level=None)
work.execute(f"PRAGMA journal_mode = {sys.argv[2]}")
work.execute("PRAGMA cache_size = 2")
work.execute("PRAGMA wal_autocheckpoint = 0")
work.execute("CREATE TABLE chat (id INTEGER PRIMARY KEY, text TEXT)")
work.execute("BEGIN")
work.executemany("INSERT INTO chat (text) VALUES (?)", [("x" * 900,)] * 200)
work.execute("COMMIT")
work.execute("BEGIN")
work.executemany("INSERT INTO chat (text) VALUES (?)", [("y" * 900,)] * 200)
work.execute("UPDATE chat SET text = 'z'")
os.kill(os.getpid(), signal.SIGKILL)
"""


def silent(event: Event) -> None:
    """Nobody listens."""


def seen(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.stat().st_mtime_ns}"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def rows(path: Path, query: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(path)) as held:
        return held.execute(query).fetchall()


def code(caught: pytest.ExceptionInfo[StepError]) -> str:
    return caught.value.code


# ---------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_a_database_is_copied_whole_while_it_is_written(mode: str, tmp_path: Path) -> None:
    with writer(tmp_path / "webui.db", mode):
        for number in range(5):
            copy = tmp_path / f"copy{number}"
            copy_database(str(tmp_path / "webui.db"), str(copy))
            left, right = (rows(copy, f"SELECT number, count(*) FROM {t} GROUP BY 1") for t in ("left_table", "right_table"))  # noqa: E501, S608  # fmt: skip
            assert left == right
            assert rows(copy, "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_what_a_killed_process_left_is_brought_in_on_the_copy_alone(mode: str, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    subprocess.run([sys.executable, "-c", KILLED, str(folder / "webui.db"), mode], check=False)
    side = "webui.db-wal" if mode == "WAL" else "webui.db-journal"
    assert (folder / side).stat().st_size
    before = seen(folder)
    copy_database(str(folder / "webui.db"), str(tmp_path / "copy"))
    assert rows(tmp_path / "copy", "SELECT count(*), max(text) FROM chat") == [(200, "x" * 900)]
    assert seen(folder) == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("copy")] == ["copy"]


def test_a_database_that_nobody_has_open_gets_no_files_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    with contextlib.closing(sqlite3.connect(folder / "webui.db")) as made:
        made.execute("PRAGMA journal_mode = WAL")
        made.execute("CREATE TABLE chat (id)")
    assert [path.name for path in folder.iterdir()] == ["webui.db"]
    before = seen(folder)
    copy_database(str(folder / "webui.db"), str(tmp_path / "copy"))
    assert seen(folder) == before


# ------------------------------------------------------------------------------------------------------ recognising


def webui(folder: Path, revision: str = "b2", **more: str) -> Path:
    """An Open WebUI's folder: an administrator, chats, an upload in a container."""
    folder.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(folder / "webui.db")) as made:
        made.executescript(
            "CREATE TABLE user (id TEXT, email TEXT, role TEXT, created_at INTEGER); CREATE TABLE auth (id TEXT);"
            "CREATE TABLE chat (id TEXT); CREATE TABLE file (id TEXT, path TEXT); CREATE TABLE knowledge (id TEXT);"
            "CREATE TABLE alembic_version (version_num TEXT); CREATE TABLE config (key TEXT, value JSON);"
        )
        made.execute("INSERT INTO user VALUES ('u1', 'mara@example.org', 'admin', 1), ('u2', 'jo', 'user', 2)")
        made.execute("INSERT INTO chat VALUES ('c1'), ('c2')")
        made.execute("INSERT INTO file VALUES ('f1', '/app/backend/data/uploads/f1_a.txt'), ('f2', 's3://away/b')")
        made.execute("INSERT INTO alembic_version VALUES (?)", (revision,))
        settings = {
            "rag.top_k": 3,
            "rag.embedding_engine": "",
            "rag.enable_hybrid_search": True,
            "ui.banners": ["mine"],
            **more,
        }
        made.executemany("INSERT INTO config VALUES (?, ?)", [(k, json.dumps(v)) for k, v in settings.items()])
        made.commit()
    (folder / "uploads").mkdir()
    (folder / "uploads/f1_a.txt").write_text("theirs")
    (folder / "uploads/link").symlink_to("/etc/shadow")
    (folder / "vector_db").mkdir()
    (folder / "vector_db/big").write_text("x" * 1000)
    return folder


def flows(folder: Path, key: str = KEY, migration: str = "Known1000000000001") -> Path:
    folder.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(folder / "database.sqlite")) as made:
        made.executescript(
            "CREATE TABLE user (id TEXT, email TEXT, roleSlug TEXT);"
            "CREATE TABLE credentials_entity (id TEXT, data TEXT);"
            "CREATE TABLE workflow_entity (id TEXT, active INTEGER);"
            "CREATE TABLE migrations (name TEXT, timestamp INT);"
        )
        made.execute("INSERT INTO user VALUES ('o', 'mara@example.org', 'global:owner')")
        made.execute("INSERT INTO credentials_entity VALUES ('k1', 'U2FsdGVk'), ('k2', 'U2FsdGVk')")
        made.execute("INSERT INTO workflow_entity VALUES ('w1', 1)")
        made.execute("INSERT INTO migrations VALUES (?, 1)", (migration,))
        made.commit()
    if key:
        (folder / "config").write_text(json.dumps({"encryptionKey": key, "instanceType": "main"}))
    return folder


@pytest.mark.parametrize("below", ["", "data", "_data", "backend/data"])
def test_an_open_webui_is_found_in_its_folder(below: str, tmp_path: Path) -> None:
    folder = webui(tmp_path / "volume" / below if below else tmp_path / "volume")
    for path in (tmp_path / "volume", folder / "webui.db"):
        found = recognised(str(path))
        assert (found.kind, found.folder) == ("open_webui", str(folder))


@pytest.mark.parametrize("below", ["", ".n8n", "_data/.n8n"])
def test_an_n8n_is_found_in_its_folder(below: str, tmp_path: Path) -> None:
    folder = flows(tmp_path / "home" / below if below else tmp_path / "home")
    assert recognised(str(tmp_path / "home")).folder == str(folder)


def test_a_database_is_known_by_what_is_in_it(tmp_path: Path) -> None:
    folder = webui(tmp_path / "volume")
    (folder / "webui.db").rename(folder / "backup-of-monday.db")
    assert recognised(str(folder / "backup-of-monday.db")).kind == "open_webui"


def postgres(folder: Path) -> str:
    (folder / "PG_VERSION").write_text("16\n")
    return str(folder)


def other_database(folder: Path) -> str:
    (folder / "uploads").mkdir()
    return str(folder)


def n8n_on_postgres(folder: Path) -> str:
    (folder / "config").write_text("{}")
    return str(folder)


def both(folder: Path) -> str:
    webui(folder / "data")
    flows(folder / ".n8n")
    return str(folder)


def text(folder: Path) -> str:
    (folder / "webui.db").write_text("not a database")
    return str(folder)


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (postgres, "import-postgres"), (other_database, "import-postgres"), (n8n_on_postgres, "import-postgres"),
        (lambda folder: "postgresql://n8n:secret@db/n8n", "import-postgres"),
        (both, "import-unclear"), (text, "import-damaged"),
        (str, "import-unknown"), (lambda folder: str(folder / "nowhere"), "no-import"),
    ],
)  # fmt: skip
def test_what_cannot_be_imported_is_said(make: Any, wanted: str, tmp_path: Path) -> None:
    with pytest.raises(StepError) as caught:
        recognised(make(tmp_path))
    assert code(caught) == wanted
    assert caught.value.hint
    assert "secret" not in caught.value.message


# ----------------------------------------------------------------------------------------------------- laying ready


@pytest.fixture
def box(tmp_path: Path) -> SmallBox:
    found = SmallBox(tmp_path / "box", "box")
    with contextlib.closing(sqlite3.connect(found.var / "open_webui/webui.db")) as made:
        made.execute("ALTER TABLE user ADD COLUMN email TEXT")
    versions = tmp_path / "program/lib/python3.11/site-packages/open_webui/migrations/versions"
    versions.mkdir(parents=True)
    (versions / "a.py").write_text("revision: str = 'a1'\n")
    (versions / "b.py").write_text("revision = 'b2'\n")
    known = tmp_path / "program/node_modules/@n8n/db/dist/migrations/common"
    known.mkdir(parents=True)
    (known / "1-Known.js").write_text("class Known1000000000001 {}\nexports.Known1000000000001 = Known1000000000001;\n")
    return found


def spec(box: SmallBox, path: Path, **more: Any) -> dict[str, Any]:
    program = str(box.folder.parent / "program")
    return {
        **box.restore_spec(""), "path": str(path), "work": str(box.var / "work"),
        "services": {name: str(box.var / name) for name in ("open_webui", "n8n")},
        "open_webui": {"program": program, "values": {"rag.embedding_engine": "ollama"}, "full": False},
        "n8n": {"program": program, "node": "/nowhere", "record": str(box.var / "n8n-content.json")}, **more,
    }  # fmt: skip


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What n8n's own code says that the key opens: it is not here, the end-to-end test has it."""
    found = {"opened": ["k1"], "closed": ["k2"]}
    monkeypatch.setattr(imports_n8n, "opened", lambda about, database, key: found if key == KEY else {
        "opened": [], "closed": ["k1", "k2"]})  # fmt: skip
    return found


def test_an_open_webui_takes_the_place_of_the_boxes_and_goes_again(box: SmallBox, tmp_path: Path) -> None:
    source = webui(tmp_path / "volume")
    before, theirs, asked = box.content(), seen(source), spec(box, source)
    told = imports.stage(asked, silent)["data"]
    laid = json.loads((box.var / "run/restore.json").read_text())
    assert (laid["status"], laid["clean"]) == ("staged", False), "a run that is killed at its question leaves copies"
    assert box.content() == before, "laying ready changes nothing"
    assert told["holds"] == {"accounts": 2, "chats": 2, "files": 2, "knowledge collections": 0}
    assert told["here"] == {"accounts": 2, "chats": 3, "files": 1, "knowledge collections": 1}
    assert told["owner"] == "mara@example.org"
    assert [line.split()[0] for line in told["notes"]] == ["1", "hybrid"]
    restore.swap(asked, silent)
    web = box.var / "open_webui"
    held = dict(rows(web / "webui.db", "SELECT id, path FROM file"))
    assert held == {"f1": f"{web}/uploads/f1_a.txt", "f2": "s3://away/b"}
    stored = dict(rows(web / "webui.db", "SELECT key, value FROM config"))
    assert stored.pop("rag.top_k") == 3
    settings = {key: json.loads(value) for key, value in stored.items()}
    assert settings == {"rag.embedding_engine": "ollama", "rag.enable_hybrid_search": False, "ui.banners": ["mine"]}
    assert sorted(path.name for path in web.rglob("*")) == ["f1_a.txt", "uploads", "webui.db"]
    assert box.content().keys() >= {"var/n8n/.n8n/database.sqlite"}
    assert imports.compare(asked, silent)["data"]["counts"]["chat"] == 2
    restore.revert(asked, silent)
    assert box.content() == before
    assert seen(source) == theirs


def test_what_is_damaged_here_is_no_hindrance_to_what_takes_its_place(box: SmallBox, tmp_path: Path) -> None:
    live = box.var / "open_webui/webui.db"
    live.write_bytes(live.read_bytes()[:100] + b"\xff" * 4096)
    asked = spec(box, webui(tmp_path / "volume"))
    told = imports.stage(asked, silent)["data"]
    assert told["here"] == {}
    assert "cannot be counted, it may be damaged" in told["notes"][-1]
    restore.swap(asked, silent)
    assert imports.compare(asked, silent)["data"]["counts"]["chat"] == 2


def test_settings_of_the_time_when_they_were_one_text_are_planned_too(box: SmallBox, tmp_path: Path) -> None:
    source = webui(tmp_path / "volume")
    held = {"rag": {"embedding_engine": "", "top_k": 3, "enable_hybrid_search": True}, "ui": {"banners": ["mine"]}}
    with contextlib.closing(sqlite3.connect(source / "webui.db")) as made:
        made.executescript("DROP TABLE config; CREATE TABLE config (id INTEGER, data TEXT)")
        made.execute("INSERT INTO config VALUES (1, ?)", (json.dumps(held),))
        made.commit()
    asked = spec(box, source)
    imports.stage(asked, silent)
    restore.swap(asked, silent)
    (now,) = rows(box.var / "open_webui/webui.db", "SELECT data FROM config")[0]
    wanted = {"rag": {"embedding_engine": "ollama", "top_k": 3, "enable_hybrid_search": False}}
    assert json.loads(now) == {**wanted, "ui": {"banners": ["mine"]}}


def test_the_oldest_accounts_are_taken_too(box: SmallBox, tmp_path: Path) -> None:
    source = webui(tmp_path / "volume")
    with contextlib.closing(sqlite3.connect(source / "webui.db")) as made:
        made.executescript("DROP TABLE alembic_version; ALTER TABLE user RENAME created_at TO timestamp")
    assert imports.stage(spec(box, source), silent)["data"]["owner"] == "mara@example.org"


def test_an_n8n_comes_with_its_key(box: SmallBox, tmp_path: Path, opens: dict[str, list[str]]) -> None:
    source = flows(tmp_path / "volume")
    before, asked = box.content(), spec(box, source)
    told = imports.stage(asked, silent)["data"]
    assert told["holds"] == {"accounts": 1, "workflows": 1, "credentials": 2}
    assert len(told["notes"]) == 2
    assert box.content() == before
    restore.swap(asked, silent)
    assert (box.secrets / "n8n_encryption_key").read_text() == KEY + "\n"
    config = box.var / "n8n/.n8n/config"
    assert json.loads(config.read_text()) == {"encryptionKey": KEY, "instanceType": "main"}
    assert config.stat().st_mode & 0o777 == 0o600
    record = json.loads((box.var / "n8n-content.json").read_text())
    assert record == {"key_fingerprint": hashlib.sha256(KEY.encode()).hexdigest()[:16]}
    assert (box.var / "n8n/files").is_dir(), "what people keep beside n8n's own folder stays"
    assert imports.compare(asked, silent)["data"]["counts"]["workflow_entity"] == 1
    opens["opened"] = []
    with pytest.raises(StepError) as caught:
        imports.compare(asked, silent)
    assert code(caught) == "import-key"
    restore.revert(asked, silent)
    assert box.content() == before


def test_what_people_made_since_an_import_that_was_cut_off_lies_aside(
    box: SmallBox, tmp_path: Path, opens: dict[str, list[str]]
) -> None:
    before, asked = box.content(), spec(box, flows(tmp_path / "volume"))
    imports.stage(asked, silent)
    restore.swap(asked, silent)
    (box.var / "n8n/.n8n/of that week").write_text("x")
    state = box.var / "run/restore.json"
    noted = json.loads(state.read_text())
    state.write_text(json.dumps({**noted, "time": noted["time"] - 7 * 86400}))
    done = restore.revert(asked, silent)["data"]
    (row,) = snapshots_aside.replaced(str(box.var))
    assert (row["kind"], row["role"], row["paths"]) == ("import", "n8n", done["replaced"])
    folder = box.var / "snapshots" / f"{row['id']}.replaced"
    assert (folder / "n8n/of that week").exists()
    assert json.loads((folder / "n8n/config").read_text())["encryptionKey"] == KEY
    assert (folder / "secrets/n8n_encryption_key").read_text() == KEY + "\n"
    assert {name: text for name, text in box.content().items() if not name.startswith("var/snapshots")} == before


def test_a_row_that_did_not_arrive_is_noticed(box: SmallBox, tmp_path: Path) -> None:
    asked = spec(box, webui(tmp_path / "volume"))
    imports.stage(asked, silent)
    restore.swap(asked, silent)
    with contextlib.closing(sqlite3.connect(box.var / "open_webui/webui.db")) as work:
        work.execute("DELETE FROM chat WHERE id = 'c1'")
        work.execute("INSERT INTO chat VALUES ('another')")
        work.commit()
    with pytest.raises(StepError, match="1 of chat"):
        imports.compare(asked, silent)


def newer(tmp_path: Path) -> tuple[Path, str]:
    return webui(tmp_path / "volume", revision="zz"), "import-newer"


def newer_n8n(tmp_path: Path) -> tuple[Path, str]:
    return flows(tmp_path / "volume", migration="Unknown2000000000000"), "import-newer"


def damaged(tmp_path: Path) -> tuple[Path, str]:
    source = webui(tmp_path / "volume")
    data = bytearray((source / "webui.db").read_bytes())
    data[4096:12288] = b"\xff" * 8192
    (source / "webui.db").write_bytes(data)
    return source, "import-damaged"


def cut(tmp_path: Path) -> tuple[Path, str]:
    source = webui(tmp_path / "volume")
    (source / "webui.db").write_bytes((source / "webui.db").read_bytes()[:5000])
    return source, "import-damaged"


def wrong_key(tmp_path: Path) -> tuple[Path, str]:
    return flows(tmp_path / "volume", key="another"), "import-key"


def no_key(tmp_path: Path) -> tuple[Path, str]:
    return flows(tmp_path / "volume", key=""), "import-key"


def unsafe_key(tmp_path: Path) -> tuple[Path, str]:
    return flows(tmp_path / "volume", key='with "quotes"'), "import-key"


@pytest.mark.parametrize("make", [newer, newer_n8n, damaged, cut, wrong_key, no_key, unsafe_key])
def test_a_refusal_leaves_nothing_behind(make: Any, box: SmallBox, tmp_path: Path, opens: dict[str, list[str]]) -> None:
    source, wanted = make(tmp_path)
    before, theirs = box.content(), seen(source)
    with pytest.raises(StepError) as caught:
        imports.stage(spec(box, source), silent)
    assert code(caught) == wanted
    assert "nothing was changed" in caught.value.hint
    assert KEY not in caught.value.message
    assert box.content() == before
    assert not (box.var / "restore").exists()
    assert [path.name for path in box.secrets.parent.iterdir()] == ["secrets"]
    assert seen(source) == theirs
    with pytest.raises(StepError):
        restore.swap(spec(box, source), silent)


def test_one_that_was_killed_while_it_was_laid_ready_is_known_and_cleared_away(
    box: SmallBox, tmp_path: Path, opens: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, asked, etc = box.content(), spec(box, flows(tmp_path / "volume")), box.secrets.parent

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(imports, "_ids", killed)
        patched.setattr(restore, "_end", lambda spec, status: None)
        with pytest.raises(KeyboardInterrupt):
            imports.stage(asked, silent)
    left = json.loads((box.var / "run/restore.json").read_text())
    assert (left["status"], left["clean"], left["import"]) == ("staging", False, "n8n")
    (etc / "secrets.restore-old.copying").mkdir()  # of an exchange that was killed where folders cannot be renamed
    assert sorted(path.name for path in etc.iterdir()) == [
        "secrets", "secrets.restore-new", "secrets.restore-old.copying",
    ]  # fmt: skip
    restore.revert(asked, silent)
    assert [path.name for path in etc.iterdir()] == ["secrets"]
    assert not (box.var / "restore").exists()
    assert box.content() == before


@pytest.mark.parametrize("first", "+/Aa9")
def test_every_key_that_n8n_makes_is_taken(
    first: str, box: SmallBox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """24 random bytes in base64: one in 32 begins with a sign."""
    key = first + "x" * 31
    monkeypatch.setattr(imports_n8n, "opened", lambda *given: {"opened": ["k1"], "closed": []})
    asked = spec(box, flows(tmp_path / "volume", key=key))
    imports.stage(asked, silent)
    restore.swap(asked, silent)
    assert (box.secrets / "n8n_encryption_key").read_text().strip() == key


def test_the_key_of_a_file_wins(box: SmallBox, tmp_path: Path, opens: dict[str, list[str]]) -> None:
    (tmp_path / "key").write_text(KEY + "\n")
    asked = spec(box, flows(tmp_path / "volume", key=""), key_file=str(tmp_path / "key"))
    imports.stage(asked, silent)
    restore.swap(asked, silent)
    assert json.loads((box.var / "n8n/.n8n/config").read_text())["encryptionKey"] == KEY


def test_too_little_space_and_a_missing_role_are_told(
    box: SmallBox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = webui(tmp_path / "volume")
    asked = spec(box, source)
    with pytest.raises(StepError) as caught:
        imports.stage({**asked, "services": {"n8n": asked["services"]["n8n"]}}, silent)
    assert code(caught) == "role-missing"
    usage = shutil.disk_usage(box.var)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StepError) as caught:
        imports.stage(asked, silent)
    assert code(caught) == "disk-full"
    assert not (box.var / "restore").exists()


def test_what_is_uploaded_arrives_as_it_was(box: SmallBox, tmp_path: Path) -> None:
    source = webui(tmp_path / "volume")
    (tmp_path / "work").mkdir()
    made = imports.pack(str(source), str(tmp_path / "work"))
    folder = box.var / "work/import"
    imports.received({"file": made, "folder": str(folder)}, silent)
    assert not Path(made).exists()
    assert sorted(path.name for path in folder.rglob("*")) == ["f1_a.txt", "uploads", "webui.db"]
    assert imports.stage(spec(box, folder), silent)["data"]["holds"]["chats"] == 2
