"""The role models: specifications of steps, consent, and what `verify` says in every state of a box."""

from __future__ import annotations

import time
from typing import Any

import pytest
from pydantic import ValidationError

from ownstack.data import load_artifacts
from ownstack.plan import Plan
from ownstack.runner import ollama_api
from ownstack.runner.core import StepError
from ownstack.verify.check import Outcome
from roles.models import accounts, create_spec, ensure_spec, in_background, pull_spec
from roles.models.checks import checks, split
from roles.models.settings import Settings
from tests.unit.engine_plans import BOOTSTRAP, CHAT, EMBEDDING, WEIGHTS, plan

MIB = 2**20


class FakeContext:
    """Answers of runner steps, as they were seen on real boxes."""

    def __init__(self, plan: Plan, **answers: Any) -> None:
        self.plan, self.answers, self.host = plan, answers, None

    def step(self, name: str, **spec: Any) -> dict[str, Any]:
        answer = self.answers[name.split(".")[1]]
        return answer(spec) if callable(answer) else answer  # type: ignore[no-any-return]


def outcome(id: str, made: Plan, **answers: Any) -> Outcome:
    (check,) = [check for check in checks(made) if check.id == id]
    return check.run(FakeContext(made, **answers))


def there(*missing: str, wrong: dict[str, str] | None = None) -> dict[str, Any]:
    tags = [m.tag for m in (BOOTSTRAP, CHAT, EMBEDDING)]
    return {"present": [t for t in tags if t not in missing], "missing": list(missing), "wrong": wrong or {}}


def lying(buffers: dict[str, dict[str, int]], size: int, vram: int, layers: list[int] | None) -> dict[str, Any]:
    return {"size": size, "size_vram": vram, "context_length": 32768, "buffers": buffers, "offloaded": layers}


WHOLE = lying(
    {"CUDA0": {"model": 9000 * MIB, "kv": 5000 * MIB, "compute": 336 * MIB}, "CPU_Mapped": {"model": 400 * MIB}},
    14336 * MIB, 14336 * MIB, [41, 41],
)  # fmt: skip
PARTIAL = lying(
    {"CUDA0": {"model": 6000 * MIB, "kv": 3000 * MIB}, "CPU": {"model": 3000 * MIB, "kv": 2000 * MIB}},
    14000 * MIB, 9000 * MIB, [27, 41],
)  # fmt: skip
# seen with LLAMA_ARG_FIT_TARGET: no layer is on the device, only room to compute in
ROOM_ONLY = lying(
    {"CPU_Mapped": {"model": 92 * MIB}, "CPU": {"kv": 90 * MIB}, "Vulkan0": {"compute": 20 * MIB}},
    211 * MIB, 20 * MIB, [0, 31],
)  # fmt: skip
FALLEN_BACK = lying({"CPU": {"model": 9000 * MIB, "kv": 5000 * MIB, "compute": 300 * MIB}}, 14300 * MIB, 0, None)


def test_the_pull_knows_all_it_needs() -> None:
    made = plan(ollama={"registry": "10.0.0.1:5000", "registry_insecure": True, "pull_proxy": "http://proxy:3128"})
    spec = pull_spec(made, CHAT, [{"step": "open_webui.configure", "spec": {}}])
    assert (spec["model"], spec["tag"], spec["num_ctx"], spec["digest"]) == (
        "qwen3:14b",
        "qwen3:14b",
        32768,
        CHAT.digest,
    )
    assert (spec["registry"], spec["insecure"]) == ("10.0.0.1:5000", True)
    assert spec["environment"] == {"HTTPS_PROXY": "http://proxy:3128"}
    assert spec["unit"] == "ownstack-pull-qwen3-14b"
    assert spec["account"] == "ownstack-pull" == accounts(made)[0].name
    assert spec["then"] == [{"step": "open_webui.configure", "spec": {}}]
    assert spec["check"]
    assert not pull_spec(made, EMBEDDING)["check"]


def test_one_user_pulls_for_itself() -> None:
    made = plan(manager="systemd-user", system=False)
    assert accounts(made) == []
    assert pull_spec(made, CHAT)["account"] == ""


def test_the_bootstrap_model_lets_the_chat_model_come_later() -> None:
    assert in_background(plan(), CHAT)
    assert not in_background(plan(), EMBEDDING)
    assert not in_background(plan(models=(CHAT, EMBEDDING)), CHAT)


def test_a_model_from_a_file_is_known_by_its_weights() -> None:
    assert create_spec(plan(), BOOTSTRAP, "/w/x.gguf") == {
        "url": "http://127.0.0.1:11434", "tag": "smollm2:135m", "file": "/w/x.gguf", "sha256": WEIGHTS, "num_ctx": 8192,
        "longest": 512,
    }  # fmt: skip
    wanted = {model["tag"]: model for model in ensure_spec(plan())["models"]}
    assert wanted["smollm2:135m"]["sha256"] == WEIGHTS
    assert wanted["qwen3:14b"]["digest"] == CHAT.digest


