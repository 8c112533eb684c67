"""`ownstack fit`: which models fit a machine, how much they take, how fast they run."""

from __future__ import annotations

import gc
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigError, OwnstackError
from .output import envelope, fail

if TYPE_CHECKING:
    from ..fitting.choose import FitData
    from ..fitting.machine import Machine
    from ..fitting.rows import Request, Row

USES = ("chat", "code", "rag", "reasoning", "vision")
SORTS = ("rank", "speed", "memory", "name")


@dataclass(frozen=True)
class Asked:
    """The command line's words on the machine."""

    host: str
    gpu: str
    vram: str
    ram: str
    source: Path | None

    @property
    def declared(self) -> bool:
        return bool(self.gpu or self.vram)


def gpu_words(text: str, option: str = "--gpu") -> tuple[int, str]:
    """`2x RTX 3090` is two of them."""
    match = re.fullmatch(r"\s*(\d{1,2})\s*[x\u00d7]\s*(.+)", text)
    count, name = (int(match[1]), match[2]) if match else (1, text.strip())
    if not 1 <= count <= 16:
        raise ConfigError(f"{option}: {count} cards", hint="1 to 16 cards of one kind")
    return count, name


def declared_machine(asked: Asked, data: FitData) -> Machine:
    """The machine that the options describe."""
    from ..fitting.machine import BACKENDS, UNKNOWN_BANDWIDTH, Device, declared, overhead
    from ..fitting.sizes import parse_size

    ram = parse_size(asked.ram, "--ram") if asked.ram else 32 * 2**30
    if not asked.gpu:
        size = parse_size(asked.vram, "--vram")
        if not size:
            return declared((), ram)
        device = Device(
            "a card", "nvidia", size, size, UNKNOWN_BANDWIDTH, overhead=overhead("cuda"), bandwidth_source="assumed"
        )
        return declared((device,), ram)
    count, name = gpu_words(asked.gpu)
    card = data.cards.find(name)
    size = parse_size(asked.vram, "--vram") if asked.vram else card.memory
    if not size:
        return declared((), ram)
    device = Device(
        name=card.name,
        vendor=card.vendor,
        total=size,
        free=size,
        bandwidth=card.bandwidth,
        flops=card.flops,
        compute_capability=card.compute_capability,
        unified=card.kind == "unified",
        overhead=overhead(BACKENDS[card.vendor]),
        bandwidth_source="table",
    )
    if card.kind == "unified":
        ram = parse_size(asked.ram, "--ram") if asked.ram else max(size, card.memory)
    return declared((device,) * count, ram)


def machine_for(asked: Asked, data: FitData) -> Machine:
    """The machine that is meant: declared, saved, at `--host`, or this one. Learned figures are applied."""
    if asked.declared:
        return declared_machine(asked, data)
    from ..fitting.learned import apply_learned
    from ..fitting.machine import machine_of
    from .measure import report_of

    machine = apply_learned(machine_of(report_of(asked.host, asked.source), data.cards))
    if not asked.ram:
        return machine
    from dataclasses import replace

    from ..fitting.sizes import parse_size

    ram = parse_size(asked.ram, "--ram")
    return replace(machine, ram_total=ram, ram_available=ram)


def one_row(data: FitData, machine: Machine, want: Request, model: str, gguf: Path | None, quant: str) -> Row:
    """The row of `--model` or `--gguf`."""
    from ..fitting import rows

    if gguf is not None:
        from ..fitting.gguf import read_header
        from ..fitting.weights import model_of_header

        header = read_header(gguf)
        found = model_of_header(header, gguf.name)
        row = rows.make_row(found, machine, want, tag=model or gguf.name, file_bytes=header.file_bytes)
        return finished(rows.with_limit(row, row.settings.context), machine, want)
    if not quant:
        from ..fitting.store import find

        # a file that is here says more of itself than the catalogue does
        if (stored := find(model)) is not None:
            return one_row(data, machine, want, model, stored, quant)
    entry, of_tag = data.catalogue.find(model)
    if quant and quant not in entry.quants:
        raise ConfigError(f"{entry.tag} has no {quant} in the catalogue", hint="known: " + ", ".join(entry.quants))
    return finished(rows.entry_row(entry, quant or of_tag, machine, want, beyond=True), machine, want)


def finished(row: Row, machine: Machine, want: Request) -> Row:
    """One model's row with all that is said of it alone."""
    from ..fitting import rows

    if want.context is None and not row.model.embedding_model:
        row = rows.with_ollamas_own(row, machine)
    return rows.with_change(row, machine, want)


def all_rows(data: FitData, machine: Machine, want: Request, use: str, quant: str, sort: str, every: bool) -> list[Row]:
    """The ranked candidates: those that fit first, best first."""
    from ..fitting import rows

    ranks = data.ranks[use]
    found = [
        rows.entry_row(entry, quant, machine, want, ranks.get(entry.tag, 0.0))
        for entry in data.catalogue
        if entry.tag in ranks or (every and not entry.embedding)
    ]
    order = {rows.FITS: 0, rows.PARTIAL: 1, rows.MISFIT: 2}
    keys: dict[str, Any] = {
        "rank": lambda r: (order[r.verdict], -r.quality, r.used),
        "speed": lambda r: (order[r.verdict], -r.speed.decode.mid if r.speed else 0.0),
        "memory": lambda r: r.used,
        "name": lambda r: r.tag,
    }
    found.sort(key=keys[sort])
    return [rows.with_change(row, machine, want) for row in found]


