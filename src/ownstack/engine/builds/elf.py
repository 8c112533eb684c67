"""Just enough of the ELF format to follow a program's shared libraries, for any architecture."""

from __future__ import annotations

import struct
from pathlib import Path

from ...errors import RunError

PT_LOAD, PT_DYNAMIC = 1, 2
DT_NEEDED, DT_STRTAB = 1, 5


def needed(path: Path) -> list[str]:
    """Names of the shared libraries that a 64-bit little-endian ELF file asks for (DT_NEEDED), in its order.

    Raises RunError for a file of another kind. Source of the layout: elf(5).
    """
    data = path.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        raise RunError(f"{path.name} is not a 64-bit little-endian ELF file")
    loads, dynamic = _segments(data)
    entries = []
    for at in range(dynamic[0], dynamic[0] + dynamic[1], 16):
        tag, value = struct.unpack_from("<qQ", data, at)
        if tag == 0:
            break
        entries.append((tag, value))
    table = next((value for tag, value in entries if tag == DT_STRTAB), None)
    if table is None:
        return []
    inside = (offset + table - address for offset, address, size in loads if address <= table < address + size)
    start = next(inside, table)
    return [_text(data, start + value) for tag, value in entries if tag == DT_NEEDED]


def _segments(data: bytes) -> tuple[list[tuple[int, int, int]], tuple[int, int]]:
    """The loaded segments as (file offset, address, size), and where the dynamic table lies."""
    (at,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    loads, dynamic = [], (0, 0)
    for index in range(count):
        kind, _, offset, address, _, length = struct.unpack_from("<IIQQQQ", data, at + index * size)
        if kind == PT_LOAD:
            loads.append((offset, address, length))
        elif kind == PT_DYNAMIC:
            dynamic = (offset, length)
    return loads, dynamic


def _text(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()
