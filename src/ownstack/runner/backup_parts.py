"""What a backup is made of, read while everything runs: databases, folders, vectors, models."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import io
import json
import os
import sqlite3
import tempfile
import urllib.parse
from collections.abc import Iterator
from typing import IO, Any

from . import ollama_api as api
from .backup_file import Writer, filling
from .core import Spec, StepError, read_json
from .http import download, request
from .secrets import read_secret

SIDE = ("-wal", "-shm", "-journal")  # of a live database: never copied, never restored
IN_MEMORY = 16 << 20


# -------------------------------------------------------------------------------------------------- databases


def own(folder: str, name: str) -> str:
    """The path of a service's file. Raises StepError where it is a link or lies behind one: this may run as root, the
    folder belongs to a service, and a link could name another one's file, which would go to this one when it is put
    back.
    """
    path = os.path.join(folder, name)
    if os.path.realpath(path) != os.path.join(os.path.realpath(folder), name):
        raise StepError(
            f"{path} is a link, or lies behind one: it is not read",
            hint="put the file itself in its place; a data folder as a whole may be a link or a disk of its own",
            code="link",
        )
    return path


def copy_database(source: str, target: str) -> None:
    """A consistent copy of a SQLite database that others write to, by SQLite's own backup function, in one step."""
    address = f"file:{urllib.parse.quote(source)}?mode=rw"
    try:
        with contextlib.closing(sqlite3.connect(address, uri=True, timeout=60)) as live:
            copy = sqlite3.connect(target)
            with contextlib.closing(copy):
                live.backup(copy)
    except sqlite3.Error as error:
        if "disk is full" in str(error):
            raise OSError(errno.ENOSPC, str(error), target) from error
        raise StepError(
            f"{source} cannot be copied: {error}", hint="`ownstack verify` looks at the service", code="database"
        ) from error
    wrong = examine(target)
    if wrong:
        raise StepError(
            f"the copy of {source} is not sound: {wrong}",
            hint="the database itself may be damaged: keep your earlier backups",
            code="database",
        )


def _readonly(path: str) -> sqlite3.Connection:
    # immutable: no side files are looked for and none are made
    return sqlite3.connect(f"file:{urllib.parse.quote(path)}?mode=ro&immutable=1", uri=True)


def examine(path: str) -> str:
    """What SQLite's own check finds wrong in a database that nobody writes to; empty where nothing."""
    try:
        with contextlib.closing(_readonly(path)) as database:
            found = [str(row[0]) for row in database.execute("PRAGMA integrity_check(5)")]
    except sqlite3.Error as error:
        return str(error)
    return "" if found == ["ok"] else "; ".join(found)


def rows(path: str) -> dict[str, int]:
    """Number of rows of each table."""
    with contextlib.closing(_readonly(path)) as database:
        names = [
            str(row[0])
            for row in database.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite!_%' ESCAPE '!' "
                "AND sql NOT LIKE 'CREATE VIRTUAL%' ORDER BY name"
            )
        ]
        return {name: int(database.execute(_count(name)).fetchone()[0]) for name in names}


def _count(table: str) -> str:
    quoted = '"' + table.replace('"', '""') + '"'
    return f"SELECT count(*) FROM {quoted}"  # noqa: S608 - a name out of the database's own schema


# ---------------------------------------------------------------------------------------------------- folders


def tree(folder: str, skip: list[str]) -> Iterator[tuple[str, int, str, os.stat_result]]:
    """(path below `folder`, handle of its folder, name, state) of every folder and plain file, links left out.

    It never follows a link: the folder belongs to a service, and this may run as root.
    """
    for place, folders, files, handle in os.fwalk(folder, follow_symlinks=False):
        inside = os.path.relpath(place, folder)
        prefix = "" if inside == "." else f"{inside}/"
        folders[:] = sorted(name for name in folders if not _skipped(f"{prefix}{name}", skip))
        for name in [*folders, *sorted(files)]:
            path = f"{prefix}{name}"
            with contextlib.suppress(FileNotFoundError):
                state = os.stat(name, dir_fd=handle, follow_symlinks=False)
                if not _skipped(path, skip):
                    yield path, handle, name, state


def _skipped(path: str, skip: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in skip)


def add_tree(out: Writer, prefix: str, folder: str, skip: list[str]) -> None:
    """All of a folder but what matches `skip`. A file that comes or goes meanwhile is not an error."""
    import stat

    for path, handle, name, state in tree(folder, skip):
        if stat.S_ISDIR(state.st_mode):
            out.folder(f"{prefix}/{path}", state.st_mode & 0o777, state.st_mtime)
        elif stat.S_ISREG(state.st_mode):
            with contextlib.suppress(FileNotFoundError):
                _add_file(out, f"{prefix}/{path}", name, handle)


def _add_file(out: Writer, member: str, name: str, folder: int) -> None:
    with os.fdopen(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder), "rb") as stream:
        state = os.fstat(stream.fileno())
        if state.st_size <= IN_MEMORY:  # whole at once: what is written to it meanwhile does no harm
            data = stream.read(IN_MEMORY * 2)
            out.add(member, io.BytesIO(data), len(data), state.st_mode & 0o777, state.st_mtime)
        else:
            out.add(member, stream, state.st_size, state.st_mode & 0o777, state.st_mtime)


def size_of(folder: str, skip: list[str]) -> int:
    return sum(state.st_size for _, _, _, state in tree(folder, skip))


# ---------------------------------------------------------------------------------------------------- vectors


