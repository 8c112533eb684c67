"""`fit --needs` and `fit --upgrade`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import UnsupportedError
from ..fitting import rows
from ..fitting.machine import BACKENDS, Device, Machine, declared, overhead
from ..fitting.words import gib

if TYPE_CHECKING:
    from ..fitting.cards import Card
    from ..fitting.catalogue import Entry
    from ..fitting.choose import FitData
    from ..fitting.rows import Request

CONTEXTS = (131_072, 65_536, 32_768, 16_384, 8192, 4096, 2048)
Drawn = tuple[Any, Callable[[], list[str]]]


def card_machine(card: Card, ram_bytes: int) -> Machine:
    """A machine with one such card, all of its memory free."""
    device = Device(
        card.name, card.vendor, card.memory, card.memory, card.bandwidth, card.flops, card.compute_capability,
        card.kind == "unified", overhead(BACKENDS[card.vendor]), "table",
    )  # fmt: skip
    return declared((device,), max(ram_bytes, card.memory if card.kind == "unified" else 0))


def largest_context(entry: Entry, quant: str, machine: Machine, want: Request) -> rows.Row | None:
    """The row of the largest context at which the model lies wholly on the card."""
    for context in CONTEXTS if want.context is None else (want.context,):
        if context > entry.context:
            continue
        row = rows.entry_row(entry, quant, machine, replace(want, context=context))
        if row.verdict == rows.FITS:
            return row
    return None


def needs_result(data: FitData, model: str, quant: str, want: Request) -> Drawn:
    """Which cards run a model wholly, and at which context."""
    entry, of_tag = data.catalogue.find(model)
    quant = quant or of_tag
    found: list[dict[str, Any]] = []
    for card in sorted(data.cards.cards, key=lambda c: (c.memory, c.name)):
        row = largest_context(entry, quant, card_machine(card, 64 * 2**30), want)
        if row is not None and row.speed is not None:
            speed = row.speed.decode
            found.append({
                "gpu": card.name, "memory": card.memory, "ctx": row.settings.context, "needs": row.used,
                "decode_tps": {"low": round(speed.low, 2), "mid": round(speed.mid, 2), "high": round(speed.high, 2)},
            })  # fmt: skip
    cpu = rows.entry_row(entry, quant, declared((), 2**50), want)
    body = {"model": entry.tag, "quant": quant, "cards": found, "cpu_ram": cpu.estimate.host.total}

    def draw() -> list[str]:
        smallest = found[0]["gpu"] if found else "none of the known ones"
        lines = [f"{entry.title} ({quant}) fits wholly on {len(found)} known cards; the smallest is {smallest}."]
        lines.append(f"Without a GPU it takes {gib(cpu.estimate.host.total)} of RAM.")
        for f in found:
            tps = f["decode_tps"]
            lines.append(
                f"  {f['gpu']:32} {gib(f['memory']):>9}  context {f['ctx']:>6}  needs {gib(f['needs']):>9}  "
                f"{tps['mid']:.0f} ({tps['low']:.0f}-{tps['high']:.0f}) tokens/s"
            )
        return lines

    return body, draw


def upgrade_result(data: FitData, now: Machine, then: Machine, use: str, want: Request) -> Drawn:
    """The best model of each use today and with the other card, side by side."""
    from ..fitting.choose import USES, Wishes, choose_on

    def best(machine: Machine, for_use: str) -> dict[str, Any] | None:
        wishes = Wishes(use=for_use, context=want.context, kv_type=want.kv_type, parallel=want.parallel)
        try:
            c = choose_on(data, machine, wishes).chat
        except UnsupportedError:
            return None
        tps = c.speed.decode
        return {
            "model": c.entry.tag, "ctx": c.settings.context, "bytes": c.estimate.gpu_bytes or c.estimate.host.total,
            "quality": c.quality, "decode_tps": {"low": tps.low, "mid": tps.mid, "high": tps.high},
        }  # fmt: skip

    uses = [use, *(u for u in USES if u != use)]
    found: list[dict[str, Any]] = [{"use": u, "now": best(now, u), "then": best(then, u)} for u in uses]

    def words(found: dict[str, Any] | None) -> str:
        if found is None:
            return "nothing fits"
        return f"{found['model']}, context {found['ctx']}, {found['decode_tps']['mid']:.0f} tokens/s"

    def difference(found: dict[str, Any]) -> str:
        now, then = found["now"], found["then"]
        if now is None or then is None:
            return ""
        times = then["decode_tps"]["mid"] / now["decode_tps"]["mid"]
        what = "the same model" if now["model"] == then["model"] else "a better model"
        if now["model"] != then["model"] and then["quality"] <= now["quality"]:
            what = "another model"
        return f" ({what}, {times:.1f} times the speed)"

    def draw() -> list[str]:
        names = [", ".join(d.name for d in m.devices) or "no GPU" for m in (now, then)]
        lines = [f"{'for':10} {names[0]:44} {names[1]}"]
        return lines + [f"{r['use']:10} {words(r['now']):44} {words(r['then'])}{difference(r)}" for r in found]

    return {"uses": found}, draw
