"""`models move` as a command: nothing is deleted before the box has passed from the new folder, or all is put back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ownstack.cli import run
from ownstack.cli.models import move_spec
from ownstack.engine.session import Session
from ownstack.kit import activate
from ownstack.verify.check import Check, Outcome
from tests.cli import standing
from tests.cli.standing import Box, steps
from tests.unit import machines

activate()
from roles.ollama import models_dir  # noqa: E402 - found once `activate` has run

PATH = "/mnt/large/models"
HOME = "/home/anna/models"
FOLDER = {"path": PATH, "service": "ollama", "write": True}


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Box:
    found = standing.stand(monkeypatch)
    standing.carried(monkeypatch, tmp_path)
    monkeypatch.setitem(standing.ANSWERS, "ollama.move", {"held": 9, "bytes": 9, "free": 99})
    monkeypatch.setitem(standing.ANSWERS, "ollama.move_drop", {"bytes": 9})
    return found


def move(monkeypatch: pytest.MonkeyPatch, config: Path, outcome: Outcome) -> int:
    one = Check("models-chat", "The engine answers", lambda context: outcome, "look", "models")
    monkeypatch.setattr("ownstack.verify.runner.all_checks", lambda plan: [one])
    return run(["models", "move", PATH, "--yes", "--json", "--config", str(config)])


def test_old_files_go_when_the_box_has_passed(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = tmp_path / "ownstack.toml"
    config.write_text('use = "chat"\n')
    assert move(monkeypatch, config, Outcome.ok("fine")) == 0
    assert json.loads(capsys.readouterr().out)["data"]["freed"] == 9
    done = steps(box)
    assert done[:2] == ["ollama.move", "ollama.move_drop"], "in a run of its own, after the one that switched"
    assert "box.write_manifest" in done, "nothing is left to be finished"
    assert PATH in config.read_text()


def test_whether_a_unit_brings_the_folder_to_the_engine_is_told() -> None:
    plan = machines.plan()
    assert [move_spec(plan, path)["bound"] for path in (PATH, HOME)] == [False, True]


@pytest.mark.parametrize("passes", [True, False])
def test_one_that_was_cut_off_when_it_had_switched_is_finished(
    passes: bool, box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The box has its models in the new folder already, and the old one is full of them."""
    config = tmp_path / "ownstack.toml"
    config.write_text('use = "chat"\n')
    before = models_dir(machines.plan())
    told: list[tuple[str, dict[str, Any]]] = []
    real = Session.step

    def step(self: Session, name: str, spec: dict[str, Any], *more: Any, **words: Any) -> dict[str, Any]:
        if not spec.get("dry"):
            told.append((name, spec))
        return real(self, name, spec, *more, **words)

    monkeypatch.setattr(Session, "step", step)
    assert move(monkeypatch, config, Outcome.ok("fine")) == 0
    asked = [(name, spec["from"], spec["later"]) for name, spec in told if name.startswith("ollama.move")]
    assert asked == [
        ("ollama.move", before, False),
        ("ollama.move", before, True),
        ("ollama.move_drop", before, True),
    ], "what the new store has written since it serves is not put back to what the old one held"
    plan = machines.plan(flags={f"folders.models.{key}": value for key, value in FOLDER.items()})
    assert models_dir(plan) == PATH
    box.state = machines.box(plan, models_left=before)
    config.write_text('use = "chat"\n')
    told.clear()
    capsys.readouterr()
    outcome = Outcome.ok("fine") if passes else Outcome.failed("no answer came")
    assert move(monkeypatch, config, outcome) == int(not passes)
    assert {(spec["from"], spec["to"], spec["later"]) for name, spec in told if name.startswith("ollama.move")} == {
        (before, PATH, True)
    }
    assert ("ollama.move_drop" in [name for name, _ in told]) == passes, "it has to pass from the new folder first"
    if not passes:
        assert f"the box serves from {PATH}, as before" in json.loads(capsys.readouterr().out)["error"]["hint"]


def test_one_that_does_not_pass_leaves_files_and_settings(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = tmp_path / "ownstack.toml"
    config.write_text('use = "chat"\n')
    assert move(monkeypatch, config, Outcome.failed("no answer came")) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "move-reverted"
    assert "no answer came" in error["message"]
    assert f"what was copied lies in {PATH}" in error["hint"]
    done = steps(box)
    assert "ollama.move_drop" not in done
    assert done.count("box.activate") > 1, "the plan of before is carried out again"
    assert config.read_text() == 'use = "chat"\n'


def test_an_upgrade_that_was_cut_off_ends_first(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    standing.cut_off(monkeypatch, box, "ollama")
    config = tmp_path / "ownstack.toml"
    config.write_text('use = "chat"\n')
    assert move(monkeypatch, config, Outcome.ok("fine")) == 0
    assert "an upgrade of ollama (ollama 1 to 2) was cut off: programs and data are as they" in capsys.readouterr().err
