"""Second instances of services: of the box's own make, in places and on ports that are not the box's."""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from ownstack.engine import scratch as engine
from ownstack.runner import scratch
from ownstack.runner.core import Event, StepError
from tests.unit import machines
from tests.unit.test_hardening import MOST, exposure


def silent(event: Event) -> None:
    """Nobody listens."""


def text(spec: dict[str, Any]) -> str:
    return "\n".join([*[file["content"] for file in spec["files"]], *[one["text"] for one in spec["services"]]])


def test_it_has_nothing_of_the_box_but_its_programs_and_accounts() -> None:
    plan = machines.plan()
    spec = engine.spec(plan, "drill")
    assert [one["name"] for one in spec["services"]] == ["qdrant", "open_webui", "n8n"]
    root = f"{plan.layout.var}/scratch/drill"
    assert spec["root"] == root
    written = text(spec)
    for name in ("open_webui", "n8n", "qdrant"):
        assert f"{root}/var/{name}" in written
        assert f"{plan.layout.var}/{name}" not in written
        assert f"{plan.layout.etc}/{name}" not in written
    assert plan.layout.secrets not in written
    assert all(file["path"].startswith(root) for file in spec["files"])
    own = {port for role in plan.roles for port in role.ports.values()}
    other = [port for one in spec["services"] for port in one["ports"]]
    assert len(set(other)) == 4
    assert not own & set(other)
    assert all(1024 < port < 32768 for port in other)
    assert f":{plan.role('qdrant').ports['port']}" not in written.replace(plan.engine_url, "")
    assert {f"User={plan.account(one['name'])}" in one["text"] for one in spec["services"]} == {True}


def test_its_network_is_closed_and_folders_of_the_host_are_not_bound() -> None:
    plan = machines.plan(flags={"network.n8n": "internet"})
    bound = plan.model_copy(update={"folders": (("n8n:mine", "/home/me/papers", True),)})
    for one in engine.spec(bound, "drill")["services"]:
        assert "IPAddressDeny=any" in one["text"]
        assert "/home/me/papers" not in one["text"]


def test_its_units_are_as_sealed_as_those_of_the_box(tmp_path: Path) -> None:
    for one in engine.spec(machines.plan(), "drill")["services"]:
        path = tmp_path / f"{one['unit']}.service"
        path.write_text(one["text"])
        assert exposure(path) <= MOST


def test_other_programs_are_links_in_its_own_folder(tmp_path: Path) -> None:
    plan = machines.plan()
    release = tmp_path / "opt/n8n/releases/2"
    (tmp_path / "opt/n8n/releases/1").mkdir(parents=True)
    release.mkdir()
    (tmp_path / "opt/n8n/current").symlink_to("releases/1")
    (tmp_path / "opt/node").mkdir()
    (tmp_path / "var/run").mkdir(parents=True)
    (tmp_path / "opt/node/current").symlink_to(tmp_path)
    layout = plan.layout.model_copy(update={"opt": str(tmp_path / "opt"), "var": str(tmp_path / "var")})
    spec = engine.spec(plan.model_copy(update={"layout": layout}), "rehearsal", {"n8n": str(release)})
    spec["services"] = []
    with scratch.place(spec):
        links = tmp_path / "var/scratch/rehearsal/opt"
        assert (links / "n8n/current").resolve() == release
        assert scratch.left(spec)
        assert (links / "node/current").resolve() == tmp_path
    assert not (tmp_path / "var/scratch/rehearsal").exists()
    assert not scratch.left(spec)


def test_a_taken_port_is_told_before_anything_starts() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        one = {"name": "n8n", "ports": [taken.getsockname()[1]], "memory_bytes": 0}
        with pytest.raises(StepError) as caught:
            scratch._room(one)
    assert caught.value.code == "port-taken"


def test_short_memory_is_told_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "available", lambda: 300 << 20)
    with pytest.raises(StepError) as caught:
        scratch._room({"name": "n8n", "ports": [], "memory_bytes": 500 << 20})
    assert caught.value.code == "memory"


def test_a_copy_does_not_begin_to_work_by_itself(tmp_path: Path) -> None:
    path = tmp_path / ".n8n/database.sqlite"
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as made, made:
        made.execute("CREATE TABLE workflow_entity (id TEXT, active INTEGER, activeVersionId TEXT)")
        made.execute("CREATE TABLE execution_entity (id TEXT, status TEXT, waitTill TEXT)")
        made.execute("INSERT INTO workflow_entity VALUES ('a', 1, 'v')")
        made.execute("INSERT INTO execution_entity VALUES ('b', 'waiting', '2026-11-29'), ('c', 'success', NULL)")
    scratch.at_rest({"services": [{"name": "n8n", "folder": str(tmp_path)}]}, "n8n")
    with contextlib.closing(sqlite3.connect(path)) as seen:
        assert seen.execute("SELECT * FROM workflow_entity").fetchall() == [("a", 0, None)]
        rows = seen.execute("SELECT status, waitTill FROM execution_entity ORDER BY id").fetchall()
    assert rows == [("canceled", None), ("success", None)]


@pytest.fixture
def counter(tmp_path: Path) -> dict[str, Any]:
    """A second instance where no systemd is: a small web server in the place of a service."""
    port = 20000 + os.getpid() % 10000  # below those that the system gives to the servers of other tests
    runner = tmp_path / "runner"
    runner.write_text(
        "#!/bin/sh\n"
        f"cd {tmp_path}/scratch/var && exec python3 -m http.server --bind 127.0.0.1 {port}\n"
    )  # fmt: skip
    runner.chmod(0o755)
    one = {
        "name": "n8n", "unit": "x", "text": "{}", "ready": f"http://127.0.0.1:{port}/", "timeout": 20, "like": "/",
        "folder": f"{tmp_path}/scratch/var/n8n", "hidden": [], "ports": [port], "memory_bytes": 0,
    }  # fmt: skip
    return {
        "root": f"{tmp_path}/scratch", "mark": f"{tmp_path}/mark", "etc": f"{tmp_path}/scratch/etc",
        "secrets_dir": f"{tmp_path}/scratch/secrets",
        "folders": [], "files": [], "services": [one], "opt": "", "programs": {}, "manager": "supervisord",
        "runner": str(runner),
    }  # fmt: skip


def test_without_systemd_it_is_a_process_that_ends_with_the_place(counter: dict[str, Any]) -> None:
    with scratch.place(counter):
        scratch.start(counter, "n8n", silent)
        assert scratch.runs(counter, "n8n")
        scratch.stop(counter, "n8n")
        assert not scratch.runs(counter, "n8n")
        scratch.start(counter, "n8n", silent)
        with pytest.raises(StepError, match="is taken"):
            scratch.start(counter, "n8n", silent)
    assert not Path(counter["root"]).exists()
    scratch._room(counter["services"][0])


def test_one_that_ends_at_once_is_told_with_its_last_words(counter: dict[str, Any]) -> None:
    Path(counter["runner"]).write_text("#!/bin/sh\necho the key does not fit\nexit 1\n")
    with scratch.place(counter), pytest.raises(StepError, match="the key does not fit") as caught:
        scratch.start(counter, "n8n", silent)
    assert caught.value.code == "scratch-not-ready"