def add_vectors(out: Writer, spec: Spec, work: str) -> dict[str, Any]:
    """A snapshot of each of Qdrant's collections. spec: url, secrets_dir. data: collections, aliases."""
    url, headers = spec["url"], {"api-key": read_secret(spec["secrets_dir"], "qdrant_api_key")}
    found = []
    names = sorted(item["name"] for item in qdrant("GET", url, "/collections", headers)["collections"])
    for number, name in enumerate(names):
        member = f"vectors/{number}.snapshot"
        before = points(url, name, headers)
        with _snapshot(url, name, headers) as made, filling(work), tempfile.TemporaryFile(dir=work) as stream:
            path = f"{_of(name)}/snapshots/{urllib.parse.quote(made['name'])}"
            sha256 = download(f"{url}{path}", stream, headers)
            if made.get("checksum") and sha256 != made["checksum"]:
                raise StepError(
                    f"the snapshot of {name} changed on its way", hint="`ownstack logs qdrant`", code="qdrant-snapshot"
                )
            size = stream.tell()
            stream.seek(0)
            out.add(member, stream, size)
        counted = sorted((before, points(url, name, headers)))
        found.append({"collection": name, "member": member, "points": counted})
    return {"collections": found, "aliases": qdrant("GET", url, "/aliases", headers)["aliases"]}


@contextlib.contextmanager
def _snapshot(url: str, name: str, headers: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Let Qdrant make a snapshot, and take it off its disk afterwards."""
    made = qdrant("POST", url, f"{_of(name)}/snapshots?wait=true", headers, timeout=3600)
    try:
        yield made
    finally:
        request("DELETE", f"{url}{_of(name)}/snapshots/{urllib.parse.quote(made['name'])}?wait=true", headers=headers)


def _of(collection: str) -> str:
    return f"/collections/{urllib.parse.quote(collection, safe='')}"


def qdrant(
    method: str, url: str, path: str, headers: dict[str, str], body: Any = None, timeout: float = 60.0
) -> dict[str, Any]:
    """One call; its `result`. Raises StepError where Qdrant refuses or is not there."""
    status, answer = request(method, url + path, body, headers, timeout)
    if status != 200 or not isinstance(answer, dict):
        words = answer.get("status", answer) if isinstance(answer, dict) else answer
        raise StepError(
            f"Qdrant answers {status} to {method} {path}: {str(words)[:300]}",
            hint="`ownstack start qdrant`, `ownstack logs qdrant`",
            code="qdrant",
        )
    found = answer["result"]
    return found if isinstance(found, dict) else {"done": found}


def points(url: str, name: str, headers: dict[str, str]) -> int:
    return int(qdrant("POST", url, f"{_of(name)}/points/count", headers, {"exact": True})["count"])


# ----------------------------------------------------------------------------------------------------- models


def add_models(out: Writer, spec: Spec) -> list[dict[str, Any]]:
    """The engine's models by name and digest; of those made here the files too, or of all with `with_models`.

    spec: url, folder (the engine's store), record (of pulls), planned (tags that the kit itself makes), with_models.
    """
    there = api.ask(spec["url"], "/api/tags", what="the models of the box")["models"]
    fetched = _fetched(spec)
    found: list[dict[str, Any]] = []
    added: set[str] = set()
    for item in sorted(there, key=lambda one: str(one["name"])):
        name = api.parse(item["name"])
        again = name.short in fetched or _as_it_came(spec.get("folder", ""), name)
        row = {"name": item["name"], "digest": item["digest"], "size": item["size"], "made_here": not again}
        if spec.get("folder") and (spec.get("with_models") or not again):
            row["files"] = _add_model(out, spec["folder"], name, added)
        found.append(row)
    return found


def _fetched(spec: Spec) -> set[str]:
    """Models that come again by themselves: planned ones from files of the kit, and pulls that are as they came."""
    found = {api.parse(tag).short for tag in spec["planned"]}
    names = api.listed(spec["url"])
    for tag, noted in read_json(spec["record"], {}).items():
        now = api.state(spec["url"], tag, names)
        if now is not None and now["blob"] == noted["blob"]:
            found.add(api.parse(tag).short)
    return found


def _as_it_came(store: str, name: api.Name) -> bool:
    """Whether a model is one that somebody pulled past the kit: its manifest is as a registry sends it.

    One that was made here names in its layers what they are from, and Ollama ends its manifest with a line break.
    """
    try:
        with plain(os.path.join(store, "manifests", name.path)) as stream:
            text = stream.read()
        layers = json.loads(text)["layers"]
        return bool(store) and not text.endswith(b"\n") and not any(layer.get("from") for layer in layers)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _add_model(out: Writer, store: str, name: api.Name, added: set[str]) -> list[str]:
    """Manifest and blobs of one model; blobs that several share are held once."""
    path = os.path.join(store, "manifests", name.path)
    try:
        with plain(path) as stream:
            manifest = stream.read()
        about = json.loads(manifest)
        digests = [str(layer["digest"]) for layer in (*about["layers"], about["config"])]
    except (OSError, ValueError, KeyError) as error:
        raise StepError(
            f"the model {name.short} cannot be read: {error}", hint="`ollama show` it, or remove it", code="model"
        ) from error
    members = [f"models/manifests/{name.path}"]
    if members[0] not in out.index:
        out.put(members[0], manifest)
    for digest in dict.fromkeys(digests):
        member = f"models/blobs/{digest.replace(':', '-')}"
        members.append(member)
        if digest in added:
            continue
        added.add(digest)
        with plain(os.path.join(store, "blobs", digest.replace(":", "-"))) as stream:
            got = out.add(member, stream, os.fstat(stream.fileno()).st_size)
        if f"sha256:{got}" != digest:
            raise StepError(
                f"a file of the model {name.short} is damaged", hint="remove the model, make it again", code="model"
            )
    return members


def plain(path: str) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb")
