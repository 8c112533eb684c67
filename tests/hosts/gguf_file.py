"""Writes small GGUF files for tests: metadata and tensors of zeros (GGUF version 3, little endian)."""

from __future__ import annotations

import struct
from pathlib import Path

ALIGNMENT = 32
U32, F32, STRING = 4, 6, 8


def write(path: Path, metadata: dict[str, int | float | str], tensors: dict[str, tuple[int, ...]]) -> Path:
    """Write `path`; every tensor is F32. Returns `path`."""
    out = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        out += _text(key) + _value(value)
    offset = 0
    for name, dims in tensors.items():
        out += _text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, 0, offset)
        offset += _padded(_bytes(dims))
    out += bytes(_padded(len(out)) - len(out)) + bytes(offset)
    path.write_bytes(out)
    return path


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
