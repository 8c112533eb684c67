"""What is known of GPUs without asking them: name, memory, bandwidth and target by PCI id or name."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from importlib import resources
from typing import Any

from ..kit import data_path, kept
from .report import Frozen, Reading

MIB = 1 << 20
UNKNOWN_SIZE = "its memory is not known"


class Size(Frozen):
    """One of several cards that share a PCI id."""

    memory_bytes: int
    name: str
    bandwidth: float


class Card(Frozen):
    """A row of the tables. Sizes in bytes, bandwidth in bytes per second; None where not known."""

    name: str
    pci: tuple[str, ...] = ()
    memory_bytes: int | None = None
    bandwidth: float | None = None
    gfx: str = ""
    integrated: bool = False
    old: bool = False
    sizes: tuple[Size, ...] = ()

    def of_size(self, memory_bytes: int) -> Card:
        """The card of this id that has that much memory (within a tenth), or the row as it is."""
        for size in self.sizes:
            if abs(size.memory_bytes - memory_bytes) < size.memory_bytes // 10:
                return self.model_copy(update={"name": size.name, "bandwidth": size.bandwidth})
        return self


@cache
def tables() -> dict[str, Any]:
    """hardware/devices.toml as it stands."""
    return tomllib.loads(resources.files(__package__).joinpath("devices.toml").read_text(encoding="utf-8"))


@cache
def devices() -> dict[str, Card]:
    """Devices by `vendor:device`."""
    found = {}
    for row in tables()["device"]:
        card = Card(
            name=row["name"],
            pci=tuple(row["pci"]),
            memory_bytes=row["mib"] * MIB if "mib" in row else None,
            bandwidth=row["gb_s"] * 1e9 if "gb_s" in row else None,
            gfx=row.get("gfx", ""),
            integrated=row.get("integrated", False),
            old=row.get("old", False),
            sizes=tuple(
                Size(memory_bytes=size["mib"] * MIB, name=size["name"], bandwidth=size["gb_s"] * 1e9)
                for size in row.get("sizes", [])
            ),
        )
        found.update(dict.fromkeys(card.pci, card))
    return found


@cache
def support() -> dict[str, Any]:
    """What the engine can use, from hardware/support.toml."""
    return tomllib.loads(resources.files(__package__).joinpath("support.toml").read_text(encoding="utf-8"))


@kept
def named() -> dict[str, dict[str, Any]]:
    """Rows by simplified name, from the card table of `fitting` where the kit has one."""
    path = data_path("fitting/cards.toml")
    if not path.is_file():
        return {}
    vendors = tomllib.loads(path.read_text(encoding="utf-8")).get("cards", {}).values()
    return {simple(row["name"]): row for rows in vendors for row in rows}


def simple(name: str) -> str:
    """A name without maker, memory size and punctuation, so that drivers' and vendors' spellings meet."""
    text = re.sub(r"\((r|tm)\)|[™®]", "", name.lower())
    text = re.sub(r"\b(nvidia|geforce|amd|radeon|intel|graphics|apple|gpu|generation)\b", " ", text)
    return " ".join(re.findall(r"[a-z0-9]+", text))


def table_bandwidth(name: str, pci: str = "", card: Card | None = None) -> Reading[float]:
    """Memory bandwidth by name, then by PCI id. Never a near match: another card's is worse than none."""
    card = card or devices().get(pci)
    told = named().get(simple(name), {}).get("gbs")
    value = told * 1e9 if told else card.bandwidth if card else None
    if value is None:
        return Reading[float].unknown(f"{name or pci} is not in the table")
    return Reading[float](value=value, source="table")


def table_capability(name: str) -> Reading[str]:
    """Compute capability by name, for a card that is not asked."""
    value = named().get(simple(name), {}).get("cc")
    if not value:
        return Reading[str].unknown(f"{name} is not in the table")
    return Reading[str](value=str(value), source="table")
