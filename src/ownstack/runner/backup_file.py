"""The file of a backup: a plain tar of encrypted parts, and last a manifest with the SHA-256 of each.

    parts/000001 ...   one file each, encrypted by age for a key that was made for this backup alone
    secrets.age        that key, the names of the parts, keys and passwords: encrypted by the passphrase or recipients
    manifest.json      in the clear: of which box and when, versions, settings, what it holds in numbers, the hashes

The databases hold keys in the clear (n8n's and Open WebUI's own interfaces), so no part is left unencrypted. Names of
parts, as the key opens them:

    data/<service>/...     what the service keeps; its databases are whole copies
    vectors/<n>.snapshot   one collection each, as Qdrant gave it
    models/...             manifests and blobs in the engine's own layout
    records/...            what the kit remembers beside its manifest
    box.json               the box's own manifest: the plan, versions
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tarfile
import tempfile
import time
from collections.abc import Iterator
from typing import IO, Any, cast

from .core import FULL, Spec, StepError, sync_folder
from .sealed import HEAD, Cipher

SCHEMA = 1
MANIFEST = "manifest.json"
SECRETS = "secrets.age"
BOX = "box.json"
PART = ".part"
DAMAGED = "take another backup: this one is not to be trusted; nothing was changed"


def damaged(path: str, what: str) -> StepError:
    return StepError(f"{path} is damaged: {what}", hint=DAMAGED, code="backup-damaged")


@contextlib.contextmanager
def filling(folder: str) -> Iterator[None]:
    """What is written goes to this folder: an error that its disk is full names it where it names nothing itself."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL and not error.filename:
            error.filename = folder
        raise


def of_this_schema(path: str, manifest: dict[str, Any]) -> None:
    """Raises StepError where a backup was made by a version that writes other ones."""
    if manifest.get("schema") != SCHEMA:
        raise StepError(
            f"{path} was made by another version of ownstack ({manifest.get('kit_version')})",
            hint="take the version that made it, or a newer one",
            code="backup-schema",
        )


class Hashing:
    """Counts and hashes what is read from a stream, or written to one (None: it goes nowhere)."""

    def __init__(self, stream: IO[bytes] | None, limit: int = -1) -> None:
        self.stream, self.left = stream, limit
        self.sha256, self.size = hashlib.sha256(), 0

    def read(self, size: int = -1) -> bytes:
        if self.left >= 0:
            size = self.left if size < 0 else min(size, self.left)
        data = self.stream.read(size) if self.stream is not None else b""
        self.left -= len(data) if self.left >= 0 else 0
        self._seen(data)
        return data

    def write(self, data: bytes) -> int:
        self._seen(data)
        if self.stream is not None:
            self.stream.write(data)
        return len(data)

    def flush(self) -> None:
        """Everything was handed on already."""

    def _seen(self, data: bytes) -> None:
        self.sha256.update(data)
        self.size += len(data)


