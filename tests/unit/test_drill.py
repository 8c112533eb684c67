"""The restore drill without systemd and without services: what it counts, what it notes, what it takes away again."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from ownstack.runner import backup, drill, scratch
from ownstack.runner.core import Event, StepError
from tests.fixtures.small_box import CANARY, SmallBox, identity


def silent(event: Event) -> None:
    """Nobody listens."""


class Answers(BaseHTTPRequestHandler):
    """Open WebUI and n8n as the kit sees them; `says` is what they answer, by the beginning of the path."""

    says: ClassVar[dict[str, tuple[int, Any]]] = {}

    def do_GET(self) -> None:
        status, body = next((answer for path, answer in self.says.items() if self.path.startswith(path)), (404, {}))
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """It says nothing."""


@pytest.fixture
def box(tmp_path: Path) -> SmallBox:
    found = SmallBox(tmp_path, "first")
    for name in ("open_webui_kit_key", "n8n_api_key"):
        (found.secrets / name).write_text(f"{CANARY}-{name}\n")
    (found.var / "n8n/.n8n/config").write_text(json.dumps({"encryptionKey": f"{CANARY}-first"}))
    return found


@pytest.fixture
def spec(box: SmallBox, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A drill of a backup of the box. Services are a web server that is there already."""
    monkeypatch.setattr(Answers, "says", {"/api/v1/users/": (200, {"total": 2}), "/api/v1/workflows": (200, {})})
    monkeypatch.setattr(scratch, "start", lambda place, name, emit: None)
    monkeypatch.setattr(scratch, "stop", lambda place, name: None)
    monkeypatch.setattr(drill, "_decrypted", lambda held, about, wanted, emit: wanted)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    root = box.var / "scratch/drill"
    services = [
        {"name": name, "folder": f"{root}/var/{name}", "like": str(box.var / name),
         "ready": f"http://127.0.0.1:{server.server_port}/ready"}
        for name in ("open_webui", "n8n")
    ]  # fmt: skip
    place = {
        "root": str(root), "mark": str(box.var / "run/drill.json"), "etc": f"{root}/etc",
        "secrets_dir": f"{root}/etc/secrets", "folders": [], "files": [], "services": services, "opt": "",
        "programs": {}, "manager": "systemd", "runner": "",
    }  # fmt: skip
    made = backup.make(box.make_spec(), silent)["data"]["file"]
    yield {
        **box.verify_spec(made, identity_file=str(box.identity)), "lock": str(box.var / "run/lock"),
        "state": str(box.var / "backups.json"), "services": box.services, "place": place, "secrets": [], "n8n": {},
    }  # fmt: skip
    server.shutdown()
    server.server_close()


def noted(spec: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(spec["state"]).read_text())
    return found


def test_what_is_counted_is_noted_and_nothing_stays(box: SmallBox, spec: dict[str, Any]) -> None:
    before = box.content()
    data = drill.run(spec, silent)["data"]
    assert data["counts"] == {
        "accounts": 2, "chats": 3, "files": 1, "knowledge collections": 1, "workflows": 1, "credentials": 2,
        "credentials decrypted": 2,
    }  # fmt: skip
    state = noted(spec)
    assert state["drill"] == state["restorable"] == data
    assert state["last"]["file"] == spec["file"]
    assert box.content() == before
    assert not Path(spec["place"]["root"]).exists()
    assert not Path(spec["place"]["mark"]).exists()


