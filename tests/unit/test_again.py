"""A run whose connection breaks goes on: how often, how long, and what is not asked twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import click
import pytest

from ownstack import cli
from ownstack.cli import again, output, site, up
from ownstack.errors import ConfigError, ConnectionLostError, HeldError, OwnstackError, RunError, UnreachableError
from ownstack.hardware.report import HardwareReport
from ownstack.plan import Plan
from ownstack.state import BoxState
from tests.plan.fake import FakeSession, bare
from tests.unit import machines

LOST = ConnectionLostError("the connection to box broke", hint="run again")
AWAY = UnreachableError("cannot reach box")
BUSY = HeldError("another run works on this box")
WORKING = RunError("a backup or a restore of this box is going on", code="busy")


class Clock:
    """Time that goes on only while somebody waits."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(again, "time", made)
    monkeypatch.delenv("OWNSTACK_RECONNECT", raising=False)
    return made


def going(*ends: OwnstackError | str) -> Callable[[], str]:
    """A command that ends in one way after the other, and in the last one for ever."""

    def scripted() -> Iterator[OwnstackError | str]:
        yield from ends
        while True:
            yield ends[-1]

    script = scripted()

    def run() -> str:
        end = next(script)
        if isinstance(end, OwnstackError):
            raise end
        return end

    return run


