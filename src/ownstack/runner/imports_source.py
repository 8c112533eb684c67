"""What lies in a folder that is not ours, and a copy of it that nobody writes to. The source is only read."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
import struct
import urllib.parse
from dataclasses import dataclass

from .backup_parts import tree
from .core import StepError

LABELS = {"open_webui": "Open WebUI", "n8n": "n8n"}
NAMES = {"open_webui": "webui.db", "n8n": "database.sqlite"}
# tables by which a database is known, whatever its file is called
MARKS = {"open_webui": {"auth", "chat", "user"}, "n8n": {"workflow_entity", "credentials_entity"}}
# folders in which people keep it: a container's volume, its `data`, n8n's home
BELOW = ("", "data", "_data", "backend/data", ".n8n", "_data/.n8n", "data/.n8n", ".n8n/.n8n")
# what comes along beside the database. Vectors are made anew; caches and programs come by themselves
ALONG = {
    "open_webui": ("uploads", "cache/image", "cache/audio"),
    "n8n": ("config", "binaryData", "storage"),
}
OTHER_DATABASE = (
    "there is no SQLite database of {label} in {path}: it keeps its data in another one (Postgres, MySQL), "
    "which cannot be imported"
)
OTHER_HINT = {
    "open_webui": "move that Open WebUI to SQLite first, or export its chats there and import them in the page here",
    "n8n": "export there (`n8n export:workflow --all`, `n8n export:credentials --all`) and import in n8n's page here",
}


@dataclass(frozen=True)
class Source:
    kind: str
    folder: str  # in which the rest lies
    database: str

    @property
    def label(self) -> str:
        return LABELS[self.kind]

    @property
    def database_name(self) -> str:
        return NAMES[self.kind]

    def bytes(self) -> int:
        """What a copy takes."""
        total = sum(os.path.getsize(f"{self.database}{end}") for end in ("", "-wal") if _there(f"{self.database}{end}"))
        for name in ALONG[self.kind]:
            path = os.path.join(self.folder, name)
            if os.path.isdir(path) and not os.path.islink(path):
                total += sum(state.st_size for _, _, _, state in tree(path, []))
        return total


def _there(path: str) -> bool:
    return os.path.isfile(path)


def recognised(path: str) -> Source:
    """What a path means: a database, or a folder that holds one. Raises StepError where it is nothing of the kind."""
    if "://" in path:
        raise StepError(
            f"{path.split('://')[0]}://… is the address of a database server; only SQLite files can be imported",
            hint=f"Open WebUI: {OTHER_HINT['open_webui']}; n8n: {OTHER_HINT['n8n']}",
            code="import-postgres",
        )
    if not os.path.exists(path):
        raise StepError(f"there is nothing at {path}", hint="name the file, or the folder it lies in", code="no-import")
    try:
        found = _within(path) if os.path.isdir(path) else _one(path)
    except PermissionError as error:
        raise StepError(
            f"{error.filename or path} may not be read", hint="let the account of the box read it", code="file"
        ) from error
    if len(found) > 1:
        words = " and ".join(source.database for source in found)
        raise StepError(f"{path} holds {words}", hint="name one of them, then the other", code="import-unclear")
    if not found:
        raise _nothing(path)
    return found[0]


def _within(path: str) -> list[Source]:
    os.listdir(path)
    found = {}
    for below in BELOW:
        for name in NAMES.values():
            file = os.path.normpath(os.path.join(path, below, name))
            if _there(file):
                found[file] = _one(file)
    return [source for sources in found.values() for source in sources]


def _one(file: str) -> list[Source]:
    with open(file, "rb") as stream:
        head = stream.read(16)
    if head != b"SQLite format 3\0":
        raise StepError(
            f"{file} is no SQLite database, or it is damaged",
            hint="name the folder that holds webui.db or database.sqlite",
            code="import-damaged",
        )
    try:
        with contextlib.closing(sqlite3.connect(address(file), uri=True, timeout=60)) as held:
            tables = {row[0] for row in held.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.Error:
        tables = set()  # cut off in the middle of a write, or damaged: the copy shows which; go by the name
    for kind, marks in MARKS.items():
        if marks <= tables or (not tables and os.path.basename(file) == NAMES[kind]):
            return [Source(kind, os.path.dirname(file), file)]
    return []


def _nothing(path: str) -> StepError:
    below = [os.path.normpath(os.path.join(path, name)) for name in BELOW]
    if any(_there(os.path.join(place, "PG_VERSION")) for place in below):
        return StepError(
            f"{path} is the folder of a Postgres server; only SQLite files can be imported",
            hint=f"Open WebUI: {OTHER_HINT['open_webui']}; n8n: {OTHER_HINT['n8n']}",
            code="import-postgres",
        )
    for place in below:
        kind = ""
        if os.path.isdir(os.path.join(place, "uploads")) or os.path.isdir(os.path.join(place, "vector_db")):
            kind = "open_webui"
        elif _there(os.path.join(place, "config")) and os.path.basename(place) != ".git":
            kind = "n8n"
        if kind:
            words = OTHER_DATABASE.format(label=LABELS[kind], path=place)
            return StepError(words, hint=OTHER_HINT[kind], code="import-postgres")
    return StepError(
        f"{path} is neither the data of an Open WebUI (webui.db) nor that of an n8n (database.sqlite)",
        hint="name the database, or the folder or volume that it lies in",
        code="import-unknown",
    )


# ---------------------------------------------------------------------------------------------------------- reading


def address(path: str) -> str:
    """How SQLite opens a database that is not ours: for reading alone, and without making a file beside it.

    A database in WAL mode that nobody has open has no side files, and SQLite would make them.
    """
    quoted = urllib.parse.quote(os.path.abspath(path))
    alone = not any(_there(f"{path}{end}") for end in ("-wal", "-shm", "-journal"))
    return f"file:{quoted}?mode=ro&immutable=1" if alone and _wal(path) else f"file:{quoted}?mode=ro"


def _wal(path: str) -> bool:
    with open(path, "rb") as stream:
        return stream.read(20)[18:20] == b"\2\2"


def _in_use(path: str) -> bool:
    """Whether a process has a database in WAL mode open: all of them hold a lock in its -shm file."""
    try:
        with open(f"{path}-shm", "rb") as stream:
            asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 128, 1, 0)
            answer = fcntl.fcntl(stream, fcntl.F_GETLK, asked)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return bool(struct.unpack("hhqqi4x", answer)[0] != fcntl.F_UNLCK)


def copy_database(source: str, target: str) -> None:
    """A consistent copy of a database, also while it is written to. Nothing of the source is changed.

    What a killed process left in side files is brought in, on the copy.
    """
    try:
        if _wal(source) and _there(f"{source}-wal") and not _in_use(source):
            try:
                return _with_rest(source, target, ("-wal",))
            except _WrittenError:
                pass  # somebody has begun to write: as with a database that is in use
        return _by_backup(source, target)
    except sqlite3.Error as error:
        raise StepError(
            f"{source} cannot be copied: {error}",
            hint="it may be damaged: repair it or take a backup of it; nothing was changed",
            code="import-damaged",
        ) from error


def _by_backup(source: str, target: str) -> None:
    before, asked = os.stat(source), address(source)
    try:
        live = sqlite3.connect(asked, uri=True, timeout=60)
        with contextlib.closing(live), contextlib.closing(sqlite3.connect(target)) as copy:
            live.backup(copy)
    except sqlite3.OperationalError:
        if not _there(f"{source}-journal"):
            raise
        return _with_rest(source, target, ("-journal",))  # left by a killed process: to be rolled back, on the copy
    now = os.stat(source)
    if "immutable" in asked and (now.st_mtime_ns, now.st_size) != (before.st_mtime_ns, before.st_size):
        os.unlink(target)
        return copy_database(source, target)
    return None


class _WrittenError(Exception):
    """The source was written to while it was copied as a file."""


def _with_rest(source: str, target: str, left: tuple[str, ...]) -> None:
    def state() -> list[tuple[int, int]]:
        found = [os.stat(f"{source}{end}") for end in ("", *left) if _there(f"{source}{end}")]
        return [(one.st_mtime_ns, one.st_size) for one in found]

    before = state()
    with contextlib.suppress(FileNotFoundError):
        for end in ("", *left):
            shutil.copyfile(f"{source}{end}", f"{target}{end}")
    if state() != before or len(before) != len(left) + 1:
        _clear(target)
        raise _WrittenError
    with contextlib.closing(sqlite3.connect(target)) as copy:
        copy.execute("PRAGMA journal_mode = DELETE").fetchall()  # brings the rest in, and takes the side files away
    _clear(target, whole=False)


def _clear(target: str, whole: bool = True) -> None:
    for end in ("", "-wal", "-shm", "-journal")[0 if whole else 1 :]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{target}{end}")


def take(source: Source, target: str) -> str:
    """Copy the database and what belongs to it into a folder of ours; links are left out. The copy's path."""
    database = os.path.join(target, source.database_name)
    copy_database(source.database, database)
    os.chmod(database, 0o600)
    for name in ALONG[source.kind]:
        path = os.path.join(source.folder, name)
        if os.path.islink(path):
            continue
        if os.path.isdir(path):
            _copy_tree(path, os.path.join(target, name))
        elif os.path.isfile(path):
            shutil.copyfile(path, os.path.join(target, name))
            os.chmod(os.path.join(target, name), 0o600)
    return database


def _copy_tree(folder: str, target: str) -> None:
    import stat

    os.makedirs(target, 0o700, exist_ok=True)
    for path, handle, name, state in tree(folder, []):
        out = os.path.join(target, path)
        if stat.S_ISDIR(state.st_mode):
            os.makedirs(out, 0o700, exist_ok=True)
        elif stat.S_ISREG(state.st_mode):
            source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=handle)
            with os.fdopen(source, "rb") as stream, open(out, "wb") as copy:
                shutil.copyfileobj(stream, copy, 1 << 20)
            os.chmod(out, 0o600)
            os.utime(out, (state.st_mtime, state.st_mtime))
