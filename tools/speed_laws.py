#!/usr/bin/env python3
"""Fit the laws of decoding speed on public measurements, and say how far they are off on cards left out.

tools/speed_laws.py            for every family: the laws in use, the best fit, and leaving one card out
"""

from __future__ import annotations

import csv
import dataclasses
import math
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from ownstack.fitting.choose import load_data  # noqa: E402
from ownstack.fitting.memory import Settings  # noqa: E402
from ownstack.fitting.model import Model  # noqa: E402
from ownstack.fitting.speed import LAWS, Law, decode_seconds, family_of  # noqa: E402

ROWS = ROOT / "tests" / "fixtures" / "speed" / "rows.csv"
SHARES = [x / 100 for x in range(34, 101, 2)]
LAYERS = [x * 1e-5 for x in range(21)]
FIXED = [x * 2e-4 for x in range(20)]


class Row(NamedTuple):
    """A measurement: tokens a second of a model that lies whole on `cards` cards, with `past` tokens before."""

    vendor: str
    family: str
    card: str
    cards: int
    bandwidth: float
    model: Model
    past: int
    tps: float
    note: str

    @property
    def settings(self) -> Settings:
        return Settings(context=max(512, self.past * 2))

    def error(self, law: Law) -> float:
        """ln(predicted/measured)."""
        return -math.log(decode_seconds(self.model, self.settings, law, self.bandwidth, self.past) * self.tps)


def with_small_rest(model: Model) -> Model:
    """llama.cpp's own file of gpt-oss: what is not an expert as Q8_0, where Ollama's file has BF16."""
    w = model.weights
    experts = sum(w.experts) * model.number("expert_used_count") // model.number("expert_count")
    active = experts + (w.active - experts) * 17 // 32
    return dataclasses.replace(model, weights=dataclasses.replace(w, active=active))


def rows(path: Path = ROWS) -> list[Row]:
    data = load_data()
    found = []
    for row in csv.DictReader(path.open(encoding="utf-8")):
        quant, small, _ = row["quant"].partition("+")
        model = data.catalogue.entries[row["model"]].model(quant)
        card = data.cards.lookup(row["card"])
        family = family_of(row["vendor"], row["card"], card.compute_capability if card else "")
        found.append(
            Row(
                row["vendor"], family, row["card"], int(row["count"]), float(row["bandwidth_gbs"]) * 1e9,
                with_small_rest(model) if small else model, int(row["past"]), float(row["tokens_per_s"]), row["note"],
            )
        )  # fmt: skip
    return found


def law_of(row: Row) -> Law:
    return LAWS[row.family][bool(row.model.experts)]


def fit(group: list[Row], law: Law, step: int = 1) -> Law:
    """The law with the smallest mean log error; a card with many rows weighs as the root of their number."""
    often = Counter(row.card for row in group)
    # seconds are linear in 1/a, layer and t0: three evaluations a row give all
    parts = []
    for row in group:
        s, past = row.settings, row.past
        read = decode_seconds(row.model, s, dataclasses.replace(law, a=math.inf, layer=0, t0=0), row.bandwidth, past)
        weights = row.model.weights.active / row.bandwidth
        parts.append((weights, read, len(row.model.layers), row.tps, 1 / math.sqrt(often[row.card])))

    def badness(a: float, layer: float, t0: float) -> float:
        return sum(abs(math.log((w / a + read + n * layer + t0) * tps)) * heavy for w, read, n, tps, heavy in parts)

    grid = ((a, layer, t0) for a in SHARES[::step] for layer in LAYERS[::step] for t0 in FIXED[::step])
    a, layer, t0 = min(grid, key=lambda point: badness(*point))
    return dataclasses.replace(law, a=a, layer=layer, t0=t0)


def left_out(group: list[Row], law: Law) -> list[float]:
    """Errors on each card by a law that was fitted without it."""
    found: list[float] = []
    for card in sorted({row.card for row in group}):
        made = fit([row for row in group if row.card != card], law, 2)
        found += [row.error(made) for row in group if row.card == card]
    return found


def words(errors: Iterable[float], band: float) -> str:
    size = sorted(abs(e) for e in errors)
    inside = sum(e <= math.log(band) for e in size) / len(size)
    ninth = size[math.ceil(0.9 * len(size)) - 1]
    return f"median {statistics.median(size):6.1%}  nine of ten within {math.exp(ninth):.2f}  in band {inside:.0%}"


def main() -> int:
    groups: dict[tuple[str, bool], list[Row]] = defaultdict(list)
    for row in rows():
        if not row.note:
            groups[row.family, bool(row.model.experts)].append(row)
    for (family, mixture), group in sorted(groups.items()):
        law = LAWS[family][mixture]
        cards = {row.card for row in group}
        print(f"{family} {'mixture' if mixture else 'dense'}: {len(group)} rows, {len(cards)} cards")
        best = fit(group, law)
        for name, one in (("in use", law), ("best", best)):
            shown = f"a {one.a:.2f}  layer {one.layer * 1e6:3.0f} us  fixed {one.t0 * 1e3:.1f} ms"
            print(f"  {name:9} {shown}  {words((row.error(one) for row in group), law.band)}")
        if len(cards) > 1:
            print(f"  {'card out':50} {words(left_out(group, law), law.band)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