def test_an_engine_that_is_not_ours_is_left_as_it_is() -> None:
    made = plan(engine_existing=True, engine_url="http://10.0.0.7:11434")
    for spec in (pull_spec(made, CHAT), create_spec(made, BOOTSTRAP, "/x")):
        assert (spec["may_add"], spec["may_replace"], spec["num_ctx"]) == (False, False, 0)
    assert pull_spec(made, CHAT)["via_api"]
    assert "program" not in pull_spec(made, CHAT)
    assert accounts(made) == []
    consented = plan(engine_existing=True, model_settings={"may_add_models": True})
    assert pull_spec(consented, CHAT)["may_add"]
    assert {"models-gpu-whole", "models-memory"}.isdisjoint(check.id for check in checks(made))


@pytest.mark.parametrize(("version", "status"), [("0.34.2", "ok"), ("0.17.0", "amber"), ("0.5.11", "amber")])
def test_an_old_engine_of_somebody_elses_is_told(version: str, status: str) -> None:
    made = plan(engine_existing=True, engine_url="http://10.0.0.7:11434")
    found = outcome("models-engine", made, inspect={"version": version, "models": {}})
    assert (found.status, version in found.measured) == (status, True)


@pytest.mark.parametrize(("length", "status"), [(32768, "ok"), (65536, "ok"), (4096, "amber"), (0, "ok")])
def test_an_engine_that_would_cut_conversations_is_told(length: int, status: str) -> None:
    made = plan(engine_existing=True, engine_url="http://10.0.0.7:11434")
    rows = {"models": {"qwen3:14b": {"context_length": length}}}
    assert outcome("models-context", made, ensure=there(), chat_check={}, ps=rows).status == status


def test_consent_is_asked_for_what_is_missing_and_for_what_would_be_replaced() -> None:
    with pytest.raises(StepError) as caught:
        ollama_api.permitted({"tag": "x:1", "may_add": False}, None)
    assert caught.value.code == "no-consent"
    with pytest.raises(StepError) as caught:
        ollama_api.permitted({"tag": "x:1", "may_add": True, "may_replace": False}, {"digest": "d"})
    assert caught.value.code == "model-foreign"
    ollama_api.permitted({"tag": "x:1"}, None)
    ollama_api.permitted({"tag": "x:1"}, {"digest": "d"})


@pytest.mark.parametrize("value", ["; rm", "$(x)", "a b", "x\n", "{{x}}", "a/b/c/d", "'", '"', "../x:1", "x:y:z"])
@pytest.mark.parametrize("key", ["chat", "embedding", "code", "vision"])
def test_a_models_name_is_a_name(key: str, value: str) -> None:
    with pytest.raises(ValidationError):
        Settings(**{key: value})


def test_the_artefacts_of_models_carry_what_they_are_served_as() -> None:
    for artifact in load_artifacts("models"):
        assert artifact["optional"]
        assert artifact["model"]["use"] in ("bootstrap", "embedding")
        for variant in artifact["variant"]:
            assert len(variant.get("sha256") or variant["result"]) == 64


def test_all_there_is_green() -> None:
    assert outcome("models-planned", plan(), ensure=there()).status == "ok"
    assert outcome("models-bootstrap-only", plan(), ensure=there()).status == "ok"


def test_missing_or_wrong_models_fail_by_name() -> None:
    failed = outcome("models-planned", plan(), ensure=there("all-minilm:22m", wrong={"smollm2:135m": "weights x"}))
    assert failed.status == "failed"
    assert "all-minilm:22m is missing" in failed.measured
    assert "smollm2:135m: weights x" in failed.measured


def pulling(**values: Any) -> dict[str, Any]:
    state = {
        "model": "qwen3:14b", "status": "pulling", "done": 3 * 10**9, "total": 9 * 10**9, "rate": 5e7, "eta_s": 120,
        "error": None, "updated": int(time.time()),
    }  # fmt: skip
    return {"pulls": [{**state, **values}]}


def test_only_the_bootstrap_serving_is_amber_with_rate_and_time_left() -> None:
    found = outcome("models-bootstrap-only", plan(), ensure=there("qwen3:14b"), pulls=pulling())
    assert found.status == "amber"
    for words in ("3.00 of 9.00 GB", "50.0 MB/s", "2 min 0 s left"):
        assert words in found.measured
    # the planned list itself is no failure meanwhile
    assert outcome("models-planned", plan(), ensure=there("qwen3:14b")).status == "ok"


@pytest.mark.parametrize("status", ["failed", "interrupted", "stopped"])
def test_a_pull_that_ended_is_amber_with_its_reason(status: str) -> None:
    error = (
        {"code": "model-unknown", "message": "no such tag", "hint": "correct the name"} if status == "failed" else None
    )
    found = outcome(
        "models-bootstrap-only", plan(), ensure=there("qwen3:14b"), pulls=pulling(status=status, error=error)
    )
    assert found.status == "amber"
    assert ("no such tag" if error else status) in found.measured
    assert found.hint == ("correct the name" if error else "`ownstack up` goes on where it stopped")


def test_a_pull_that_never_began_is_amber() -> None:
    found = outcome("models-bootstrap-only", plan(), ensure=there("qwen3:14b"), pulls={"pulls": []})
    assert (found.status, "has not begun" in found.measured) == ("amber", True)


