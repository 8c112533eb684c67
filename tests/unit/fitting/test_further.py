"""Models that were not used in making the formulas: what is predicted against llama.cpp's own sizes."""

from __future__ import annotations

import json
import statistics
from functools import cache
from typing import Any

import pytest

from ownstack.fitting.catalogue import decode_hparams
from ownstack.fitting.memory import MIB, Placement, Settings, estimate
from ownstack.fitting.model import Model, Weights, make_model

from .golden import FIXTURES


@cache
def further() -> dict[str, Any]:
    data: dict[str, Any] = json.loads((FIXTURES / "further.json").read_text())
    return data["models"]  # type: ignore[no-any-return]


def model_of(name: str) -> Model:
    raw = further()[name]
    hparams = decode_hparams(raw["hparams"])
    count = hparams["block_count"]
    weights = Weights((0,) * count, (0,) * count, 0, raw["gpu_weights"], 0, raw["gpu_weights"])
    return make_model(name, raw["arch"], hparams, weights)


def error_of(model: Model, run: dict[str, Any]) -> float:
    """Relative error of weights, cache, state and compute on the GPU."""
    n = run.get("seq", 1)
    s = Settings(
        context=run["ctx"] // n,
        parallel=n,
        kv_type="q8_0" if run.get("tk") else "f16",
        batch=run["ub"],
        backend="vulkan",
    )
    found = estimate(model, s, Placement((len(model.layers) + 1,))).gpus[0]
    cache_mib = sum(part[0] for part in run.get("kv", []))
    real = found.weights + (cache_mib + run.get("CUDA0_RS", 0) + run["CUDA0_compute"]) * MIB
    return float(abs(found.total / real - 1))


@pytest.mark.parametrize("name", sorted(further()))
def test_within_half_a_percent(name: str) -> None:
    model = model_of(name)
    assert max(error_of(model, run) for run in further()[name]["runs"]) < 0.005


def test_the_whole_set_meets_the_goal() -> None:
    errors = sorted(error_of(model_of(name), run) for name, raw in further().items() for run in raw["runs"])
    assert len(errors) > 500
    assert statistics.median(errors) < 0.0001
    assert errors[int(len(errors) * 0.95)] < 0.001
