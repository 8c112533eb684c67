"""The lock on a box and its journal, with the real shell script on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ownstack.engine import hold
from ownstack.engine.hold import Hold
from ownstack.engine.session import Session, Target
from ownstack.errors import OwnstackError, RunError, UnreachableError
from ownstack.plan import Layout
from ownstack.runner import hold as program
from ownstack.runner import journal


@pytest.fixture
def layout(tmp_path: Path) -> Iterator[Layout]:
    made = Layout(var=str(tmp_path / "var"), prefix=f"t{os.getpid()}")
    yield made
    for place in (f"/run/{made.prefix}.lock", f"/tmp/{made.prefix}-{os.getuid()}.lock"):
        Path(place).unlink(missing_ok=True)


@pytest.fixture(params=["python3", "sh alone"], autouse=True)
def _program(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a host with Python, and on one without."""
    if request.param == "sh alone":
        monkeypatch.setattr(hold, "SCRIPT", hold.SCRIPT.replace("python3", "there-is-no-such-python"))


@pytest.fixture
def session() -> Iterator[Session]:
    with Session(Target()) as opened:
        yield opened


def written(layout: Layout) -> list[dict[str, Any]]:
    return journal.lines(f"{layout.var}/journal.jsonl")


def test_the_second_is_told_who_holds_the_box_and_since_when(session: Session, layout: Layout) -> None:
    first = Hold(session, layout, "up")
    assert journal.holder(layout.prefix).startswith("`ownstack up` by ")
    with pytest.raises(RunError) as caught:
        Hold(session, layout, "restore")
    assert caught.value.code == "busy"
    assert "`ownstack up` by " in caught.value.message
    assert " since 20" in caught.value.message
    first.close()
    assert journal.holder(layout.prefix) == ""
    Hold(session, layout, "restore").close()


def test_another_box_on_the_machine_is_not_held(session: Session, layout: Layout, tmp_path: Path) -> None:
    other = layout.model_copy(update={"prefix": f"{layout.prefix}b", "var": str(tmp_path / "other")})
    holds = [Hold(session, layout, "up"), Hold(session, other, "up")]
    for one in holds:
        one.close()
    Path(f"/run/{other.prefix}.lock").unlink(missing_ok=True)


def test_one_that_died_holds_nothing(session: Session, layout: Layout) -> None:
    """Its end of the pipe is closed by the kernel, whatever it died of."""
    first = Hold(session, layout, "up")
    assert isinstance(first.channel, hold.Here)
    first.channel.input.close()  # what the kernel does with the descriptors of a killed process
    Hold(session, layout, "up").close()
    second = Hold(session, layout, "up")
    assert isinstance(second.channel, hold.Here)
    os.killpg(second.channel.process.pid, signal.SIGKILL)
    Hold(session, layout, "up").close()


def test_one_that_sleeps_loses_it_and_notices(
    session: Session, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hold, "SILENCE_S", 1)
    monkeypatch.setattr(hold, "BEAT_S", 60.0)
    asleep = Hold(session, layout, "up")
    end = time.monotonic() + 20
    while journal.holder(layout.prefix):
        assert time.monotonic() < end
        time.sleep(0.1)
    with pytest.raises(UnreachableError) as caught:
        asleep.note("begin", "Base: folders")
    assert "no longer holds" in caught.value.message
    assert not Path(layout.var).exists()


def test_a_beating_one_keeps_it(session: Session, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hold, "SILENCE_S", 1)
    monkeypatch.setattr(hold, "BEAT_S", 0.2)
    held = Hold(session, layout, "up")
    time.sleep(2.5)
    assert journal.holder(layout.prefix)
    held.note("begin", "Base: folders")
    held.close()


def test_one_that_gets_no_answer_ends_what_waits_on_its_connection(
    session: Session, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hold, "BEAT_S", 0.2)
    held, given_up = Hold(session, layout, "up"), threading.Event()
    assert isinstance(held.channel, hold.Here)
    monkeypatch.setattr(held.channel, "give_up", given_up.set)
    assert not given_up.wait(1)
    os.killpg(held.channel.process.pid, signal.SIGKILL)
    assert given_up.wait(10)
    held.close()
    given_up.clear()
    done = Hold(session, layout, "up")
    monkeypatch.setattr(done.channel, "give_up", given_up.set)
    done.close()
    assert not given_up.wait(1), "who ends by himself gives nothing up"


def test_lines_are_there_before_the_work_goes_on(session: Session, layout: Layout) -> None:
    held = Hold(session, layout, "up")
    held.plan = "abc"
    held.note("begin", 'it\'s "one" $(id) \\n')
    (line,) = written(layout)
    assert (line["event"], line["step"], line["run"], line["plan"]) == ("begin", 'it\'s "one" $(id) \\n', "up", "abc")
    assert abs(line["time"] - time.time()) < 60
    assert journal.unfinished(f"{layout.var}/journal.jsonl") == line
    held.note("end", line["step"])
    assert journal.unfinished(f"{layout.var}/journal.jsonl") is None
    held.close()


