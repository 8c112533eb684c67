"""`verify` beside the watch over the graphics card, whose remedy restarts the engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ownstack.errors import ConnectionLostError, RunError
from ownstack.verify import runner
from ownstack.verify.check import Check, Context, Outcome
from tests.unit.engine_plans import plan


class Box:
    """A session on a box whose watch may restart the engine during a check."""

    def __init__(self, *, broken: bool = False) -> None:
        self.target = SimpleNamespace(name="box")
        self.remedied, self.broken, self.asked = 0, broken, 0

    def step(self, name: str, spec: dict[str, Any], looking: bool = False) -> dict[str, Any]:
        if self.broken:
            raise RunError("no runner there", hint="")
        if name == "ollama.ps":
            self.asked += 1
            return {"number": self.asked}
        assert name == "gpu.settled"
        return {"time": 1000, "remedied": self.remedied, "busy": False}


def verified(box: Box, monkeypatch: pytest.MonkeyPatch, engine: str, remedy: bool) -> tuple[list[str], int]:
    """What is told of one check that is red at first, and how often it ran."""
    runs: list[int] = []

    def check(context: Context) -> Outcome:
        runs.append(context.step("ollama.ps")["number"] if not box.broken else 0)
        if len(runs) > 1:
            return Outcome.ok("answers")
        box.remedied = 900 if remedy else 0
        return Outcome.failed("the connection was closed")

    monkeypatch.setattr(runner, "all_checks", lambda made: [Check("models-chat", "answers", check)])
    told: list[str] = []
    made = plan(engine=engine)
    report = runner.verify(made, box, lambda result: told.append(result.outcome.status))  # type: ignore[arg-type]
    assert report.ok == (told == ["ok"])
    assert runs == list(range(1, len(runs) + 1)) or box.broken, "nothing of before the restart is believed"
    return told, len(runs)


def test_a_check_that_the_watch_broke_runs_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    assert verified(Box(), monkeypatch, "cuda", remedy=True) == (["ok"], 2)


def test_a_red_check_stays_red_where_the_watch_did_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert verified(Box(), monkeypatch, "cuda", remedy=False) == (["failed"], 1)


def test_without_a_watch_or_a_runner_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert verified(Box(), monkeypatch, "cpu", remedy=True) == (["failed"], 1)
    assert verified(Box(broken=True), monkeypatch, "cuda", remedy=True) == (["failed"], 1)


def test_a_question_that_fails_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that hangs lets each question wait to its end."""
    asked: list[str] = []

    def refuse(name: str, spec: dict[str, Any], looking: bool = False) -> dict[str, Any]:
        asked.append(name)
        raise RunError("Qdrant does not answer", hint="restart it")

    def check(context: Context) -> Outcome:
        return Outcome.ok(str(context.step("qdrant.probe")))

    box = Box()
    monkeypatch.setattr(box, "step", refuse)
    monkeypatch.setattr(runner, "all_checks", lambda made: [Check("one", "", check), Check("two", "", check)])
    report = runner.verify(plan(engine="cpu"), box)  # type: ignore[arg-type]
    assert asked == ["qdrant.probe"]
    assert [(r.outcome.status, r.hint) for r in report.results] == [("failed", "restart it")] * 2


def test_a_connection_that_breaks_is_no_red_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """An upgrade would be put back for it, and a run that can connect again would say that services do not answer."""

    def check(context: Context) -> Outcome:
        raise ConnectionLostError("the connection to box broke")

    monkeypatch.setattr(runner, "all_checks", lambda made: [Check("models-chat", "answers", check)])
    with pytest.raises(ConnectionLostError):
        runner.verify(plan(), Box())  # type: ignore[arg-type]
