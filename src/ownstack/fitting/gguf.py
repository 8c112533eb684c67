"""Reader of GGUF headers: metadata and tensor table, never the tensors themselves.

Bounded in time and memory for any input: every count is checked against the bytes that are left
before anything is allocated. Long arrays (vocabulary, merges, scores) are walked, not kept.
Format: the public GGUF specification, versions 2 and 3, little and big endian.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from ..errors import ConfigError
from .quants import TYPES

MAX_HEADER_BYTES = 192 * 2**20
MAX_PAIRS = 16_384
MAX_TENSORS = 262_144
MAX_STRINGS = 4_000_000  # entries of string arrays in the whole header
MAX_STRING_BYTES = 4 * 2**20
KEEP_ELEMENTS = 4096  # longer arrays are counted, not kept
CHUNK = 256 * 1024

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


class GgufError(ConfigError):
    """The file is not a GGUF file that can be read."""

    code = "gguf"


@dataclass(frozen=True, slots=True)
class Tensor:
    """One row of the tensor table. `bytes` is the size of its data."""

    name: str
    dims: tuple[int, ...]
    type_name: str
    offset: int
    bytes: int


@dataclass(frozen=True, slots=True)
class LongArray:
    """An array that was walked but not kept."""

    count: int


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself. `file_bytes` is the file's true size (of all its parts)."""

    version: int
    metadata: dict[str, Any]
    tensors: tuple[Tensor, ...]
    data_offset: int
    file_bytes: int
    bytes_read: int
    parts: tuple[str, ...] = field(default=())

    @property
    def arch(self) -> str:
        return str(self.metadata["general.architecture"])

    def get(self, key: str, default: Any = None) -> Any:
        """A value of this architecture's own namespace (`{arch}.{key}`)."""
        return self.metadata.get(f"{self.arch}.{key}", default)

    @property
    def complete(self) -> bool:
        """Whether the file is long enough to hold the data of all its tensors."""
        return self.file_bytes >= sum(t.bytes for t in self.tensors)


class _Cursor:
    """Reads forward through a file in chunks, and skips by seeking."""

    def __init__(self, source: BinaryIO, size: int, name: str) -> None:
        self.source, self.size, self.name = source, size, name
        self.buffer, self.at, self.base = b"", 0, 0
        self.read_bytes, self.strings = 0, 0
        self.order = "<"

    @property
    def position(self) -> int:
        return self.base + self.at

    @property
    def left(self) -> int:
        return self.size - self.position

    def fail(self, what: str) -> NoReturn:
        raise GgufError(
            f"{self.name}: {what} (at byte {self.position})",
            hint="not a complete GGUF file, or a damaged one: download it again",
        )

    def fill(self, count: int) -> None:
        """Make `count` bytes available at the cursor."""
        have = len(self.buffer) - self.at
        if have >= count:
            return
        if count > self.left:
            self.fail("the header ends early")
        if self.position + count > MAX_HEADER_BYTES:
            self.fail(f"the header is longer than {MAX_HEADER_BYTES >> 20} MiB")
        rest = self.buffer[self.at :]
        more = self.source.read(max(count - have, CHUNK))
        self.read_bytes += len(more)
        self.base += self.at
        self.buffer, self.at = rest + more, 0
        if len(self.buffer) < count:
            self.fail("the header ends early")

    def take(self, count: int) -> bytes:
        self.fill(count)
        self.at += count
        return self.buffer[self.at - count : self.at]

    def skip(self, count: int) -> None:
        if count > self.left:
            self.fail("an array runs past the end of the file")
        if self.position + count > MAX_HEADER_BYTES:
            self.fail(f"the header is longer than {MAX_HEADER_BYTES >> 20} MiB")
        inside = min(count, len(self.buffer) - self.at)
        self.at += inside
        if count > inside:
            self.base = self.position + count - inside
            self.buffer, self.at = b"", 0
            self.source.seek(self.base)

    def number(self, code: str) -> Any:
        size = struct.calcsize(code)
        return struct.unpack(self.order + code, self.take(size))[0]

    def string(self, limit: int = MAX_STRING_BYTES) -> str:
        count = self.number("Q")
        if count > limit:
            self.fail(f"a string of {count} bytes")
        return self.take(count).decode("utf-8", "replace")

    def skip_strings(self, count: int) -> None:
        """Walk over `count` strings without keeping them."""
        self.strings += count
        if count * 8 > self.left or self.strings > MAX_STRINGS:
            self.fail(f"an array of {count} strings")
        unpack = struct.Struct(self.order + "Q").unpack_from
        for _ in range(count):
            if len(self.buffer) - self.at < 8:
                self.fill(8)
            length = unpack(self.buffer, self.at)[0]
            end = self.at + 8 + length
            if end <= len(self.buffer):
                self.at = end
            else:
                self.at += 8
                self.skip(length)


def _value(cursor: _Cursor, kind: int) -> Any:
    if kind in _SCALARS:
        if kind == 7:
            return cursor.number("B") != 0
        return cursor.number(_SCALARS[kind])
    if kind == _STRING:
        return cursor.string()
    if kind == _ARRAY:
        return _array(cursor)
    return cursor.fail(f"unknown value type {kind}")