def test_many_at_once_do_not_mix(session: Session, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """The beat comes from a thread of its own."""
    monkeypatch.setattr(hold, "BEAT_S", 0.002)
    held = Hold(session, layout, "up")

    def notes() -> None:
        for _ in range(20):
            held.note("begin", "x" * 900)

    threads = [threading.Thread(target=notes) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held.close()
    assert [line["step"] for line in written(layout)] == ["x" * 900] * 60


def test_a_machine_without_a_lock_is_told_as_one(session: Session, layout: Layout) -> None:
    place = Path(f"/run/{layout.prefix}.lock" if os.getuid() == 0 else f"/run/user/{os.getuid()}/{layout.prefix}.lock")
    place.mkdir()
    try:
        held = Hold(session, layout, "up")
    finally:
        place.rmdir()
    assert (held.held, held.lacks) == (False, str(place))
    held.note("begin", "Base: folders")
    held.close()
    there = Hold(session, layout, "up")
    assert (there.held, there.lacks) == (True, "")
    there.close()


def test_the_last_step_of_a_purge_makes_nothing_anew(session: Session, layout: Layout) -> None:
    held = Hold(session, layout, "down")
    held.note("begin", "Base: remove")
    subprocess.run(["rm", "-r", layout.var], check=True)
    held.note("end", "Base: remove")
    held.note("done", "down")
    held.close()
    assert not Path(layout.var).exists()


def test_a_journal_that_cannot_be_written_stops_the_run_but_not_down(session: Session, layout: Layout) -> None:
    Path(layout.var).write_text("a file where the folder should be")
    held = Hold(session, layout, "up")
    with pytest.raises(OwnstackError) as caught:
        held.note("begin", "Base: folders")
    held.close()
    assert (caught.value.code, bool(caught.value.hint)) == ("journal", True)
    leaving = Hold(session, layout, "down")
    leaving.note("begin", "Base: remove")
    leaving.close()


def test_it_hides_no_error_of_a_step_and_hinders_no_end_of_a_change(
    session: Session, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that an upgrade has filled."""
    Path(layout.var).write_text("a file where the folder should be")
    answer = {"event": "error", "message": "its own words", "code": "not-ready"}
    monkeypatch.setattr(Session, "command", lambda *words, **more: (1, json.dumps(answer), ""))
    session.held = Hold(session, layout, "upgrade")
    ends = ("snapshots.revert", "restore.revert", "snapshots.commit", "restore.finish")
    for name, code in (*((name, "not-ready") for name in ends), ("box.activate", "journal")):
        with pytest.raises(OwnstackError) as caught:
            session.step(name, {})
        assert caught.value.code == code
    session.note("done", "upgrade")  # the run has reached what it was to reach


def test_it_stays_bounded(session: Session, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hold, "MOST", 2000)
    monkeypatch.setattr(hold, "KEPT", 1000)
    path = Path(layout.var, "journal.jsonl")
    path.parent.mkdir()
    path.write_text("".join(json.dumps({"event": "end", "step": str(number)}) + "\n" for number in range(100)))
    Hold(session, layout, "up").close()
    assert path.stat().st_size == 1000
    assert written(layout)[-1]["step"] == "99"


def test_what_is_left_of_it_is_on_the_disk_before_it_takes_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, done = tmp_path / "journal.jsonl", list[str]()
    path.write_text("x" * 100)
    replace = os.replace

    def placed(source: str, target: str) -> None:
        done.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", lambda handle: done.append("fsync"))
    monkeypatch.setattr(os, "replace", placed)
    program.cut(str(path), 50, 10)
    assert path.read_text() == "x" * 10
    assert done == ["fsync", "replace"]


def test_a_link_in_the_place_of_the_lock_is_not_followed(session: Session, layout: Layout, tmp_path: Path) -> None:
    """Without root it lies in /tmp where there is no better place, and anybody may lay a link there."""
    other = tmp_path / "of somebody"
    other.write_text("kept")
    Path(program.lock_path(layout.prefix, os.getuid())).symlink_to(other)
    one = Hold(session, layout, "up")
    one.close()
    assert (one.held, other.read_text()) == (False, "kept")


def line(event: str, step: str, run: str = "up") -> str:
    return json.dumps({"event": event, "step": step, "run": run, "time": 1}) + "\n"


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("", None),
        (line("begin", "a"), "a"),
        (line("begin", "a") + line("failed", "a"), None),
        (line("begin", "a") + line("begin", "b"), "b"),
        (line("begin", "a") + line("begin", "b") + line("end", "b") + line("end", "a"), None),
        (line("begin", "a") + line("done", "backup", "backup"), "a"),
        (line("begin", "a", "backup") + line("done", "up"), None),
        (line("begin", "a") + '{"event": "en', "a"),
        ('garbage\n[]\n"x"\n' + line("begin", "a"), "a"),
    ],
)
def test_what_did_not_end(text: str, step: str | None, tmp_path: Path) -> None:
    (tmp_path / "j").write_text(text)
    found = journal.unfinished(str(tmp_path / "j"))
    assert (found["step"] if found else None) == step


def test_the_runner_writes_the_same_journal(tmp_path: Path) -> None:
    path = str(tmp_path / "journal.jsonl")
    journal.note(path, "recovered", "restore", what="put back")
    (found,) = journal.lines(path)
    assert (found["event"], found["what"]) == ("recovered", "put back")
    journal.note(str(tmp_path / "none/journal.jsonl"), "begin", "x")
    assert not (tmp_path / "none").exists()
