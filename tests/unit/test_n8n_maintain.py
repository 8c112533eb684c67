"""n8n's database made smaller: only where it wins something, whole at every moment, and n8n runs again."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ownstack.cli.status import describe_maintenance
from ownstack.kit import activate
from ownstack.runner import journal, n8n_maintain
from ownstack.runner.core import Event, StepError
from tests.unit import machines

activate()
from roles.n8n import maintain  # noqa: E402


def silent(event: Event) -> None:
    """Nobody listens."""


class Boss:
    """A process manager that notes what it is asked."""

    def __init__(self, database: Path) -> None:
        self.database, self.asked, self.active = database, [], True  # type: ignore[var-annotated]

    def status(self, units: list[str]) -> list[dict[str, Any]]:
        return [{"active": self.active, "state": "running"}]

    def stop(self, units: list[str]) -> None:
        self.asked.append("stop")

    def start(self, units: list[str]) -> None:
        self.asked.append("start")


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A database in WAL mode, most of which is empty."""
    path = tmp_path / "n8n/.n8n/database.sqlite"
    path.parent.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(path)) as made:
        made.execute("PRAGMA journal_mode = WAL")
        made.execute("CREATE TABLE execution_entity (id INTEGER PRIMARY KEY, status TEXT, data TEXT)")
        made.execute("CREATE TABLE workflow_entity (id TEXT)")
        made.execute("INSERT INTO workflow_entity VALUES ('w')")
        rows = [("success", "x" * 4000)] * 2000
        made.executemany("INSERT INTO execution_entity (status, data) VALUES (?, ?)", rows)
        made.execute("DELETE FROM execution_entity WHERE id > 20")
        made.commit()
    path.chmod(0o640)
    return path


@pytest.fixture
def boss(database: Path, monkeypatch: pytest.MonkeyPatch) -> Boss:
    found = Boss(database)
    monkeypatch.setattr(n8n_maintain, "manager", lambda spec: found)
    monkeypatch.setattr(n8n_maintain, "wait_service", lambda boss, service, emit: 0.1)
    return found


def spec(database: Path, **more: Any) -> dict[str, Any]:
    top = database.parents[2]
    return {
        "database": str(database), "state": str(top / "state.json"), "work": str(top), "lock": str(top / "lock"),
        "service": {"name": "n8n", "unit": "ownstack-n8n"}, "manager": "systemd", "least": 1 << 20,
        "prefix": "ownstack-of-a-test", **more,
    }  # fmt: skip


def dump(database: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(database)) as held:
        return list(held.iterdump())


