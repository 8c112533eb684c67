"""`up` on other hardware: the order of the transaction, and what it does when a part of it fails."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ownstack.cli import reprovision, run
from ownstack.engine import apply
from ownstack.engine.session import Session
from ownstack.errors import RunError, UnsupportedError
from ownstack.kit import activate
from ownstack.plan import Adopted
from ownstack.settings import load
from ownstack.verify.check import Check, Outcome
from ownstack.verify.runner import VerifyReport
from tests.cli import standing
from tests.cli.standing import Box, told
from tests.unit import machines

activate()
EMBEDDING = ["--pin", "embedding=snowflake-arctic-embed:22m"]


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Box:
    """A box that was made on an RTX 4070; its host has an RTX 4090 now."""
    found = standing.stand(monkeypatch)
    found.state = machines.box(machines.plan("rtx-4070"))
    found.report = machines.report("rtx-4090")
    standing.carried(monkeypatch, tmp_path)
    return found


def verdict(monkeypatch: pytest.MonkeyPatch, outcome: Outcome, role: str = "models") -> None:
    one = Check("models-chat", "The engine answers", lambda context: outcome, "look", role)
    monkeypatch.setattr("ownstack.verify.runner.all_checks", lambda plan: [one])


def steps(box: Box) -> list[str]:
    """The runner's steps in order, a manifest's with what it says of the earlier plan."""
    found = []
    for command in box.seen.commands:
        match = re.search(r"runner'? '?([a-z0-9_]+\.[a-z0-9_]+)'? --json", command)
        if match is None or '"dry": true' in command:
            continue
        name = match[1]
        if name == "box.write_manifest" and "previous_plan" in command:
            name += " forget" if '"previous_plan": null' in command else " keep"
        found.append(name)
    return found


def noted(box: Box) -> list[str]:
    """What of it the manifest was told."""
    return [name for name in steps(box) if name.startswith("box.write_manifest")]


def test_models_come_before_anything_is_switched(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict(monkeypatch, Outcome.ok("fine"))
    assert run(["up", "--yes", "--json"]) == 0
    data = told(capsys)["data"]
    done = steps(box)
    first = [done.index(name) for name in ("ollama.pull_start", "ollama.pull_wait")]
    checked = done.index("ollama.ensure", first[-1])
    order = [*first, checked, done.index("box.write_manifest keep"), done.index("box.activate")]
    assert order == sorted(order)
    assert done.index("box.write_manifest forget") > done.index("open_webui.configure")
    assert "ollama.prune" not in done
    assert data["change"]["hardware"] == ["RTX 4070 12 GB replaced by RTX 4090 24 GB"]
    assert data["change"]["fetch"]


@pytest.mark.parametrize("role", ["models", "open_webui"])
def test_a_failed_check_puts_the_earlier_plan_back(
    role: str, box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict(monkeypatch, Outcome.failed("no answer came"), role)
    assert run(["up", "--yes", "--json", "--prune"]) == 1
    error = told(capsys)["error"]
    assert error["code"] == "reprovision-reverted"
    assert "no answer came" in error["message"]
    assert "--keep-models" in error["hint"]
    assert "fail with it too: models-chat: no answer came" in error["hint"], "it was looked at"
    done = steps(box)
    assert noted(box)[-1] == "box.write_manifest forget"
    assert "ollama.prune" not in done
    written = [
        c for c in box.seen.commands if " box.write_manifest " in c and '"dry": true' not in c and "plan_digest" in c
    ]
    assert len(written) == 2
    chat = machines.plan("rtx-4070").model("chat")
    assert chat is not None
    assert chat.tag in written[-1]


def test_any_error_of_the_switch_puts_the_earlier_plan_back(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import deploy

    verdict(monkeypatch, Outcome.ok("fine"))
    real = apply.execute
    tried: list[Any] = []

    def broken(session: Session, wanted: Any, *given: Any, **more: Any) -> Any:
        if wanted is deploy.apply and not tried:
            tried.append(wanted)
            raise UnsupportedError("no source of ollama can be used here")
        return real(session, wanted, *given, **more)

    monkeypatch.setattr(apply, "execute", broken)
    assert run(["up", "--yes", "--json"]) == 1
    error = told(capsys)["error"]
    assert error["code"] == "reprovision-reverted"
    assert "no source of ollama" in error["message"]
    assert error["hint"].startswith("it runs as before")
    assert noted(box)[-1] == "box.write_manifest forget"


def test_a_way_back_that_fails_too_says_both_and_stays_unfinished(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import deploy

    verdict(monkeypatch, Outcome.failed("no answer came"))
    real, tried = apply.execute, [0]

    def broken(session: Session, wanted: Any, *given: Any, **more: Any) -> Any:
        tried[0] += wanted is deploy.apply
        if wanted is deploy.apply and tried[0] == 2:
            raise RunError("no space left", hint="free disk space")
        return real(session, wanted, *given, **more)

    monkeypatch.setattr(apply, "execute", broken)
    assert run(["up", "--yes", "--json"]) == 1
    error = told(capsys)["error"]
    assert error["message"].startswith("no space left (on the way back, after this: ")
    assert "no answer came" in error["message"]
    assert error["hint"].startswith("free disk space; then run `ownstack up`")
    assert "box.write_manifest forget" not in steps(box), "the next run knows where it came from"


def test_amber_and_checks_of_other_things_take_nothing_back(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for outcome, role in ((Outcome.amber("still coming", "wait"), "models"), (Outcome.failed("open"), "base")):
        verdict(monkeypatch, outcome, role)
        assert run(["up", "--yes", "--json"]) == 1
        assert told(capsys)["error"]["code"] == "checks-failed"


def test_a_model_that_cannot_be_fetched_switches_nothing(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = machines.plan("rtx-4090").model("chat")
    assert wanted is not None
    error = {"code": "registry-unreachable", "message": "no route", "hint": "later"}
    monkeypatch.setitem(standing.ANSWERS, "ollama.pull_wait", {"ended": {wanted.tag: error}})
    monkeypatch.setitem(standing.ANSWERS, "ollama.ensure", {"present": [], "missing": [wanted.tag], "wrong": {}})
    assert run(["up", "--yes", "--json"]) == 1
    found = told(capsys)["error"]
    assert found["code"] == "registry-unreachable"
    assert "goes on as before" in found["message"]
    assert "box.activate" not in steps(box)
    assert not [name for name in steps(box) if name.startswith("box.write_manifest")]


@pytest.mark.parametrize(
    ("pins", "step", "answer"),
    [([], "ollama.chat_check", {"answered": False}), (EMBEDDING, "ollama.embed_check", {"dimension": 0}),
     (EMBEDDING, "ollama.embed_check", None)],
)  # fmt: skip
def test_a_fetched_model_that_does_not_answer_switches_nothing(
    pins: list[str], step: str, answer: dict[str, Any] | None, box: Box, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A second run asks again, also where the model is there since the first."""
    monkeypatch.setitem(standing.ANSWERS, step, answer or {})
    real = Session.step

    def broken(self: Session, name: str, spec: dict[str, Any], timeout: int | None = None) -> dict[str, Any]:
        if name == step and answer is None:
            raise RunError("it does not fit into memory", hint="a smaller one", code="model-too-big")
        return real(self, name, spec, timeout)

    monkeypatch.setattr(Session, "step", broken)
    for _ in range(2):
        box.seen.commands.clear()
        assert run(["up", "--yes", "--json", *pins]) == 1
        error = told(capsys)["error"]
        assert error["code"] == "model-silent"
        assert error["message"].endswith("; the box goes on as before")
        assert ("does not fit into memory" in error["message"]) == (answer is None)
        assert "box.activate" not in steps(box)
        assert not [name for name in steps(box) if name.startswith("box.write_manifest")]
        there = [model.tag for model in machines.plan("rtx-4090").models]
        monkeypatch.setitem(standing.ANSWERS, "ollama.ensure", {"present": there, "missing": [], "wrong": {}})