def test_without_a_registry_the_plan_is_kept_and_the_better_model_named() -> None:
    small = BOOTSTRAP.model_copy(update={"use": "chat"})
    found = outcome("models-bootstrap-only", plan(models=(small, EMBEDDING), deferred_model=CHAT), ensure=there())
    assert found.status == "ok"
    assert "qwen3:14b" in found.measured


@pytest.mark.parametrize(
    ("held", "used", "whole"),
    [
        (WHOLE, "ok", "ok"),
        (PARTIAL, "ok", "failed"),
        (FALLEN_BACK, "failed", "failed"),
        (ROOM_ONLY, "failed", "failed"),
    ],
)
def test_gpu_checks_tell_whole_partial_and_fallen_back_apart(held: dict[str, Any], used: str, whole: str) -> None:
    made = plan(engine="cuda")
    assert outcome("models-gpu-used", made, ensure=there(), measure=held).status == used
    assert outcome("models-gpu-whole", made, ensure=there(), measure=held).status == whole


@pytest.mark.parametrize(
    "held",
    [
        {**WHOLE, "size_vram": 9000 * MIB},
        {**WHOLE, "size": 0, "size_vram": 0},
        {**WHOLE, "offloaded": [40, 41]},
        {**WHOLE, "buffers": {**WHOLE["buffers"], "CPU": {"kv": 100 * MIB}}},
    ],
)
def test_each_witness_alone_can_tell_that_it_is_not_whole(held: dict[str, Any]) -> None:
    assert outcome("models-gpu-whole", plan(engine="cuda"), ensure=there(), measure=held).status == "failed"


def test_a_planned_partial_offload_is_as_planned() -> None:
    part = CHAT.model_copy(update={"gpu_layers": 27})
    assert (
        outcome("models-gpu-whole", plan(models=(part,), engine="cuda"), ensure=there(), measure=PARTIAL).status == "ok"
    )
    more = CHAT.model_copy(update={"gpu_layers": 30})
    found = outcome("models-gpu-whole", plan(models=(more,), engine="cuda"), ensure=there(), measure=PARTIAL)
    assert found.status == "failed"


def test_without_the_engines_own_account_the_list_alone_is_not_believed() -> None:
    found = outcome("models-gpu-whole", plan(engine="cuda"), ensure=there(), measure={**WHOLE, "buffers": {}})
    assert found.status == "failed"


@pytest.mark.parametrize(("predicted", "status"), [(14336, "ok"), (13700, "ok"), (13600, "failed"), (15200, "failed")])
def test_predicted_against_measured_memory_as_numbers(predicted: int, status: str) -> None:
    chat = CHAT.model_copy(update={"predicted_gpu_bytes": predicted * MIB})
    found = outcome("models-memory", plan(models=(chat,), engine="cuda"), ensure=there(), measure=WHOLE)
    assert found.status == status
    assert found.values["predicted"] == predicted * MIB
    assert found.values["found"] == 14336 * MIB


@pytest.mark.parametrize(("layers", "status"), [(41, "ok"), (40, "failed")])
def test_the_projector_is_no_part_of_the_engines_account(layers: int, status: str) -> None:
    """It is predicted, and lies beside a whole model only; the engine's log counts the language model."""
    told = {
        "predicted_gpu_bytes": (14336 + 900) * MIB,
        "projector_bytes": 900 * MIB,
        "gpu_layers": layers,
        "layers": 41,
    }
    chat = CHAT.model_copy(update=told)
    found = outcome("models-memory", plan(models=(chat,), engine="cuda"), ensure=there(), measure=WHOLE)
    assert found.status == status


def test_a_shorter_context_than_planned_fails() -> None:
    found = outcome("models-memory", plan(engine="cuda"), ensure=there(), measure={**WHOLE, "context_length": 4096})
    assert found.status == "failed"
    assert "planned 32768" in found.measured


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ({"answered": True, "tokens": 8, "prompt_tokens": 12}, "ok"),
        ({"answered": False, "tokens": 8, "prompt_tokens": 12}, "failed"),
        ({"answered": True, "tokens": 0, "prompt_tokens": 12}, "failed"),
    ],
)
def test_a_chat_counts_by_its_structure(answer: dict[str, Any], status: str) -> None:
    rates = {"tps": 28.0, "prompt_tps": 300.0, "load_s": 1.0}
    assert outcome("models-chat", plan(), ensure=there(), chat_check={**answer, **rates}).status == status


def test_another_dimension_than_planned_fails() -> None:
    answer = {"dimension": 768, "norm": 1.0, "seconds": 0.1, "first": []}
    assert outcome("models-embedding", plan(), embed_check=answer).status == "failed"
    assert outcome("models-embedding", plan(), embed_check={**answer, "dimension": 384}).status == "ok"


def test_host_and_gpu_buffers_are_told_apart() -> None:
    assert split(
        {"CUDA0": {"model": 3}, "CUDA_Host": {"compute": 5}, "CPU_Mapped": {"model": 7}, "ROCm1": {"kv": 11}}
    ) == (14, 12)
