"""Sizes against llama.cpp's own: every run of the 74 golden models."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from ownstack.fitting import compute, offload
from ownstack.fitting.choose import load_data
from ownstack.fitting.memory import Settings, cells, estimate, layer_kv, layer_state
from ownstack.fitting.weights import Shape, device_bytes

from .golden import MIB, golden, golden_model, kind_of, offload_truth, run_settings, weighted_model

EVERY = [(name, run) for name, raw in golden().items() for run in raw["runs"]]
IDS = [f"{name}-{json.dumps(run.get('ctx'))}-{run['ub']}-{kind_of(run)}" for name, run in EVERY]
# what the printed golden numbers are rounded to, and the residue that is left, in MiB
ROUNDING = 0.1
RESIDUE = {
    ("nemotron-nano-9b-v2", "server"): 30,
    ("nemotron-nano-9b-v2", "sequences"): 16,
    ("nemotron-nano-9b-v2", "q8"): 5,
    ("nemotron3-nano-30b-a3b", "sequences"): 5,
    ("qwen3.5-0.8b", "sequences"): 0.3,
}
# groups that are only partly recorded: the largest difference that is allowed, in MiB
LOOSE = {"no-fa": 90, "all-outputs": 50, "q8": 1.1}


def allowed(name: str, kind: str) -> float:
    return RESIDUE.get((name, kind), LOOSE.get(kind, ROUNDING))


@pytest.mark.parametrize(("name", "run"), EVERY, ids=IDS)
def test_cache_and_state_are_exact(name: str, run: dict[str, Any]) -> None:
    model, s = golden_model(name), run_settings(run)
    assert sum(layer_kv(model, s)) / MIB == pytest.approx(sum(part[0] for part in run["kv"]), abs=0.02)
    assert sum(layer_state(model, s)) / MIB == pytest.approx(run.get("CUDA0_RS", 0), abs=0.02)


@pytest.mark.parametrize(("name", "run"), EVERY, ids=IDS)
def test_compute_buffers_from_the_header_alone(name: str, run: dict[str, Any]) -> None:
    """The replay knows nothing of this model but its header."""
    model, s = golden_model(name), run_settings(run)
    gpu, host, how = compute.whole(model, s, cells(model, s))
    assert how == "replay"
    limit = allowed(name, kind_of(run))
    assert gpu / MIB == pytest.approx(run["CUDA0_compute"], abs=limit)
    assert host / MIB == pytest.approx(run["CUDA_Host_compute"], abs=min(limit, 50))


@pytest.mark.parametrize(("name", "run"), EVERY, ids=IDS)
def test_stored_constants(name: str, run: dict[str, Any]) -> None:
    """The catalogue's constants and the mask law."""
    if kind_of(run) not in {"server", "sequences"}:
        return
    raw = golden()[name]
    model = replace(
        golden_model(name),
        gpu_base=round(raw["gpu_base_mib_ub512"] * MIB),
        host_base=round(raw["host_base_mib_ub512"] * MIB),
    )
    s = run_settings(run)
    gpu, _, how = compute.whole(model, s, cells(model, s))
    # what fit.md states of the law: nemotron's chunked stage and two small ones are off
    limit = {"nemotron-nano-9b-v2": 70, "qwen3.5-0.8b": 1.7, "lfm2-1.2b": 0.3}.get(name, ROUNDING)
    assert gpu / MIB == pytest.approx(run["CUDA0_compute"], abs=limit if how == "stored constant" else 30)


# Where the golden 4-bit sizes, typed with one rule for all, are not what the engine's own rule gives: by how much of
# the golden size. BLOCKS: they take Q8_0 for rows that are not whole blocks of 256. RULE: the engine gives some of
# the family's tensors another type (experts, fused or per-layer tensors, state-space layers).
BLOCKS = {
    "nemotron3-nano-30b-a3b": -0.267, "nemotron-nano-9b-v2": -0.258, "smollm2-135m": -0.220, "qwen2.5-0.5b": -0.194,
    "gemma3-1b": -0.176, "gemma3-270m": -0.088, "glm-4.5-air": -0.087, "deepseek-v2-lite-16b": -0.086,
    "gemma4-26b-a4b": -0.085, "qwen2.5-72b": -0.070, "glm4-9b": -0.064,
}  # fmt: skip
RULE = {
    "mixtral-8x7b": 0.007, "qwen3.5-9b": 0.017, "qwen3.6-27b": 0.017, "gemma4-e4b": 0.021, "phi4-14b": 0.023,
    "phi4-mini": 0.027, "qwen3.5-0.8b": 0.030, "gemma3n-e4b": 0.043, "gemma3n-e2b": 0.061,
}  # fmt: skip