def best_first(found: list[Row], best: str) -> list[Row]:
    """The model that the first sentence names leads the ranking, also where it lies partly on the CPU."""
    return sorted(found, key=lambda row: row.tag != best)


@click.command()
@click.option("--host", default="", help="Another machine, as user@server.")
@click.option("--gpu", default="", metavar="NAME", help='A card, e.g. "RTX 4090" or "2x RTX 3090".')
@click.option("--vram", default="", metavar="SIZE", help="GPU memory: 24GiB, 24564MiB, 0 (no GPU), unlimited.")
@click.option("--ram", default="", metavar="SIZE", help="RAM, e.g. 64GiB.")
@click.option("--from", "source", type=click.Path(path_type=Path), help="A saved report (`detect --raw` or `--json`).")
@click.option("--model", default="", metavar="TAG", help="One model: in an Ollama store here, or of the catalogue.")
@click.option("--gguf", type=click.Path(path_type=Path), help="One GGUF file; only its header is read.")
@click.option("--quant", default="", metavar="Q", help="Quantisation, e.g. Q8_0.")
@click.option("--ctx", "context", type=click.IntRange(1, 2**24), help="Context of one request, in tokens.")
@click.option("--kv-type", type=click.Choice(["f16", "q8_0", "q4_0"]), default="f16", help="Type of the cache.")
@click.option("--parallel", type=click.IntRange(1, 256), default=1, help="Requests at a time, each with its cache.")
@click.option("--batch", type=click.IntRange(1, 2**16), help="Micro-batch. Default: what Ollama picks.")
@click.option("--flash-attn", type=click.Choice(["on", "off"]), default="on", help="Flash attention.")
@click.option("--gpu-layers", default="fit", metavar="N|all|fit", help="Layers on the GPU.")
@click.option("--for", "use", type=click.Choice(USES), default="chat", help="What the model is for.")
@click.option("--all", "every", is_flag=True, help="Every model, also those that do not fit.")
@click.option("--sort", type=click.Choice(SORTS), default="rank", help="Order of the table.")
@click.option("--needs", default="", metavar="MODEL", help="Which cards run MODEL, at which context.")
@click.option("--upgrade", default="", metavar="GPU", help="What another card would change.")
@click.option("--json", "as_json", is_flag=True, help="Data on stdout.")
@click.pass_context
def fit(ctx: click.Context, /, as_json: bool, **options: Any) -> None:
    """Say which models fit, how much they take, how fast they run."""
    gc.disable()  # a short process that makes many small objects and frees none
    try:
        result = run(**options)
    except OwnstackError as error:
        ctx.exit(fail("fit", as_json, error, error.exit_code))
    finally:
        gc.enable()
    if as_json:
        # one line: indenting takes Python's slow encoder, and the list is long
        click.echo(json.dumps(envelope("fit", result.data), ensure_ascii=False))
    else:
        for line in result.lines():
            click.echo(line)


@dataclass(frozen=True)
class Result:
    """Data for programs, and how to draw it for people."""

    data: Any
    draw: Any

    def lines(self) -> list[str]:
        lines: list[str] = self.draw()
        return lines


def layers_option(text: str) -> int | str:
    if text in {"all", "fit"}:
        return text
    if text.isdigit() and int(text) < 4096:
        return int(text)
    raise ConfigError(f"--gpu-layers: {text!r}", hint="a number, `all` or `fit`")


def run(
    *,
    host: str,
    gpu: str,
    vram: str,
    ram: str,
    source: Path | None,
    model: str,
    gguf: Path | None,
    quant: str,
    context: int | None,
    kv_type: str,
    parallel: int,
    batch: int | None,
    flash_attn: str,
    gpu_layers: str,
    use: str,
    every: bool,
    sort: str,
    needs: str,
    upgrade: str,
) -> Result:
    """The command without its shell: pure but for reading the machine and files."""
    from ..fitting.choose import load_data
    from ..fitting.rows import Request, as_json

    if model and gguf:
        raise ConfigError("--model and --gguf exclude each other", hint="give one of them")
    if kv_type != "f16" and flash_attn == "off":
        raise ConfigError("a quantised cache needs flash attention", hint="leave out --flash-attn off, or use f16")
    data = load_data()
    want = Request(context, kv_type, parallel, batch, flash_attn == "on", layers_option(gpu_layers))
    quant = quant.upper()
    if needs:
        from .fit_more import needs_result

        return Result(*needs_result(data, needs, quant, want))
    machine = machine_for(Asked(host, gpu, vram, ram, source), data)
    from . import fit_table

    if upgrade:
        from .fit_more import upgrade_result

        asked = Asked("", upgrade, "", ram or f"{machine.ram_total}B", None)
        return Result(*upgrade_result(data, machine, declared_machine(asked, data), use, want))
    if model or gguf:
        row = one_row(data, machine, want, model, gguf, quant)
        from ..fitting.learned import measured

        seen = None if machine.declared else measured(machine, model)
        body = as_json(row)
        if seen:
            body["provenance"]["measured"] = {**seen["measured"], "ctx": seen.get("ctx"), "date": seen.get("date")}
        return Result(body, lambda: [*fit_table.one(row, machine), *fit_table.measured_lines(seen)])
    found = all_rows(data, machine, want, use, quant, sort, every)
    best = fit_table.best_sentence(data, machine, use, want)
    if best[1] is not None and sort == "rank":
        found = best_first(found, best[1]["model"])
    listed = {"best": best[1], "machine": fit_table.machine_json(machine), "candidates": [as_json(r) for r in found]}
    return Result(listed, lambda: fit_table.table(found, machine, best[0], best[2](), every))