def test_with_other_parts_of_the_engine_the_first_question_comes_after_the_switch(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict(monkeypatch, Outcome.ok("fine"))
    box.state = machines.box(machines.plan("bare-server"))
    monkeypatch.setitem(standing.ANSWERS, "ollama.chat_check", {"answered": False})
    assert run(["up", "--yes", "--json"]) == 0
    assert told(capsys)["data"]["change"]["engine"] == {"old": "cpu", "new": "cuda"}


def test_a_run_that_was_cut_off_goes_on_from_the_plan_it_came_from(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict(monkeypatch, Outcome.failed("no answer came"))
    old = machines.plan("rtx-4070").model_dump(mode="json")
    box.state = machines.box(machines.plan("rtx-4090"), previous_plan=old)
    assert run(["up", "--yes", "--json"]) == 1
    assert told(capsys)["error"]["code"] == "reprovision-reverted"
    assert noted(box)[-1] == "box.write_manifest forget"


def test_back_at_the_plan_from_before_a_cut_nothing_is_left_unfinished(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A change was cut off, and then nobody wanted it any more: `upgrade` would refuse for ever."""
    verdict(monkeypatch, Outcome.ok("fine"))
    now = machines.plan("rtx-4090")
    box.state = machines.box(now, previous_plan=now.model_dump(mode="json"))
    assert run(["up", "--yes", "--json"]) == 0
    assert told(capsys)["data"]["change"] is not None
    assert "box.write_manifest forget" in steps(box)


def test_collections_of_a_change_that_was_taken_back_are_left_to_prune(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict(monkeypatch, Outcome.failed("no answer came"))
    assert run(["up", "--yes", "--json", "--pin", "embedding=snowflake-arctic-embed:22m"]) == 1
    assert told(capsys)["error"]["code"] == "reprovision-reverted"
    last = [c for c in box.seen.commands if " box.write_manifest " in c and '"previous_plan": null' in c][-1]
    assert '"old_vectors": ["open-webui-snowflake-arctic-embed-22m-' in last


def test_prune_is_only_done_when_it_is_asked_for(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict(monkeypatch, Outcome.ok("fine"))
    left = {"models": [{"model": "old:1b", "bytes": 2**30}]}
    monkeypatch.setitem(standing.ANSWERS, "ollama.leftovers", left)
    monkeypatch.setitem(standing.ANSWERS, "ollama.prune", left)
    assert run(["up", "--yes"]) == 0
    assert "no longer needed: old:1b, 1.0 GiB; `ownstack up --prune` removes it" in capsys.readouterr().err
    assert "ollama.prune" not in steps(box)
    assert run(["up", "--yes", "--prune"]) == 0
    assert "removed: old:1b" in capsys.readouterr().err
    (command,) = [c for c in box.seen.commands if "ollama.prune" in c]
    for model in machines.plan("rtx-4090").models:
        assert model.tag in command
    for outcome, role, pruned in (
        (Outcome.amber("edited by hand", "look"), "base", True), (Outcome.failed("no answer"), "models", False),
        (Outcome.amber("still coming", "wait"), "models", False),
    ):  # fmt: skip
        box.state = machines.box(machines.plan("rtx-4090"))
        box.seen.commands.clear()
        verdict(monkeypatch, outcome, role)
        assert run(["up", "--yes", "--prune"]) == 1
        assert ("ollama.prune" in steps(box)) == pruned


def test_what_was_not_verified_is_not_pruned(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["up", "--yes", "--json", "--prune", "--no-verify"]) == 2
    assert "--no-verify" in told(capsys)["error"]["message"]
    assert box.seen.commands == []
    assert not reprovision.settled(VerifyReport(()))


@pytest.mark.parametrize("engine", ["own", "used", "adopted"])
def test_of_an_engine_that_is_only_used_no_model_is_pruned_but_what_else_is_left(
    engine: str, box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = machines.plan("rtx-4090").model_copy(update={"engine_existing": engine != "own"})
    if engine == "adopted":
        told = Adopted(unit="ollama.service", path="/etc/o.service", dropin="/etc/o.service.d/ownstack.conf")
        plan = plan.model_copy(update={"adopted": told})
    monkeypatch.setitem(standing.ANSWERS, "ollama.prune", {"models": [{"model": "old:1b", "bytes": 1}]})
    box.state = machines.box(machines.plan("rtx-4090"), old_vectors=["open-webui-old"])
    monkeypatch.setitem(standing.ANSWERS, "qdrant.drop", {"collections": ["open-webui-old_files"]})
    with box.open(load({}, None, {})) as site:
        rows = reprovision.tidy(site, plan, True, False, {})
    wanted = [] if engine == "used" else ["old:1b"]
    assert [row.get("model") or row["collection"] for row in rows] == [*wanted, "open-webui-old_files"]
    pruned = [command for command in box.seen.commands if "ollama.prune" in command]
    assert [("adopted-models.json" in command) for command in pruned] == [engine == "adopted"] * len(wanted)


def test_plan_shows_the_transaction_and_what_if_there_were_another_card(
    box: Box, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["plan"]) == 0
    text = capsys.readouterr().out
    assert "hardware: RTX 4070 12 GB replaced by RTX 4090 24 GB" in text
    assert "fetched while the present models serve" in text
    assert "The hardware has changed" in text
    assert run(["plan", "--what-if", "RTX 5090"]) == 0
    text = capsys.readouterr().out
    assert "The hardware would have changed" in text
    assert "The hardware has changed" not in text
    assert run(["plan", "--what-if", "RTX 5090", "--json"]) == 0
    data = told(capsys)["data"]
    assert "replaced by RTX 5090 32 GB" in data["change"]["hardware"][0]
    assert data["plan"]["gpu_names"] != list(machines.plan("rtx-4090").gpu_names)
    assert data["changes"] == []
    assert run(["plan", "--what-if", "RTX 99990", "--json"]) == 2


def test_what_the_engine_has_already_is_not_said_to_be_fetched(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = machines.plan("rtx-4090").model("chat")
    assert wanted is not None
    assert run(["plan", "--json"]) == 0
    assert wanted.tag in [row["model"] for row in told(capsys)["data"]["change"]["fetch"]]
    there = {"present": [wanted.tag], "missing": [], "wrong": {}}
    monkeypatch.setitem(standing.ANSWERS, "ollama.ensure", there)
    assert run(["plan", "--json"]) == 0
    assert wanted.tag not in [row["model"] for row in told(capsys)["data"]["change"]["fetch"]]


def test_keep_and_pin_are_the_owners_word(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "--keep-models", "--json"]) == 0
    assert told(capsys)["data"]["change"]["fetch"] == []
    assert run(["plan", "--pin", "chat=qwen3:8b", "--json"]) == 0
    assert "qwen3:8b" in [row["model"] for row in told(capsys)["data"]["change"]["fetch"]]
    for wrong in ("chat", "poetry=x", "chat="):
        assert run(["plan", "--pin", wrong, "--json"]) == 2
        assert "--pin" in told(capsys)["error"]["message"]


def carried(box: Box) -> list[str]:
    return [c for c in box.seen.commands if "open_webui.reindex" in c and '"carried": true' in c]


def test_documents_have_their_new_vectors_before_anything_is_switched(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict(monkeypatch, Outcome.ok("fine"))
    assert run(["up", "--yes", "--json", *EMBEDDING]) == 0
    done = steps(box)
    noted = next(i for i, c in enumerate(done) if c == "box.write_manifest")
    names = ("open_webui.vectors", "box.write_manifest keep", "box.activate", "open_webui.reindex")
    order = [done.index("ollama.pull_wait"), noted, *map(done.index, names)]
    assert order == sorted(order)
    (command,) = [c for c in box.seen.commands if "open_webui.vectors" in c]
    assert '"model": "snowflake-arctic-embed:22m"' in command
    assert '"old": "open-webui"' in command
    assert len(carried(box)) == 1, "after the switch only what came since"


@pytest.mark.parametrize("why", ["it cannot embed", "it was cut off", "the model is its owner's"])
def test_where_they_cannot_have_them_before_they_are_indexed_after_the_switch(
    why: str, box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict(monkeypatch, Outcome.ok("fine"))
    if why == "it was cut off":  # people may work with the new collections already
        old = machines.plan("rtx-4070").model_dump(mode="json")
        box.state = machines.box(machines.plan("rtx-4090"), previous_plan=old)
    mine = ["--set", 'open_webui.user_owned=["rag.embedding_model"]'] if "owner" in why else []
    real = Session.step

    def step(self: Session, name: str, spec: dict[str, Any], timeout: int | None = None) -> dict[str, Any]:
        if name == "open_webui.vectors":
            raise RunError(why)
        return real(self, name, spec, timeout)

    monkeypatch.setattr(Session, "step", step)
    assert run(["up", "--yes", "--json", *EMBEDDING, *mine]) == 0
    assert ("indexed by Open WebUI, and found bit by bit" in capsys.readouterr().err) == (why == "it cannot embed")
    assert "open_webui.reindex" in steps(box)
    assert carried(box) == []


def test_nothing_is_switched_where_half_of_the_vectors_would_count_as_all(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict(monkeypatch, Outcome.ok("fine"))
    real = Session.step

    def step(self: Session, name: str, spec: dict[str, Any], timeout: int | None = None) -> dict[str, Any]:
        if name == "open_webui.vectors":
            raise RunError("half of it is there", code="vectors-half")
        return real(self, name, spec, timeout)

    monkeypatch.setattr(Session, "step", step)
    assert run(["up", "--yes", "--json", *EMBEDDING]) != 0
    assert "half of it is there" in capsys.readouterr().out
    assert not {"box.activate", "open_webui.reindex"} & set(steps(box))
