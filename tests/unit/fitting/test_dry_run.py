"""What is predicted for a machine without a GPU, against the whole MiB of Debian testing's `llama-fit-params`.

A new engine that changes the law shows here first. Only headers are written; the engine loads nothing. The whole
catalogue is in tests/e2e/test_fit_catalogue.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from ownstack.fitting import compute
from ownstack.fitting.catalogue import Entry
from ownstack.fitting.choose import load_data
from ownstack.fitting.memory import MIB, Placement, Settings, estimate
from ownstack.fitting.weights import place

from .dry_run import NotHereError, dry_run, obtain, shapes, tables, write_header

# The catalogue holds the published files, whose attention is BF16; the headers here are made by rule.
PUBLISHED = {"gpt-oss:20b", "gpt-oss:120b", "gpt-oss-safeguard:20b"}
# The largest difference of the compute buffer in MiB at micro-batch 512 that is known, and why.
ROW = "the newer engine keeps one more row of the embedding a token"
PER_LAYER = "the newer engine looks the per-layer inputs up once more"
MLA = "the newer engine computes latent attention with many heads in less than the recorded program"
KNOWN: dict[str, tuple[float, str]] = {
    "gemma4:12b": (7.5, ROW), "gemma4:e4b": (22, PER_LAYER), "gemma4:e2b": (18, PER_LAYER),
    "qwen3.5:0.8b": (2, ROW), "qwen3.5:2b": (4, ROW), "qwen3.5:4b": (5.1, ROW), "qwen3.5:9b": (8.1, ROW),
    "deepseek-v3:671b": (257, MLA), "deepseek-r1:671b": (257, MLA), "deepseek-v2:236b": (257, MLA),
}  # fmt: skip
SETTINGS = {
    "c2048": Settings(context=2048, backend="cpu", all_outputs=True),
    "c32768-ub1024": Settings(context=32768, batch=1024, backend="cpu", all_outputs=True),
}


@pytest.fixture(scope="module")
def root() -> Path:
    try:
        return obtain()
    except NotHereError as error:
        pytest.skip(f"no llama-fit-params: {error}")


def differences(root: Path, folder: Path, entry: Entry, s: Settings) -> tuple[float, float, float]:
    """Predicted less the engine's, for weights, context and compute; 0 where the whole MiB is the same."""
    file = write_header(folder / "model.gguf", entry.tag, entry.default_quant)
    batch = str(s.batch)
    real = dry_run(root, file, "-c", str(s.context), "-ub", batch, "-b", batch, "-ctk", s.kv_type, "-ctv", s.kv_type)
    host = estimate(entry.model(), s, Placement(())).host
    weights = host.weights
    if entry.tag in PUBLISHED:
        raw = tables()[entry.tag]
        weights = place(raw["arch"], raw["values"], shapes(entry.tag, entry.default_quant)).total
    mine = (weights / MIB, (host.kv + host.recurrent) / MIB, host.compute / MIB)
    a, b, c = (0.0 if int(got) == true else got - true for got, true in zip(mine, real, strict=True))
    return a, b, c


def families() -> list[str]:
    """One model of every graph: the smallest."""
    found: dict[str, Entry] = {}
    for entry in load_data().catalogue:
        name = compute.program_name(entry.model())
        if name not in found or entry.parameters < found[name].parameters:
            found[name] = entry
    return sorted(entry.tag for entry in found.values())


def check(root: Path, folder: Path, tag: str, s: Settings) -> None:
    entry, _ = load_data().catalogue.find(tag)
    weights, context, work = differences(root, folder, entry, s)
    assert (weights, context) == (0, 0)
    assert abs(work) <= KNOWN.get(tag, (0.0, ""))[0] * s.batch / 512


@pytest.mark.parametrize("settings", sorted(SETTINGS))
@pytest.mark.parametrize("tag", families())
def test_every_family_to_the_whole_mib(root: Path, tmp_path: Path, tag: str, settings: str) -> None:
    check(root, tmp_path, tag, SETTINGS[settings])


def test_the_tables_are_the_catalogues() -> None:
    assert set(tables()) == {entry.tag for entry in load_data().catalogue}
    assert len(set(tables()) - set(KNOWN)) > 160