def test_it_lies_there_with_its_own_secrets_and_paths(
    box: SmallBox, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def start(place: dict[str, Any], name: str, emit: Any) -> None:
        folder = Path(scratch.service(place, name)["folder"])
        seen[name] = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        seen["key"] = (Path(place["secrets_dir"]) / "n8n_encryption_key").read_text().strip()
        if name == "open_webui":
            with contextlib.closing(sqlite3.connect(folder / "webui.db")) as database:
                ((seen["upload"],),) = database.execute("SELECT path FROM file").fetchall()

    monkeypatch.setattr(scratch, "start", start)
    (box.secrets / "n8n_encryption_key").write_text("another one since\n")
    drill.run(spec, silent)
    assert seen["open_webui"] == {"webui.db", "uploads/first-note.txt"}
    assert ".n8n/config" in seen["n8n"]
    assert seen["key"] == f"{CANARY}-first"
    assert seen["upload"] == f"{spec['place']['root']}/var/open_webui/uploads/first-note.txt"


@pytest.mark.parametrize(
    ("path", "answer", "words"),
    [
        ("/api/v1/users/", (401, {}), "refuses the kit's own account"),
        ("/api/v1/users/", (200, {"total": 1}), "names 1 accounts, the backup holds 2"),
        ("/api/v1/workflows", (401, {}), "n8n refuses the kit's own key"),
    ],
)
def test_a_service_that_does_not_know_the_kit_is_told(
    path: str, answer: tuple[int, Any], words: str, spec: dict[str, Any]
) -> None:
    drill.run(spec, silent)
    Answers.says[path] = answer
    with pytest.raises(StepError, match=words) as caught:
        drill.run(spec, silent)
    assert caught.value.code == "not-restorable"
    state = noted(spec)
    assert state["drill"]["ok"] is False
    assert state["drill"]["tried"] is True
    assert words in state["drill"]["message"]
    assert state["restorable"]["ok"] is True
    assert not Path(spec["place"]["root"]).exists()


def test_rows_that_a_start_loses_are_told(spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def start(place: dict[str, Any], name: str, emit: Any) -> None:
        if name == "open_webui":
            path = Path(scratch.service(place, name)["folder"]) / "webui.db"
            with contextlib.closing(sqlite3.connect(path)) as database, database:
                database.execute("DELETE FROM chat WHERE id = 1")

    monkeypatch.setattr(scratch, "start", start)
    with pytest.raises(StepError, match="2 chats are there after the start, 3 in the backup"):
        drill.run(spec, silent)


def test_another_key_than_the_data_has_is_told(box: SmallBox, spec: dict[str, Any]) -> None:
    (box.secrets / "n8n_encryption_key").write_text("another one\n")
    other = backup.make(box.make_spec(hostname="other"), silent)["data"]["file"]
    with pytest.raises(StepError) as caught:
        drill.run({**spec, "file": other}, silent)
    assert caught.value.code == "n8n-key"
    assert noted(spec)["drill"]["ok"] is False


def test_what_could_not_be_tried_says_nothing_of_the_backup(
    spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(place: dict[str, Any], name: str, emit: Any) -> None:
        raise StepError("too little memory", hint="later", code="memory")

    monkeypatch.setattr(scratch, "start", start)
    with pytest.raises(StepError):
        drill.run(spec, silent)
    assert noted(spec)["drill"]["tried"] is False
    assert "restorable" not in noted(spec)


def test_a_wrong_key_is_no_word_on_the_backup(spec: dict[str, Any]) -> None:
    Path(spec["identity_file"]).write_text(identity()[0] + "\n")
    with pytest.raises(StepError) as caught:
        drill.run(spec, silent)
    assert caught.value.code == "wrong-passphrase"
    assert "drill" not in noted(spec)


def test_a_backup_is_tried_when_it_is_made(box: SmallBox, spec: dict[str, Any]) -> None:
    told = {key: value for key, value in spec.items() if key not in ("file", "identity_file")}
    done = backup.make(box.make_spec(hostname="tried", drill=told), silent)["data"]
    assert done["drill"]["ok"]
    assert noted(spec)["restorable"]["file"] == done["file"]


def test_a_timer_tries_one_a_week_also_where_only_a_recipient_opens_it(box: SmallBox, spec: dict[str, Any]) -> None:
    told = {key: value for key, value in spec.items() if key not in ("file", "identity_file")}
    timed = {**box.make_spec(hostname="timed"), "drill": told}
    left = box.var / "work" / backup.LEFT
    made = backup.scheduled(timed, silent)["data"]
    assert left.stat().st_mode & 0o777 == 0o600
    assert "drill" not in noted(spec)
    drill.scheduled(timed, silent)
    assert not left.exists()
    first = noted(spec)["restorable"]
    assert first["file"] == made["file"]
    time.sleep(1.1)
    backup.scheduled(timed, silent)
    assert not drill.scheduled(timed, silent)["data"].get("ok")
    assert not left.exists()
    assert noted(spec)["restorable"] == first, "a week has not passed"
    state = noted(spec)
    state["restorable"]["time"] -= drill.WEEK_S
    Path(spec["state"]).write_text(json.dumps(state))
    time.sleep(1.1)
    made = backup.scheduled(timed, silent)["data"]
    drill.scheduled(timed, silent)
    assert noted(spec)["restorable"]["file"] == made["file"]


def test_what_was_cut_off_is_taken_away(spec: dict[str, Any]) -> None:
    root, mark = Path(spec["place"]["root"]), Path(spec["place"]["mark"])
    root.mkdir(parents=True)
    (root / "webui.db").write_text("in the clear")
    mark.write_text("{}")
    with backup.alone(spec["lock"]):
        assert not drill.clear(spec, silent)["data"]["cleared"], "one that goes on is left alone"
    assert root.exists()
    assert drill.clear(spec, silent)["data"]["cleared"]
    assert not root.exists()
    assert not mark.exists()
    assert not drill.clear(spec, silent)["changed"]
