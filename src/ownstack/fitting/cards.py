"""The table of GPUs and unified-memory machines: `data/cards.toml`."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..kit import data_path, load_toml

_NOISE = re.compile(
    r"\b(nvidia|geforce|amd|radeon|intel|apple|corporation|graphics|gpu|laptop gpu|generation)\b|\(r\)|\(tm\)"
)


@dataclass(frozen=True, slots=True)
class Card:
    """One card. Bandwidth in bytes/s, `flops` FP16 (dense tensor rate where there is one) in operations/s."""

    name: str
    vendor: str
    memory: int  # as the driver reports it
    bandwidth: float
    flops: float
    compute_capability: str
    kind: str  # desktop, laptop, workstation, data-centre, mig, unified
    source: str


@functools.cache
def normal(name: str) -> str:
    """A card's name without vendor and decoration, for comparing."""
    text = name.lower().replace("laptop gpu", "laptop").replace("mobile", "laptop").replace("-", " ")
    text = _NOISE.sub(" ", text)
    text = re.sub(r"\b(rtx|gtx|rx)(\d)", r"\1 \2", text)
    text = re.sub(r"\b(m\d)(pro|max|ultra)\b", r"\1 \2", text)
    text = re.sub(r"(\d{4})\s*(ti|super|xtx|xt|gre)\b", r"\1 \2", text)
    text = re.sub(r"\b(\d+)\s*g(i?)b\b", r"\1gb", text)
    return " ".join(text.split())


class Cards:
    """All cards, found by name and memory."""

    def __init__(self, cards: Iterable[Card], also: Mapping[str, str] | None = None) -> None:
        """`also`: names of machines and chips -> the name of their card here, for what a person types."""
        self.cards = tuple(cards)
        self._also = {normal(name): card for name, card in (also or {}).items()}
        self._by_name: dict[str, list[Card]] = {}
        for card in self.cards:
            self._by_name.setdefault(normal(card.name), []).append(card)
            bare = re.sub(r"\b\d+gb\b", "", normal(card.name)).strip()
            if bare != normal(card.name):
                self._by_name.setdefault(" ".join(bare.split()), []).append(card)
            elif card.kind not in {"unified", "mig"}:  # "RTX 3060 12GB" is the one whose name tells no size
                self._by_name.setdefault(f"{normal(card.name)} {round(card.memory / 2**30)}gb", []).append(card)

    def lookup(self, name: str, memory: int = 0) -> Card | None:
        """The card of that exact name; where memory sizes differ the nearest. Never a guess by substring."""
        found = self._by_name.get(normal(name), [])
        if not found:
            return None
        if not memory:  # nobody said which size: the smaller one, so that nothing is promised
            return min(found, key=lambda card: card.memory)
        best = min(found, key=lambda c: abs(c.memory - memory))
        return best if abs(best.memory - memory) <= best.memory // 4 or best.kind == "unified" else None

    def _by_words(self, wanted: str) -> list[Card]:
        """Cards whose names hold all the words of a person ("4090", "MI300X"), those with the fewest others."""
        words = set(wanted.split())
        if not words:
            return []
        more = {card.name: len(set(normal(card.name).split()) - words) for card in self.cards}
        held = [card for card in self.cards if words <= set(normal(card.name).split())]
        least = min((more[card.name] for card in held), default=0)
        return [card for card in held if more[card.name] == least]

    def find(self, name: str) -> Card:
        """The card a user means. Raises ConfigError with the nearest names."""
        card = self.lookup(self._also.get(normal(name), name))
        if card is not None:
            return card
        wanted = normal(name)
        short = self._by_words(wanted)
        if len(short) == 1:
            return short[0]
        near = difflib.get_close_matches(wanted, list(self._by_name), n=4, cutoff=0.6)
        near = [normal(card.name) for card in short] + near
        near += [n for n in self._by_name if wanted and wanted in n and n not in near][:6]
        names = list(dict.fromkeys(self._by_name[n][0].name for n in near))[:5]
        raise ConfigError(
            f"unknown GPU {name!r}",
            hint=("nearest: " + ", ".join(names) + "; or give its memory with --vram") if names else "use --vram",
            code="unknown-gpu",
        )


def load_cards(path: Path | None = None) -> Cards:
    path = path or data_path("fitting/cards.toml")
    data = load_toml(path)
    try:
        sources = data["sources"]
        rows = ((vendor, raw) for vendor, rows in data["cards"].items() for raw in rows)
        return Cards((card_of(vendor, raw, sources[vendor]) for vendor, raw in rows), data.get("also"))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {error!r}", hint="put back the card table of this release") from error


def card_of(vendor: str, raw: dict[str, Any], source: str) -> Card:
    return Card(
        name=raw["name"],
        vendor=vendor,
        memory=int(raw["mib"] * 2**20),
        bandwidth=float(raw["gbs"]) * 1e9,
        flops=float(raw.get("tflops", 0.0)) * 1e12,
        compute_capability=str(raw.get("cc", "")),
        kind=raw.get("kind", "desktop"),
        source=source,
    )
