"""Writes GGUF files (version 3, little endian): small ones of zeros for tests, and a model with more blocks."""

from __future__ import annotations

import re
import struct
from pathlib import Path

from ownstack.fitting import gguf
from ownstack.fitting.quants import NUMBERS

ALIGNMENT = 32
U32, F32, STRING = 4, 6, 8
# what a block adds to the stream that passes through all blocks
ADDS = (".attn_output.weight", ".ffn_down.weight")


def write(path: Path, metadata: dict[str, int | float | str], tensors: dict[str, tuple[int, ...]]) -> Path:
    """Write `path`; every tensor is F32. Returns `path`."""
    out = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        out += _text(key) + _value(value)
    offset = 0
    for name, dims in tensors.items():
        out += _row(name, dims, 0, offset)
        offset += _padded(_bytes(dims))
    out += bytes(_padded(len(out)) - len(out)) + bytes(offset)
    path.write_bytes(out)
    return path


def deeper(source: Path, path: Path, times: int) -> Path:
    """Write `source`, a llama with separate parts in each block, with `times` as many blocks. Returns `path`.

    It works as hard as a larger model and says the same as `source`: what the further blocks add is zero.
    """
    header, data = gguf.read_header(source), source.read_bytes()
    tensors, blocks = header.tensors, int(header.get("block_count"))
    table = b"".join(_row(one.name, one.dims, NUMBERS[one.type_name], one.offset) for one in tensors)
    pairs = _replaced(
        data[24 : data.index(table)],
        _text("llama.block_count") + _value(blocks),
        _text("llama.block_count") + _value(blocks * times),
    )
    rows = [(one.name, one, False) for one in tensors]
    for more in range(1, times):
        for one in tensors:
            if found := re.fullmatch(r"blk\.(\d+)(\..+)", one.name):
                rows.append((f"blk.{int(found[1]) + more * blocks}{found[2]}", one, found[2] in ADDS))
    head, offset = bytearray(b"GGUF" + struct.pack("<IQ", 3, len(rows)) + data[16:24] + pairs), 0
    for name, one, _ in rows:  # one after the other without gaps, as llama.cpp wants them
        head += _row(name, one.dims, NUMBERS[one.type_name], offset)
        offset += _padded(one.bytes)
    with path.open("wb") as out:
        out.write(head + bytes(_padded(len(head)) - len(head)))
        for _, one, silent in rows:
            begin = header.data_offset + one.offset
            out.write(bytes(one.bytes) if silent else data[begin : begin + one.bytes])
            out.write(bytes(_padded(one.bytes) - one.bytes))
    return path


def _replaced(text: bytes, old: bytes, new: bytes) -> bytes:
    if text.count(old) != 1:
        raise ValueError("the number of blocks does not stand there once")
    return text.replace(old, new)


def _row(name: str, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    """A tensor's row of the table."""
    return _text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def _value(value: int | float | str) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _text(value)
    if isinstance(value, int):
        return struct.pack("<II", U32, value)
    return struct.pack("<If", F32, value)


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _bytes(dims: tuple[int, ...]) -> int:
    total = 4
    for size in dims:
        total *= size
    return total


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