def _array(cursor: _Cursor) -> Any:
    kind, count = cursor.number("I"), cursor.number("Q")
    if kind == _STRING:
        if count > 64:
            cursor.skip_strings(count)
            return LongArray(count)
        return [cursor.string() for _ in range(count)]
    if kind not in _SCALARS:
        cursor.fail(f"an array of unknown type {kind}")
    code = _SCALARS[kind]
    size = struct.calcsize(code)
    if count * size > cursor.left:
        cursor.fail(f"an array of {count} elements")
    if count > KEEP_ELEMENTS:
        cursor.skip(count * size)
        return LongArray(count)
    code = "B" if code == "?" else code
    values = list(struct.unpack(f"{cursor.order}{count}{code}", cursor.take(count * size)))
    return [v != 0 for v in values] if kind == 7 else values


def _tensor(cursor: _Cursor, alignment: int) -> Tensor:
    name = cursor.string(512)
    n_dims = cursor.number("I")
    if not 1 <= n_dims <= 4:
        cursor.fail(f"tensor {name!r} has {n_dims} dimensions")
    dims = tuple(cursor.number("Q") for _ in range(n_dims))
    kind, offset = cursor.number("I"), cursor.number("Q")
    if kind not in TYPES:
        cursor.fail(f"tensor {name!r} has the unknown type {kind}")
    type_name, block, size = TYPES[kind]
    count = 1
    for dim in dims:
        count *= dim
        if not 0 < dim < 2**40 or count >= 2**50:
            cursor.fail(f"tensor {name!r} has the impossible shape {dims}")
    if dims[0] % block:
        cursor.fail(f"tensor {name!r}: rows of {dims[0]} values are not whole {type_name} blocks")
    if offset % alignment or offset >= 2**56:
        cursor.fail(f"tensor {name!r} lies at the impossible offset {offset}")
    return Tensor(name, dims, type_name, offset, count // block * size)


def _pairs(cursor: _Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key = cursor.string(65_535)
        if key in metadata:
            cursor.fail(f"the key {key!r} appears twice")
        metadata[key] = _value(cursor, cursor.number("I"))
    return metadata


def read_stream(source: BinaryIO, size: int, name: str) -> Header:
    """Read the header from the start of `source`, a file of `size` bytes called `name` in messages.

    Raises GgufError for anything that is not a well-formed header.
    """
    cursor = _Cursor(source, size, name)
    if size < 24 or cursor.take(4) != b"GGUF":
        cursor.fail("this is not a GGUF file")
    version = cursor.number("I")
    if version & 0xFFFF == 0:  # written on a big-endian machine
        cursor.order = ">"
        version = int.from_bytes(version.to_bytes(4, "little"), "big")
    if version not in (2, 3):
        cursor.fail(f"GGUF version {version} is not supported")
    n_tensors, n_pairs = cursor.number("Q"), cursor.number("Q")
    if n_tensors > MAX_TENSORS or n_pairs > MAX_PAIRS:
        cursor.fail(f"{n_tensors} tensors and {n_pairs} keys")
    metadata = _pairs(cursor, n_pairs)
    if not isinstance(metadata.get("general.architecture"), str):
        cursor.fail("the key general.architecture is missing")
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 8 <= alignment <= 2**16 or alignment & (alignment - 1):
        cursor.fail(f"the alignment {alignment!r} is not a power of two")
    tensors = tuple(_tensor(cursor, alignment) for _ in range(n_tensors))
    if len({t.name for t in tensors}) != len(tensors):
        cursor.fail("two tensors have the same name")
    data_offset = -(-cursor.position // alignment) * alignment
    return Header(version, metadata, tensors, data_offset, size, cursor.read_bytes)


def _open(path: Path) -> Header:
    try:
        with path.open("rb", buffering=0) as source:
            return read_stream(source, os.fstat(source.fileno()).st_size, str(path))
    except OSError as error:
        raise GgufError(f"{path}: {error.strerror or error}", hint="name a readable GGUF file") from error


def read_header(path: Path) -> Header:
    """Read the header of a local GGUF file; of a split file the headers of all its parts."""
    if path.is_dir():
        raise GgufError(f"{path} is a folder", hint="name a GGUF file")
    if path.exists() and not path.is_file():
        raise GgufError(f"{path} is not a regular file", hint="name a GGUF file")
    first = _open(path)
    count = first.metadata.get("split.count", 0)
    if not isinstance(count, int) or count <= 1:
        return first
    match = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.gguf", path.name)
    if match is None or int(match[3]) != count or count > 1000:
        raise GgufError(f"{path}: one of {count} parts, but its name is not NAME-00001-of-{count:05}.gguf")
    parts = [path.with_name(f"{match[1]}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]
    headers = [_open(part) for part in parts]
    return Header(
        version=headers[0].version,
        metadata=headers[0].metadata,
        tensors=tuple(t for h in headers for t in h.tensors),
        data_offset=headers[0].data_offset,
        file_bytes=sum(h.file_bytes for h in headers),
        bytes_read=sum(h.bytes_read for h in headers),
        parts=tuple(str(p) for p in parts),
    )
