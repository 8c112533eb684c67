"""Vision projectors: sizes against published files, and their place beside the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ownstack.fitting import offload, rows
from ownstack.fitting.catalogue import DATA
from ownstack.fitting.choose import Wishes, choose_on, load_data
from ownstack.fitting.machine import Device, declared, overhead
from ownstack.runner import ollama
from tools import projectors

GIB, MIB = 2**30, 2**20


def machine(vram: int, ram_gib: int = 64) -> Any:
    device = Device("card", "nvidia", vram, vram, 500e9, 100e12, "8.9", overhead=overhead("cuda"))
    return declared((device,), ram_gib * GIB)


@pytest.mark.parametrize("tag", sorted(projectors.PUBLISHED.keys() & projectors.RULE.keys()))
def test_the_rule_is_the_published_file(tag: str) -> None:
    assert projectors.RULE[tag] == pytest.approx(projectors.PUBLISHED[tag], rel=0.0005)


def test_every_vision_model_has_one() -> None:
    vision = [entry for entry in load_data().catalogue if "vision" in entry.capabilities]
    assert len(vision) > 30
    for entry in vision:
        if entry.verified != "header":
            assert (entry.projector_bytes, entry.raw["projector"]) == projectors.size_of(entry.tag)
    assert not any(entry.projector_bytes for entry in load_data().catalogue if entry not in vision)


def test_it_lies_beside_a_whole_model_and_else_in_ram() -> None:
    entry = load_data().catalogue.entries["gemma3:12b"]
    whole = rows.entry_row(entry, "", machine(24 * GIB), rows.Request(context=8192)).estimate
    assert whole.whole
    assert whole.gpus[0].projector == entry.projector_bytes
    assert whole.host.projector == 0
    split = rows.entry_row(entry, "", machine(8 * GIB), rows.Request(context=8192)).estimate
    assert not split.whole
    assert (split.gpus[0].projector, split.host.projector) == (0, entry.projector_bytes)


def test_it_is_kept_free_beside_the_margin() -> None:
    """A card that just holds model and margin, but not the projector: no whole model, and never too much on it."""
    entry = load_data().catalogue.entries["gemma3:12b"]
    for mib in range(9000, 12_000, 100):
        row = rows.entry_row(entry, "", machine(mib * MIB), rows.Request(context=8192))
        part = row.estimate.gpus[0]
        assert part.total + part.overhead[1] + offload.MARGIN_BYTES <= mib * MIB
        assert row.verdict != rows.MISFIT
    chosen = choose_on(load_data(), machine(10 * GIB), Wishes(pins={"chat": "gemma3:12b"}, context=8192)).chat
    assert chosen.gpu_bytes <= 9 * GIB


def test_the_log_of_its_graph_is_no_part_of_the_models_account() -> None:
    lines = (
        'msg="starting llama-server" cmd="llama-server --model sha256-abc"',
        "load_tensors:        CUDA0 model buffer size =  7000.00 MiB",
        "alloc_compute_meta:      CUDA0 compute buffer size =   669.12 MiB",
        "llama_context:      CUDA0 compute buffer size =   120.00 MiB",
    )
    buffers = ollama.buffers_of("\n".join(lines), "sha256-abc")["buffers"]
    assert buffers["CUDA0"] == {"model": 7000 * MIB, "compute": 120 * MIB}


def test_the_tool_writes_what_the_catalogue_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "catalogue.json"
    path.write_bytes((DATA / "catalogue.json").read_bytes())
    before = path.read_bytes()
    monkeypatch.setattr(projectors, "DATA", tmp_path)
    assert projectors.main() == 0
    assert path.read_bytes() == before