@pytest.mark.parametrize("tag", [entry.tag for entry in load_data().catalogue if "golden" in entry.raw])
def test_catalogue_entries_are_the_golden_ones(tag: str) -> None:
    """Header values, compute constants and 4-bit size of every entry that a golden model stands behind."""
    entry = load_data().catalogue.entries[tag]
    name = entry.raw["golden"]
    raw = golden()[name]
    assert entry.raw["compute"]["gpu_base"] == pytest.approx(raw["gpu_base_mib_ub512"] * MIB, abs=1)
    stored, model = entry.model().hparams, golden_model(name)
    # a tuning of a model may be trained for another context; all else is the same
    same = {key for key in raw["hparams"] if key in stored} - {"context_length"}
    assert {"block_count", "embedding_length", "vocab_size", "attention.head_count_kv"} <= same
    assert {key: stored[key] for key in same} == {key: model.hparams[key] for key in same}
    if "Q4_K_M" in entry.quants:
        size = entry.raw["quants"]["Q4_K_M"]["file"] / MIB
        known = BLOCKS.get(name, 0) + RULE.get(name, 0)
        assert size / raw["weights_mib_q4km"] - 1 == pytest.approx(known, abs=0.003)


def test_every_golden_model_is_in_the_catalogue() -> None:
    assert {entry.raw.get("golden") for entry in load_data().catalogue} >= set(golden())


def closed_mib(name: str) -> tuple[float, float]:
    """The closed form for an unknown architecture, and the engine's own, at micro-batch 512."""
    model, s = golden_model(name), Settings(context=8192, backend="vulkan")
    w = compute.widths(model, s, cells(model, s), 512)
    return 4 * 512 * compute.closed_form(model, w) / MIB, golden()[name]["gpu_base_mib_ub512"]


def test_closed_forms_are_as_near_as_stated() -> None:
    """What stands in for a recorded program where an architecture has none."""
    near: list[str] = []
    for name in golden():
        model = golden_model(name)
        found, real = closed_mib(name)
        if not model.experts and abs(found - real) < 1:
            near.append(name)
        if model.experts:
            assert -114 <= found - real <= 46, name
            assert -0.30 <= found / real - 1 <= 0.65, name
    assert len(near) >= 47, "43 dense models, phi3, parallel residuals, and dense hybrids"
    for name in ("qwen3-30b-a3b", "qwen3-235b-a22b", "granite4-h-tiny", "phi4-14b", "command-r7b", "qwen3.6-27b"):
        found, real = closed_mib(name)
        assert found == pytest.approx(real, abs=0.1), name


@pytest.mark.parametrize("case", offload_truth()["cases"], ids=lambda c: f"{c['model']}-{c['ctx']}-{c['free_mib']}")
def test_offload_is_the_engines_own_decision(case: dict[str, Any]) -> None:
    """Layers on the GPU, and expert layers on the host, as llama.cpp's --fit decides."""
    model = weighted_model(case["model"])
    s = Settings(context=case["ctx"], batch=512)
    e = offload.fit(model, s, (case["free_mib"] * MIB,))
    assert e.gpu_layers == (case["ngl"] if case["ngl"] >= 0 else e.of_layers)
    assert e.expert_layers_on_host == case["expert_layers"] or case["partial"]


def test_f16_copies_of_a_quantised_cache_on_cuda() -> None:
    """Llama-3.2-1B at 131072 with a q8_0 cache needs 400 MiB of compute on CUDA, 184 without the copy."""
    model = golden_model("llama3.2-1b")
    s = Settings(context=131_072, kv_type="q8_0", backend="cuda")
    gpu, _, _ = compute.whole(model, s, cells(model, s))
    assert gpu / MIB == pytest.approx(400, abs=0.5)
    plain = replace(s, backend="vulkan")
    gpu, _, _ = compute.whole(model, plain, cells(model, plain))
    assert gpu / MIB == pytest.approx(184, abs=0.5)


def test_two_cards_by_layers() -> None:
    """Qwen2.5-Coder 32B at 32768 on two cards: weights, cache and compute by card, in MiB, as llama.cpp splits it.

    The second card's compute buffer holds 155 MiB more than the law says.
    """
    model, s = golden_model("qwen2.5-32b"), Settings(context=32_768, backend="vulkan")
    placement = offload.spread(model, s, (1, 1))
    assert placement.split == (33, 32)
    parts = estimate(model, s, placement).gpus
    assert [part.kv / MIB for part in parts] == [4224, 3968]
    assert parts[0].compute / MIB == pytest.approx(360, abs=0.5)
    assert 515 - 156 <= parts[1].compute / MIB <= 515


def test_padding_of_quantised_rows() -> None:
    assert device_bytes(Shape("x.weight", (512, 2), "Q8_0")) == 512 // 32 * 34 * 2 + 128 - 512 // 32 * 34 * 2 % 128
    assert device_bytes(Shape("x.weight", (576, 4), "Q8_0")) > 576 // 32 * 34 * 4
