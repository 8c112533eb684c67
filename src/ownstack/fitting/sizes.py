"""Sizes as people type them."""

from __future__ import annotations

import re

from ..errors import ConfigError
from .machine import UNLIMITED

_UNITS = {
    "": 2**30, "b": 1, "k": 2**10, "kib": 2**10, "m": 2**20, "mib": 2**20, "mb": 10**6, "g": 2**30, "gib": 2**30,
    "gb": 10**9, "t": 2**40, "tib": 2**40, "tb": 10**12,
}  # fmt: skip


def parse_size(text: str, what: str = "size") -> int:
    """Bytes of `24GiB`, `24564MiB`, `24` (GiB), `16376` (MiB: too many for GiB), `0`, `unlimited`."""
    wanted = text.strip().lower()
    if wanted in {"unlimited", "inf"}:
        return UNLIMITED
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", wanted)
    if match is None or match[2] not in _UNITS:
        raise ConfigError(f"{what}: {text!r} is not a size", hint="write for example 24GiB, 24564MiB, 0 or unlimited")
    number = float(match[1])
    unit = _UNITS["m"] if match[2] == "" and number >= 1000 else _UNITS[match[2]]
    size = int(number * unit)
    if size > UNLIMITED:
        raise ConfigError(f"{what}: {text!r} is too large", hint="write `unlimited` for a card without limit")
    return size