def test_it_goes_on_when_the_connection_is_there_again(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    again_at: list[bool] = []
    ends = going(LOST, AWAY, AWAY, BUSY, LOST, "done")

    def run() -> str:
        again_at.append(again.current().again)
        return ends()

    assert again.going_on(run) == "done"
    assert again_at == [False, True, True, True, True, True]
    assert not again.current().again
    said = capsys.readouterr().err
    assert said.count("trying to connect again, for 600 s") == 2
    assert clock.now == 5 * again.PAUSE_S


def test_a_host_that_stays_away_is_given_up(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnreachableError) as caught:
        again.going_on(going(LOST, AWAY))
    assert caught.value is AWAY
    assert again.PATIENCE_S < clock.now < again.PATIENCE_S + 3 * again.PAUSE_S
    clock.now = 0
    monkeypatch.setenv("OWNSTACK_RECONNECT", "20")
    with pytest.raises(UnreachableError):
        again.going_on(going(LOST, AWAY))
    assert 20 < clock.now < 40


def test_a_step_that_works_on_over_there_is_waited_for(clock: Clock) -> None:
    """Copying much data is not ended by a connection that breaks; the run that was cut off holds nothing any more."""
    attempts = int(3 * again.HELD_S / again.PAUSE_S)
    assert again.going_on(going(LOST, *[WORKING] * attempts, "done")) == "done"
    with pytest.raises(RunError) as caught:
        again.going_on(going(LOST, WORKING))
    assert caught.value is WORKING


def test_a_connection_that_always_breaks_is_given_up(clock: Clock) -> None:
    with pytest.raises(ConnectionLostError):
        again.going_on(going(LOST))
    assert clock.now == again.MOST * again.PAUSE_S


def test_somebody_elses_run_is_not_waited_for(clock: Clock) -> None:
    with pytest.raises(RunError) as caught:
        again.going_on(going(LOST, BUSY))
    assert caught.value is BUSY
    assert again.HELD_S < clock.now < again.HELD_S + 3 * again.PAUSE_S


@pytest.mark.parametrize("first", [AWAY, BUSY, WORKING, RunError("a step failed")])
def test_what_no_broken_connection_explains_ends_it_at_once(first: OwnstackError, clock: Clock) -> None:
    with pytest.raises(type(first)):
        again.going_on(going(first, "done"))
    with pytest.raises(RunError):
        again.going_on(going(LOST, RunError("a step failed"), "done"))
    assert clock.now == again.PAUSE_S


def test_what_somebody_ended_does_not_go_on(clock: Clock) -> None:
    """The connection broke while an upgrade that was interrupted was taken back."""
    attempts: list[int] = []

    def run() -> None:
        attempts.append(1)
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            try:
                raise OSError("Socket is closed")
            except OSError as error:
                raise ConnectionLostError("the connection to box broke") from error

    with pytest.raises(ConnectionLostError):
        again.going_on(run)
    assert (len(attempts), clock.now) == (1, 0)


@pytest.mark.parametrize("name", ["rollback", "import", "restore", "down"])
def test_what_would_be_done_twice_is_not_begun_again(name: str) -> None:
    with pytest.raises(ConnectionLostError):
        cli.called(name, going(LOST, "done"))
    assert cli.called("up", going(LOST, "done")) == "done"


def test_nobody_waits_who_does_not_want_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWNSTACK_RECONNECT", "0")
    with pytest.raises(ConnectionLostError):
        again.going_on(going(LOST, "done"))


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf"])
def test_a_wrong_number_of_seconds_is_told_first(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWNSTACK_RECONNECT", text)
    with pytest.raises(ConfigError) as caught:
        again.going_on(going("done"))
    assert text in caught.value.message


def test_a_question_and_a_password_are_asked_once(monkeypatch: pytest.MonkeyPatch, report: HardwareReport) -> None:
    asked: list[str] = []
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)

    def answer(text: str, **_: object) -> str:
        asked.append(text)
        return "word"

    monkeypatch.setattr(click, "confirm", answer)
    monkeypatch.setattr(click, "prompt", answer)
    found: list[str | None] = []
    ends = going(LOST, "done")

    def run() -> str:
        output.confirm("Install this?", yes=False)
        found.append(site.sudo_password(report, None))
        return ends()

    again.going_on(run)
    assert asked == ["Install this?", "Password"]
    assert found == ["word", "word"]
    again.going_on(run)
    assert len(asked) == 4, "another run asks anew"


def test_on_other_hardware_it_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine started meanwhile, say, and its card is not there yet: that makes other models."""
    asked: list[str] = []
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)

    def answer(text: str, **_: object) -> bool:
        asked.append(text)
        return True

    monkeypatch.setattr(click, "confirm", answer)
    seen = iter(["a card", "a card", "none"])
    ends = going(LOST, LOST, "done")

    def run() -> str:
        output.confirm("Install this?", False, False, next(seen))
        return ends()

    again.going_on(run)
    assert asked == ["Install this?"] * 2


def test_a_password_on_standard_input_is_read_once(monkeypatch: pytest.MonkeyPatch, report: HardwareReport) -> None:
    lines = iter(["word\n", ""])
    monkeypatch.setattr("sys.stdin.readline", lambda: next(lines), raising=False)
    found: list[str | None] = []
    ends = going(LOST, "done")

    def run() -> str:
        found.append(site.sudo_password(report, Path("-")))
        return ends()

    again.going_on(run)
    assert found == ["word", "word"]


def test_what_lies_in_pipes_is_read_once(tmp_path: Path, report: HardwareReport) -> None:
    """As `--config <(...)` gives them: empty settings would make another box."""
    secret, config = tmp_path / "word", tmp_path / "ownstack.toml"
    ends = going(LOST, "done")
    found: list[tuple[str | None, str]] = []

    def run() -> str:
        settings = site.read_settings(str(config), ())
        found.append((site.sudo_password(report, secret), settings.base.prefix))
        secret.write_text("")
        config.write_text("")
        return ends()

    def written() -> None:
        secret.write_text("word\n")
        config.write_text('prefix = "other"\n')

    written()
    again.going_on(run)
    assert found == [("word", "other")] * 2
    written()
    ends = going("done")
    again.going_on(run)
    assert found[2:] == [("word", "other")]
    again.going_on(run)
    assert found[3:] == [("", "ownstack")], "another run reads anew"


def test_a_reviewed_plan_is_held_against_the_box_until_it_has_begun(tmp_path: Path, report: HardwareReport) -> None:
    """A connection that broke before anybody looked at the plan is no reason to apply one of another day."""
    file = tmp_path / "plan.json"
    then, since = BoxState(), BoxState(manifest={"plan_digest": "another"})

    def applied(*states: BoxState | None) -> Plan:
        """Attempts that look at the plan on a box in this state; None: the connection breaks before."""
        file.write_text(machines.plan(report, state=then).model_dump_json())
        left = list(states)
        looked: list[Plan] = []

        def run() -> Plan:
            state = left.pop(0)
            if state is not None:
                looked.append(up.reviewed(file, cast(Any, SimpleNamespace(report=report, state=state))))
                file.write_text("")
            if left:
                raise LOST
            return looked[-1]

        return again.going_on(run)

    assert applied(then, since) == applied(then)
    for states in ([since], [None, since]):
        with pytest.raises(ConfigError) as caught:
            applied(*states)
        assert "the box has changed" in caught.value.message


def test_a_password_that_a_broken_connection_left_there_is_taken_away() -> None:
    ends = going(LOST, "done")
    folders, said = ["/dev/shm/one", "/dev/shm/two"], list[list[str]]()

    def answer(command: str) -> list[str] | None:
        return [folders[len(said)]] if "mktemp -d" in command else bare(command)

    def run() -> str:
        with FakeSession(answer) as session:
            session.use_sudo("word")
            session.seen.commands.clear()
            site.clear_left(session)
            said.append(session.seen.commands[:])
        return ends()

    again.going_on(run)
    assert said[0] == []
    (command,) = said[1]
    assert "rm -rf /dev/shm/one" in command
    assert "sudo" not in command


@pytest.fixture
def report() -> HardwareReport:
    return machines.changed("bare-server", host={"sudo": "password"})
