"""`ownstack fit` for people: one plain sentence, a traffic light a row, the numbers below it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import UnsupportedError
from ..fitting import rows
from ..fitting.machine import UNLIMITED
from ..fitting.words import gib
from .output import style

if TYPE_CHECKING:
    from ..fitting.choose import FitData
    from ..fitting.machine import Machine
    from ..fitting.rows import Request, Row

BAR = 24
SLOW_TPS = 8.0
LIGHTS = {rows.FITS: ("●", "green"), rows.PARTIAL: ("◐", "yellow"), rows.MISFIT: ("○", "red")}


def machine_json(machine: Machine) -> dict[str, Any]:
    return {
        "backend": machine.backend,
        "gpus": [{"name": d.name, "total": d.total, "free": d.free, "bandwidth": d.bandwidth} for d in machine.devices],
        "ram": {"total": machine.ram_total, "available": machine.ram_available},
    }


def machine_line(machine: Machine) -> str:
    """The machine in one line."""
    cards = [
        d.name if d.free >= UNLIMITED else f"{d.name} ({gib(d.free)} of {gib(d.total)} free)" for d in machine.devices
    ]
    ram = f"{gib(machine.ram_available)} of {gib(machine.ram_total)} of RAM free"
    return (", ".join(cards) + "; " if cards else "no GPU; ") + ram


def best_sentence(
    data: FitData, machine: Machine, use: str, want: Request
) -> tuple[str, dict[str, Any] | None, Callable[[], str]]:
    """The first line, the same as data, and a way to the second line: what came next, and what would change it."""
    from ..fitting.choose import Wishes, choose_on
    from ..fitting.explain import in_short

    wishes = Wishes(use=use, context=want.context, kv_type=want.kv_type, parallel=want.parallel)
    try:
        chosen = choose_on(data, machine, wishes)
    except UnsupportedError as error:
        return f"No model for {use} fits here: {error.message}.", None, lambda: ""
    chat = chosen.chat
    e = chat.estimate
    spare = sum(machine.free) - chat.gpu_bytes if machine.devices else machine.ram_available - e.host.total
    where = "fits" if e.whole or not machine.devices else "fits partly on the CPU,"
    text = (
        f"Best for {use} here: {chat.entry.tag}, {where} with {gib(spare)} to spare, "
        f"about {chat.speed.decode.mid:.0f} tokens/s."
    )
    decode, second = chat.speed.decode, chosen.next_best.get("chat")
    found = {
        "model": chat.entry.tag,
        "ctx": chat.settings.context,
        "spare": spare,
        "decode_tps": {"low": round(decode.low, 2), "mid": round(decode.mid, 2), "high": round(decode.high, 2)},
        "next_best": None if second is None else second.entry.tag,
    }
    return text, found, lambda: in_short(lambda other: choose_on(data, other, wishes), machine, chosen)


def bar(row: Row, machine: Machine) -> str:
    """Weights, cache, compute, overhead, free: W C c o ."""
    total = sum(d.total for d in machine.devices) or machine.ram_total
    if total >= UNLIMITED:
        total = max(row.used, 1)
    parts = row.estimate.gpus if row.estimate.gpu_bytes else (row.estimate.host,)
    amounts = [
        ("█", sum(p.weights + p.projector for p in parts)),
        ("▓", sum(p.kv + p.recurrent for p in parts)),
        ("▒", sum(p.compute + p.output for p in parts)),
        ("░", sum(p.overhead[1] for p in parts if p.total)),
    ]
    drawn = ""
    for mark, size in amounts:
        drawn += mark * max(round(size / total * BAR), 1 if size > total / BAR / 2 else 0)
    return drawn[:BAR].ljust(BAR, "·")


def light(row: Row) -> str:
    mark, colour = LIGHTS[row.verdict]
    if row.verdict == rows.FITS and row.speed and row.speed.decode.mid < SLOW_TPS:
        mark, colour = "◐", "yellow"
    return style(mark, colour)


def speed_words(row: Row) -> str:
    if row.speed is None or row.model.embedding_model:
        return ""
    d = row.speed.decode
    return f"{d.mid:.0f} ({d.low:.0f}-{d.high:.0f})"


def verdict_words(row: Row) -> str:
    if row.verdict == rows.FITS:
        return "fits"
    if row.verdict == rows.PARTIAL:
        return row.reasons[0]
    return "does not fit" + (f"; try {row.change}" if row.change else "")


def table(found: list[Row], machine: Machine, best: str, more: str, every: bool) -> list[str]:
    """The ranked table."""
    shown = found if every else [r for r in found if r.verdict != rows.MISFIT][:20]
    lines = [best, *([more] if more else []), machine_line(machine), ""]
    head = (
        f"  {'model':26} {'quant':7} {'needs':>9} {'memory':{BAR}} {'ctx':>7} {'layers':>7} {'tokens/s':>14}  verdict"
    )
    lines.append(style(head, bold=True))
    for row in shown:
        e = row.estimate
        layers = f"{e.gpu_layers}/{e.of_layers}" if machine.devices else "CPU"
        lines.append(
            f"{light(row)} {row.tag:26} {row.model.quant:7} {gib(row.used):>9} {bar(row, machine)} "
            f"{row.settings.context:>7} {layers:>7} {speed_words(row):>14}  {verdict_words(row)}"
        )
    lines += ["", "█ weights ▓ cache ▒ compute ░ driver · free.  ● fits ◐ partly on the CPU, or slow ○ does not fit"]
    if not every:
        lines.append("`--all` shows every model, `--model TAG` one in detail.")
    return lines


def one(row: Row, machine: Machine) -> list[str]:
    """One model in detail."""
    e, s = row.estimate, row.settings
    lines = [f"{light(row)} {row.title}: {verdict_words(row)}", f"  on {machine_line(machine)}", ""]
    asked = (
        f"{row.model.quant}, context {s.context} for each of {s.parallel}, cache {s.kv_type}, micro-batch {s.batch}, "
    )
    lines.append("  " + asked + f"flash attention {'on' if s.flash_attention else 'off'}")
    lines.append(f"  {e.gpu_layers} of {e.of_layers} layers on the GPU" if machine.devices else "  all on the CPU")
    for device, part in zip(machine.devices, e.gpus, strict=True):
        low, high = part.overhead
        lines.append(f"  {device.name}: {gib(part.total)} and {gib(low)} to {gib(high)} of driver memory")
        lines.append(
            f"    weights {gib(part.weights)}, cache {gib(part.kv)}, state {gib(part.recurrent)}, "
            f"compute {gib(part.compute)}" + (f", projector {gib(part.projector)}" if part.projector else "")
        )
    h = e.host
    lines.append(
        f"  RAM: {gib(h.total)} (weights {gib(h.weights)}, cache {gib(h.kv)}, state {gib(h.recurrent)}, "
        f"compute {gib(h.compute)}, output {gib(h.output)})"
    )
    if row.speed and not row.model.embedding_model:
        lines.append(f"  about {speed_words(row)} tokens/s at half of the context")
        if row.speed.first_token_s:
            first = row.speed.first_token_s
            lines.append(f"  first token of a 2,000-token prompt after {first.low:.1f} to {first.high:.1f} s")
    lines += [f"  {reason}" for reason in row.reasons]
    lines.append(f"  weights: {'tensor table' if row.exact_weights else 'rule of the mixture'}; compute: {row.how}")
    if row.speed and not row.model.embedding_model:
        lines.append(f"  speed: fitted on public measurements; {row.rates}")
    return lines


def measured_lines(seen: dict[str, Any] | None) -> list[str]:
    """What `bench` measured of the model on this machine, if it did."""
    if seen is None:
        return []
    got = seen["measured"]
    when = f"measured {seen.get('date')} at context {seen.get('ctx')}: {got.get('decode_tps', 0):.1f} tokens/s"
    where = f"{gib(got.get('size', 0))} resident, of it {gib(got.get('size_vram', 0))} on the GPU"
    return [f"  {when}, {where}"]
