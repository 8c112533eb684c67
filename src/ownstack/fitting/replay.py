"""The engine's graph allocator, replayed on a model's own widths.

For each architecture `data/graphs-*.jsonl` hold what llama.cpp's allocator does for a short model: the
sequence of allocations (each a formula of the header's widths) and releases. Replaying it with a model's
widths through the same best-fit rule (ggml-alloc.c) gives the peak of the compute buffer, holes included.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..kit import data_path, kept

ALIGN = 128
# event codes: allocation of formula n; flash attention over the growing (BASE) or the window cache (WINDOW)
BASE, WINDOW = 10_000, 20_000


class Blocks:
    """Best-fit allocation over one endless buffer, as ggml's dynamic allocator does it."""

    def __init__(self) -> None:
        self.holes: list[tuple[int, int]] = []  # (offset, size), by offset; never touching each other or the end
        self.end = 0
        self.peak = 0

    def take(self, size: int) -> int:
        """The offset of a new block."""
        best = -1
        for i, (_, room) in enumerate(self.holes):
            if room >= size and (best < 0 or room <= self.holes[best][1]):
                best = i
        if best < 0:
            offset = self.end
            self.end += size
            self.peak = max(self.peak, self.end)
            return offset
        offset, room = self.holes[best]
        if room == size:
            del self.holes[best]
        else:
            self.holes[best] = (offset + size, room - size)
        return offset

    def give(self, offset: int, size: int) -> None:
        """Free a block, or the tail of one."""
        at = 0
        while at < len(self.holes) and self.holes[at][0] < offset:
            at += 1
        if at < len(self.holes) and offset + size == self.holes[at][0]:
            size += self.holes.pop(at)[1]
        if at and self.holes[at - 1][0] + self.holes[at - 1][1] == offset:
            at -= 1
            before = self.holes.pop(at)
            offset, size = before[0], before[1] + size
        if offset + size == self.end:
            self.end = offset
        else:
            self.holes.insert(at, (offset, size))


def aligned(size: float, to: int = ALIGN) -> int:
    return -(-int(size) // to) * to


def value(formula: Sequence[Any], widths: Mapping[str, int], tensors: Mapping[str, int]) -> int:
    """Bytes of a formula: coefficient times widths, or coefficient times a sum of two such products.

    `["W", name]` is a weight that the device borrows: the largest tensor of that name.
    """
    coefficient, *rest = formula
    if coefficient == "W":
        return tensors.get(rest[0], 0)
    if rest and rest[0] and isinstance(rest[0][0], (int, float)):
        return int(coefficient * sum(_product(part[0], part[1], widths) for part in rest))
    return int(_product(coefficient, rest[0] if rest else (), widths))


def _product(coefficient: float, names: Sequence[str], widths: Mapping[str, int]) -> float:
    result = coefficient
    for name in names:
        # "ub+3": convolutions keep three more columns for each sequence
        result *= widths["ub"] + int(name[3:]) * widths["n"] if name.startswith("ub+") else widths[name]
    return result


def peak(
    program: Mapping[str, Any],
    widths: Mapping[str, int],
    copies: tuple[int, int] = (0, 0),
    tensors: Mapping[str, int] | None = None,
) -> int:
    """Bytes of the buffer at its largest.

    `copies`: what flash attention adds for the growing and for the window cache (F16 copies of a
    quantised cache, CUDA only).
    """
    sizes = [value(f, widths, tensors or {}) for f in program["sizes"]]
    blocks = Blocks()
    live: list[tuple[int, int]] = []
    for event in program["events"]:
        if event < 0:
            offset, size = live[-event - 1]
            if size:
                blocks.give(offset, size)
        else:
            extra = copies[1] if event >= WINDOW else copies[0] if event >= BASE else 0
            size = aligned(sizes[event % BASE] + extra)
            live.append((blocks.take(size) if size else 0, size))
    return blocks.peak


def with_every_output(recorded: Mapping[str, Any]) -> Mapping[str, Any]:
    """A program recorded for one row of logits, for `nout` rows: what the last layer makes grows with them."""

    def grown(formula: Sequence[Any]) -> Sequence[Any]:
        names = formula[1] if len(formula) == 2 else ()
        if not names or names == ["conv"] or any(name.startswith("ub") for name in names):
            return formula  # of every token, or a sequence's state
        return [formula[0], [*names, "nout"]]

    return {"sizes": [grown(formula) for formula in recorded["sizes"]], "events": recorded["events"]}


def with_mixed_inputs(recorded: Mapping[str, Any]) -> Mapping[str, Any]:
    """A recorded program of one CPU buffer, as engines of autumn 2026 (llama.cpp 0.7.0) run it.

    Programs were recorded at build 11669, where a batch is tokens or embeddings. Since then it may mix both:
    three more inputs (tokens, slots, embeddings), the tokens' rows looked up, the embeddings copied. The copy
    stays to the end, for nothing reads it. A program without such a beginning is returned as it is.
    """
    events: list[int] = recorded["events"]
    sizes = [*recorded["sizes"], [8, ["ub"]]]
    leaves = next((i for i, event in enumerate(events) if event < 0), 0) - 1
    if leaves < 2:
        return recorded
    ids, embedded, row = events[0], events[1], events[leaves]
    wide = embedded if sizes[embedded][1:] == sizes[row][1:] else row
    at = leaves + 2  # here the tokens' rows have been looked up
    if events[at] == row and -leaves <= events[at + 1] < 0:
        at += 2  # after the positions'
    named: list[tuple[str, int]] = []  # (block, formula), or (block, -1) when it is given back
    made = 0
    for event in events:
        made += event >= 0
        named.append((str(-event), -1) if event < 0 else (str(made), event))
    rows, given, slots, looked, copy = (("tokens", -1), ("given", -1), ("slots", -1), ("rows", -1), ("copy", wide))
    if sizes[embedded] != sizes[row] and events[at] == embedded:  # rows are widened for deep vision features
        named[at + 2 : at + 2] = [("wide", wide), looked, copy, given, ("wide", -1), slots]
        named[at:at] = [("rows", row), rows]
    else:
        named[at:at] = [("rows", row), rows, copy, given, looked, slots]
    named[2:2] = [("tokens", ids), ("slots", len(sizes) - 1), ("given", wide)]
    numbers = {block: i + 1 for i, (block, _) in enumerate(pair for pair in named if pair[1] >= 0)}
    return {"sizes": sizes, "events": [-numbers[block] if formula < 0 else formula for block, formula in named]}


@kept
def _lines(mode: str) -> tuple[dict[str, int], list[bytes]]:
    """The names of a mode's programs, and the programs still as text: most are never looked at."""
    first, *rest = data_path(f"fitting/graphs-{mode}.jsonl").read_bytes().splitlines()
    return json.loads(first)["names"], rest


@kept
def program(name: str, mode: str = "server") -> Mapping[str, Any] | None:
    """The allocation program of an architecture, or None.

    Modes: `server` (one row of logits a request), `all` (of every position), `q8` (quantised cache), `nofa`
    (no flash attention), `part` (layers on the host), `exps` (experts on the host), `cpu`, `cpuall`.
    """
    names, lines = _lines(mode)
    if name not in names:
        return None
    found: dict[str, Any] = json.loads(lines[names[name]])
    return found