def told(database: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((database.parents[2] / "state.json").read_text())
    return found


def test_empty_room_goes_and_everything_else_stays(database: Path, boss: Boss) -> None:
    before, size = dump(database), database.stat().st_size
    done = n8n_maintain.maintain(spec(database), silent)
    assert done["data"]["did"] == "vacuumed"
    assert database.stat().st_size < size / 10
    assert dump(database) == before
    assert boss.asked == ["stop", "start"]
    assert oct(database.stat().st_mode & 0o777) == "0o640"
    with contextlib.closing(sqlite3.connect(database)) as held:
        assert held.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert [path.name for path in database.parent.iterdir()] == ["database.sqlite"]
    assert describe_maintenance(told(database)).startswith("n8n's database was made smaller")


def test_where_nothing_is_to_win_n8n_is_not_stopped(database: Path, boss: Boss) -> None:
    n8n_maintain.maintain(spec(database), silent)
    boss.asked.clear()
    assert n8n_maintain.maintain(spec(database), silent)["data"]["did"] == "nothing to win"
    assert boss.asked == []
    assert "nothing to win" in describe_maintenance(told(database))


HELD: list[Any] = []  # open files are locks


def running(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.closing(sqlite3.connect(database)) as work:
        work.execute("UPDATE execution_entity SET status = 'running' WHERE id = 1")
        work.commit()


def full(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(database)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


def held(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = database.parents[2] / "held"
    place.write_text("`ownstack upgrade` by anna since then\n")
    monkeypatch.setattr(journal, "lock_path", lambda prefix, uid: str(place))
    HELD.append(place.open("a"))
    fcntl.flock(HELD[-1], fcntl.LOCK_EX)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (running, "1 workflows were running"),
        (full, "1 MiB are free"),
        (held, "being worked on: `ownstack upgrade` by anna"),
    ],
)
def test_it_is_put_off_and_says_why(
    make: Any, word: str, database: Path, boss: Boss, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(database, monkeypatch)
    assert n8n_maintain.maintain(spec(database), silent)["data"]["did"] == "postponed"
    assert boss.asked == []
    assert word in describe_maintenance(told(database))


@pytest.mark.parametrize("there", [True, False])
def test_meanwhile_no_run_starts_n8n(there: bool, database: Path, boss: Boss, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it wrote then would go with the old file."""
    place = database.parents[2] / "held"
    if there:
        place.write_text("")
    monkeypatch.setattr(journal, "lock_path", lambda prefix, uid: str(place))
    compact, seen = n8n_maintain.compact, []

    def looked(path: str) -> None:
        seen.append(bool(journal.holder("ownstack")))
        compact(path)

    monkeypatch.setattr(n8n_maintain, "compact", looked)
    assert n8n_maintain.maintain(spec(database), silent)["data"]["did"] == "vacuumed"
    assert seen == [there]
    assert journal.holder("ownstack") == ""


def test_while_a_backup_is_made_it_waits_for_the_next_time(database: Path, boss: Boss) -> None:
    with open(spec(database)["lock"], "a", encoding="ascii") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StepError):
            n8n_maintain.maintain(spec(database), silent)
    assert boss.asked == []
    assert "failed" in describe_maintenance(told(database))


def test_a_damaged_database_is_left_as_it_is_and_n8n_runs_again(database: Path, boss: Boss) -> None:
    data = bytearray(database.read_bytes())
    data[4096 * 3 : 4096 * 3 + 2000] = b"\xff" * 2000
    database.write_bytes(data)
    with pytest.raises((StepError, sqlite3.Error)):
        n8n_maintain.maintain(spec(database), silent)
    assert database.read_bytes() == bytes(data)
    assert boss.asked[-1:] in ([], ["start"])
    assert [path.name for path in database.parent.iterdir()] == ["database.sqlite"]


@pytest.mark.parametrize("linked", ["database.sqlite", "../.n8n"])
def test_what_lies_behind_a_link_is_not_touched(linked: str, database: Path, boss: Boss) -> None:
    """This runs as root, and the link may be n8n's own: to another service's database."""
    link, other = database.parent / linked, database.parents[1] / "other"
    os.rename(os.path.normpath(link), other)
    Path(os.path.normpath(link)).symlink_to(other)
    before = dump(database)
    with pytest.raises(StepError) as caught:
        n8n_maintain.maintain(spec(database), silent)
    assert caught.value.code == "link"
    assert (dump(database), boss.asked) == (before, [])


def test_somebody_else_at_the_database_stops_it(database: Path, boss: Boss) -> None:
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT * FROM workflow_entity").fetchall()
        with contextlib.closing(sqlite3.connect(database)) as work:
            work.execute("INSERT INTO workflow_entity VALUES ('later')")
            work.commit()
        before = dump(database)
        with pytest.raises(StepError) as caught:
            n8n_maintain.maintain(spec(database), silent)
    assert caught.value.code == "busy"
    assert boss.asked == ["stop", "start"]
    assert dump(database) == before


def test_cut_off_before_the_rename_the_old_one_is_there_and_n8n_runs_again(
    database: Path, boss: Boss, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = dump(database)

    def killed(source: str, target: str) -> None:
        (database.parent / "database.sqlite.compact").write_bytes(b"left")
        os._exit(9)

    child = os.fork()
    if not child:
        monkeypatch.setattr(os, "replace", killed)
        try:
            n8n_maintain.compact(str(database))
        finally:
            os._exit(1)
    os.waitpid(child, 0)
    n8n_maintain._note(spec(database), status="working", start=True)
    assert dump(database) == before
    assert n8n_maintain.settle(spec(database), silent)["changed"]
    assert boss.asked == ["start"]
    assert [path.name for path in database.parent.iterdir()] == ["database.sqlite"]
    assert not n8n_maintain.settle(spec(database), silent)["changed"]
    assert "it was cut off" in describe_maintenance(told(database))


@pytest.mark.parametrize("manager", ["systemd", "systemd-user"])
def test_systemd_accepts_the_units(manager: str, tmp_path: Path) -> None:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not installed")
    made = machines.plan().model_copy(update={"manager": manager})
    units = []
    for file in maintain.files(made)[1:]:
        path = tmp_path / Path(file.path).name
        # the programs that the units start are not on this machine
        path.write_text(file.content.replace("/opt/ownstack/base/current/runner", "/bin/true"))
        units.append(path)
    mode = ["--user"] if manager == "systemd-user" else []
    env = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    run = subprocess.run([tool, *mode, "verify", *units], capture_output=True, text=True, check=False, env=env)
    assert run.returncode == 0, run.stderr
    assert "Unknown" not in run.stderr, run.stderr


def test_without_systemd_it_is_named_as_absent() -> None:
    made = machines.plan("container-cgroup-v2", {"roles": ["qdrant", "ollama", "models", "open_webui", "n8n"]})
    assert not maintain.wanted(made)
    assert any("no timer without systemd" in text for text in made.absent_protections)