class Writer:
    """Writes a backup under a temporary name; `whole` ends it, `publish` names it, and nothing of it stays otherwise.

    spec: age, work (folder for what is being encrypted).
    """

    def __init__(self, path: str, spec: Spec) -> None:
        self.path, self.part, self.work = path, path + PART, spec["work"]
        self.cipher = Cipher.new(spec)
        self.files: dict[str, dict[str, Any]] = {}
        self.index: dict[str, dict[str, Any]] = {}
        handle = os.open(self.part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        self.stream = os.fdopen(handle, "wb")
        self.tar = tarfile.open(fileobj=self.stream, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115

    def add(self, name: str, stream: IO[bytes], size: int, mode: int = 0o600, mtime: float | None = None) -> str:
        """One file of exactly `size` bytes; its SHA-256. Raises StepError where the stream holds less."""
        source = Hashing(stream, size)
        with filling(self.work), tempfile.TemporaryFile(dir=self.work) as encrypted:
            self.cipher.encrypt(source, encrypted)
            if source.size != size:
                raise StepError(f"{name} changed while it was read", hint="run again", code="changed")
            length = encrypted.tell()
            encrypted.seek(0)
            part = f"parts/{len(self.files) + 1:06}"
            with filling(os.path.dirname(self.path)):
                self._member(part, encrypted, length)
        sha256 = source.sha256.hexdigest()
        self.index[name] = {
            "part": part, "size": size, "sha256": sha256, "mode": mode,
            "mtime": int(time.time() if mtime is None else mtime),
        }  # fmt: skip
        return sha256

    def put(self, name: str, data: bytes) -> None:
        self.add(name, io.BytesIO(data), len(data))

    def folder(self, name: str, mode: int, mtime: float) -> None:
        self.index[name] = {"part": "", "mode": mode, "mtime": int(mtime)}

    def _member(self, name: str, stream: IO[bytes], size: int) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = size, 0o600, int(time.time())
        source = Hashing(stream)
        self.tar.addfile(info, cast("IO[bytes]", source))
        if name != MANIFEST:
            self.files[name] = {"size": size, "sha256": source.sha256.hexdigest()}

    def inside(self, more: dict[str, Any]) -> bytes:
        """What only the key opens, as bytes to be encrypted."""
        return json.dumps({**more, "identity": self.cipher.text, "index": self.index}, sort_keys=True).encode()

    def whole(self, about: dict[str, Any], secrets: bytes) -> int:
        """Write what was encrypted, and the manifest, and bring all to the disk, at `part`. Its size."""
        self._member(SECRETS, io.BytesIO(secrets), len(secrets))
        whole = {"schema": SCHEMA, **about, "files": self.files}
        data = (json.dumps(whole, indent=1, sort_keys=True) + "\n").encode()
        self._member(MANIFEST, io.BytesIO(data), len(data))
        self.tar.close()
        self.stream.flush()
        os.fsync(self.stream.fileno())
        size = self.stream.tell()
        self.stream.close()
        return size

    def publish(self) -> None:
        """Give the file its name."""
        os.rename(self.part, self.path)
        sync_folder(os.path.dirname(self.path))

    def drop(self) -> None:
        with contextlib.suppress(OSError):
            self.stream.close()
        with contextlib.suppress(OSError):
            os.unlink(self.part)


class Reader:
    """Opens a backup. Raises StepError where it is none, or its parts are not those that its manifest names.

    `manifest` can be read at once; `inside` and all parts after `unlock`.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.inside: dict[str, Any] = {}
        self.index: dict[str, dict[str, Any]] = {}
        try:
            self.tar = tarfile.open(path, "r:")  # noqa: SIM115 - closed by `close`
            self.members = {member.name: member for member in self.tar.getmembers()}
            held = self.tar.extractfile(MANIFEST)
            self.manifest: dict[str, Any] = json.loads(held.read()) if held else {}
            self.files: dict[str, dict[str, Any]] = dict(self.manifest["files"])
        except OSError as error:
            if isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError)):
                raise StepError(f"{path}: {error.strerror}", hint="name the file of a backup", code="file") from error
            raise damaged(path, str(error)) from error
        except (tarfile.TarError, KeyError, ValueError, AttributeError, TypeError) as error:
            raise damaged(path, f"it is no backup, or its end is missing ({error})") from error
        of_this_schema(path, self.manifest)
        plain = {name for name, member in self.members.items() if member.isfile()} - {MANIFEST}
        others = set(self.members) - plain - {MANIFEST}
        for what, names in (("missing", set(self.files) - plain), ("unknown", (plain - set(self.files)) | others)):
            if names:
                raise damaged(self.path, f"{what} in it: {', '.join(sorted(names)[:3])}")

    def check(self) -> None:
        """Read every part and compare it with its hash. Needs no key."""
        for name, about in self.files.items():
            stream = Hashing(self._stream(name))
            try:
                while stream.read(1 << 20):
                    pass
            except (tarfile.TarError, OSError) as error:
                raise damaged(self.path, f"{name}: {error}") from error
            if (stream.size, stream.sha256.hexdigest()) != (about["size"], about["sha256"]):
                raise damaged(self.path, f"{name} has another hash than the manifest says")
        if not self.sealed().startswith(HEAD):
            raise damaged(self.path, "its secrets are not encrypted by age")

    def sealed(self) -> bytes:
        return self._stream(SECRETS).read()

    def unlock(self, spec: Spec, data: bytes) -> None:
        """`data`: what `secrets.age` holds. Raises StepError where a name in it would leave a folder."""
        try:
            self.inside = json.loads(data)
            self.index = dict(self.inside["index"])
            self.cipher = Cipher(spec, self.inside["identity"])
            parts = {one["part"] for one in self.index.values()} - {""}
        except (ValueError, KeyError, TypeError) as error:
            raise damaged(self.path, "its secrets cannot be read") from error
        # also one that begins with `/` behind a prefix, `data/n8n//etc/x`, would leave the folder it is laid in
        names = [*self.index, *self.inside.get("sealed", {})]
        unsafe = [name for name in names if {"", ".", ".."} & set(name.split("/"))]
        if unsafe or parts != set(self.files) - {SECRETS}:
            raise damaged(self.path, f"its index is wrong: {', '.join(unsafe[:3]) or 'other parts than there are'}")

    def _stream(self, name: str) -> IO[bytes]:
        found = self.tar.extractfile(name)
        if found is None:
            raise damaged(self.path, f"{name} is no file")
        return found

    def copy(self, name: str, out: IO[bytes] | None) -> None:
        """Decrypt a part to `out` (None: nowhere) and check its size and hash."""
        about = self.index[name]
        target = Hashing(out)
        try:
            self.cipher.decrypt(self._stream(about["part"]), target)
        except tarfile.TarError as error:
            raise damaged(self.path, f"{name}: {error}") from error
        except ValueError as error:
            raise damaged(self.path, f"{name} cannot be decrypted ({error})") from error
        if (target.size, target.sha256.hexdigest()) != (about["size"], about["sha256"]):
            raise damaged(self.path, f"{name} has another hash than the index says")

    def read(self, name: str) -> bytes:
        """A small part."""
        out = io.BytesIO()
        self.copy(name, out)
        return out.getvalue()

    def below(self, prefix: str) -> list[str]:
        return [name for name in self.index if name.startswith(f"{prefix}/")]

    def close(self) -> None:
        self.tar.close()


@contextlib.contextmanager
def opened(path: str) -> Iterator[Reader]:
    reader = Reader(path)
    try:
        yield reader
    finally:
        reader.close()
