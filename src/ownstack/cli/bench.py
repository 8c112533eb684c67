"""`ownstack bench`: measure a model on this box through Ollama's own counters, and keep the result."""

from __future__ import annotations

import datetime
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from ..errors import OwnstackError, RunError
from .output import emit_json, fail, say

LARGEST_OVERHEAD = 4 * 2**30  # more than this between two readings is another program's doing
PROMPT = "Write a short story about a lighthouse keeper and the sea. "


@dataclass(frozen=True)
class Measured:
    """What Ollama counted. Rates in tokens/s, sizes in bytes."""

    model: str
    context: int
    prompt_tokens: int
    prefill_tps: float
    tokens: int
    decode_tps: float
    size: int
    size_vram: int
    # what the only GPU lost of its free memory when the model was loaded; None where that cannot be said
    taken: int | None = None


def ask(url: str, path: str, body: dict[str, Any] | None = None, timeout: float = 900) -> Any:
    """One request to Ollama's API. Raises RunError with what it said."""
    request = urllib.request.Request(  # noqa: S310 -- the user's own engine, http by design
        url.rstrip("/") + path,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:  # noqa: S310
            return json.load(answer)
    except urllib.error.HTTPError as error:
        detail = error.read(500).decode("utf-8", "replace")
        raise RunError(f"{url}{path}: {error.code} {detail}", hint="`ownstack models` lists what is there") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{url} does not answer: {error}", hint="is the box up? `ownstack status` says so") from error


def no_card() -> int | None:
    """Free memory of a GPU that there is not."""
    return None


def measure(url: str, model: str, context: int, tokens: int, free: Callable[[], int | None] = no_card) -> Measured:
    """Load the model, then time one answer of `tokens` tokens after a prompt of about a thousand.

    `free` reads the free bytes of the only GPU, before the model is loaded and after.
    """
    ask(url, "/api/generate", {"model": model, "keep_alive": 0})  # out of memory first: the difference is its own
    before = free()
    options = {"num_ctx": context, "num_predict": tokens, "temperature": 0.0, "seed": 1}
    body = {"model": model, "prompt": PROMPT * 80, "stream": False, "options": options, "raw": True}
    ask(url, "/api/generate", {**body, "prompt": "Hello.", "options": {**options, "num_predict": 1}})
    answer = ask(url, "/api/generate", body)
    if not answer.get("eval_duration") or not answer.get("eval_count"):
        raise RunError(f"{model} gave no tokens", hint="choose a chat model with `--model`")
    after = free()
    names = {model, f"{model}:latest"}
    held = [m for m in ask(url, "/api/ps").get("models", ()) if names & {m.get("name"), m.get("model")}]
    loaded: dict[str, Any] = held[0] if held else {}
    prompt_seconds = answer.get("prompt_eval_duration", 0) / 1e9
    return Measured(
        model=model,
        context=context,
        prompt_tokens=answer.get("prompt_eval_count", 0),
        prefill_tps=answer.get("prompt_eval_count", 0) / prompt_seconds if prompt_seconds else 0.0,
        tokens=answer["eval_count"],
        decode_tps=answer["eval_count"] / (answer["eval_duration"] / 1e9),
        size=loaded.get("size", 0),
        size_vram=loaded.get("size_vram", 0),
        taken=None if before is None or after is None else before - after,
    )


def card_free() -> int | None:
    """Free bytes of this machine's only GPU now; None without one, or with several."""
    from ..fitting.choose import load_data
    from ..fitting.machine import machine_of
    from .measure import report_of

    devices = machine_of(report_of(), load_data().cards).devices
    return devices[0].free if len(devices) == 1 else None


def compare(measured: Measured) -> dict[str, Any]:
    """Measured beside predicted, and the ratio that later predictions are multiplied by."""
    from ..fitting.choose import load_data
    from ..fitting.learned import key_of
    from ..fitting.machine import machine_of
    from ..fitting.rows import Request, entry_row
    from ..fitting.speed import decode
    from .measure import report_of

    data = load_data()
    machine = machine_of(report_of(), data.cards)
    found: dict[str, Any] = {
        "hardware": key_of(machine),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "model": measured.model,
        "ctx": measured.context,
        "measured": {"decode_tps": measured.decode_tps, "prefill_tps": measured.prefill_tps,
                     "size": measured.size, "size_vram": measured.size_vram},
    }  # fmt: skip
    whole = 0 < measured.size == measured.size_vram
    if measured.taken is not None and whole and 0 <= measured.taken - measured.size_vram < LARGEST_OVERHEAD:
        found["overhead"] = measured.taken - measured.size_vram  # the engine counts its buffers, the driver all
    try:
        entry, quant = data.catalogue.find(measured.model)
    except OwnstackError:
        return found
    row = entry_row(entry, quant, machine, Request(context=measured.context))
    past = measured.prompt_tokens + measured.tokens // 2
    band = decode(row.model, row.settings, row.estimate, machine.engine, past)
    found["predicted"] = {
        "decode_tps": {"low": band.low, "mid": band.mid, "high": band.high},
        "size_vram": row.estimate.gpu_bytes,
        "size": row.estimate.gpu_bytes if row.estimate.whole else row.estimate.total,
    }
    found["ratio"] = measured.decode_tps / band.mid
    return found


@click.command()
@click.option("--url", default="http://127.0.0.1:11434", help="The engine's address.")
@click.option("--model", required=True, metavar="TAG", help="A model that is on the box.")
@click.option("--ctx", "context", type=click.IntRange(512, 2**20), default=4096, help="Context, in tokens.")
@click.option("--tokens", type=click.IntRange(16, 4096), default=128, help="Tokens to generate.")
@click.option("--json", "as_json", is_flag=True, help="Data on stdout.")
@click.pass_context
def bench(ctx: click.Context, /, url: str, model: str, context: int, tokens: int, as_json: bool) -> None:
    """Measure the box's models and keep the result."""
    from ..fitting.learned import store

    try:
        found = compare(measure(url, model, context, tokens, card_free))
        store(found)
    except OwnstackError as error:
        ctx.exit(fail("bench", as_json, error, error.exit_code))
    if as_json:
        emit_json("bench", found)
        return
    got = found["measured"]
    say(f"{model}: {got['decode_tps']:.1f} tokens/s, prompt {got['prefill_tps']:.0f} tokens/s")
    if "predicted" in found:
        band = found["predicted"]["decode_tps"]
        say(f"predicted {band['mid']:.1f} ({band['low']:.1f} to {band['high']:.1f}); later predictions use the ratio")
    if "overhead" in found:
        say(f"the driver takes {found['overhead'] / 2**20:.0f} MiB beside the model; later predictions count it")
    say(f"resident {got['size'] / 2**20:.0f} MiB, of it {got['size_vram'] / 2**20:.0f} MiB on the GPU")
