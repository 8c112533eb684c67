"""Backups of a real Qdrant that is written to, each restored into a second one and compared."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ownstack.runner import backup, restore
from ownstack.runner.core import Event
from ownstack.runner.http import request
from ownstack.runner.unpack import unpack
from tests.e2e.test_ollama_engine import artefact
from tests.fixtures.small_box import SmallBox

KEY = "key-of-the-test"
HEADERS = {"api-key": KEY}
BATCH, BATCHES = 10, 300
CONFIG = """telemetry_disabled: true
storage: {{storage_path: {data}/storage, snapshots_path: {data}/snapshots, temp_path: {data}/tmp}}
service: {{host: 127.0.0.1, http_port: {port}, grpc_port: null, api_key: {key}, enable_snapshot_url_recovery: false}}
"""


def silent(event: Event) -> None:
    """Nobody listens."""


class Qdrant:
    """The real program on a free port of this machine, with data in a folder of the test."""

    def __init__(self, program: Path, data: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        data.mkdir(parents=True, exist_ok=True)
        config = data / "config.yaml"
        config.write_text(CONFIG.format(data=data, port=port, key=KEY))
        command = [str(program), "--config-path", str(config)]
        self.process = subprocess.Popen(command, cwd=data, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(300):
            if request("GET", f"{self.url}/readyz")[0] == 200:
                return
            time.sleep(0.1)
        self.stop()
        raise TimeoutError("Qdrant did not start")

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        status, answer = request(method, self.url + path, body, HEADERS)
        assert status == 200, answer
        return answer["result"]

    def put(self, number: int) -> None:
        """One request with points that belong together; after a while they replace those of an earlier one."""
        about, batch = {"batch": number % BATCHES, "number": number}, number % BATCHES
        points = [
            {"id": batch * BATCH + n, "vector": [0.1, 0.2, 0.3, number / 999], "payload": about} for n in range(BATCH)
        ]
        self.ask("PUT", "/collections/notes/points?wait=true", {"points": points})

    def batches(self) -> dict[int, list[int]]:
        """The numbers of the requests that the points of each batch came with."""
        found: dict[int, list[int]] = {}
        offset = None
        while True:
            page = self.ask("POST", "/collections/notes/points/scroll", {"limit": 5000, "offset": offset})
            for point in page["points"]:
                found.setdefault(point["payload"]["batch"], []).append(point["payload"]["number"])
            offset = page["next_page_offset"]
            if offset is None:
                return found

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qdrant")
    unpack(str(artefact("qdrant", "qdrant", "npm-third-party")), str(folder), {"format": "raw", "name": "qdrant"})
    return folder / "qdrant"


@pytest.fixture
def live(program: Path, tmp_path: Path) -> Iterator[Qdrant]:
    started = Qdrant(program, tmp_path / "live")
    started.ask("PUT", "/collections/notes", {"vectors": {"size": 4, "distance": "Cosine"}})
    alias = {"create_alias": {"collection_name": "notes", "alias_name": "mine"}}
    started.ask("POST", "/collections/aliases", {"actions": [alias]})
    yield started
    started.stop()


def trial(box: SmallBox, live: Qdrant, other: SmallBox, program: Path) -> None:
    """One backup while batches come in, restored into an empty Qdrant: nothing is missing that was there before."""
    before = live.batches()
    data = backup.make(box.make_spec(qdrant={"url": live.url}, keep=1), silent)["data"]
    after = live.batches()
    folder = other.var / "qdrant"
    folder.mkdir(exist_ok=True)
    spec = other.restore_spec(data["file"])
    spec["services"] = [*spec["services"], {"name": "qdrant", "folder": str(folder)}]
    restore.stage(spec, silent)
    restore.swap(spec, silent)
    empty = Qdrant(program, folder)
    try:
        restore.vectors({**spec, "url": empty.url}, silent)
        found = empty.batches()
        assert empty.ask("GET", "/aliases")["aliases"] == [{"alias_name": "mine", "collection_name": "notes"}]
    finally:
        empty.stop()
    restore.finish(spec, silent)
    shutil.rmtree(folder)
    assert set(before) <= set(found) <= set(after)
    for batch, numbers in found.items():
        assert len(numbers) == BATCH
        assert len(set(numbers)) == 1, f"a request is torn: {numbers}"
        assert min(before.get(batch, [0])) <= numbers[0] <= max(after[batch])


def trials(tmp_path: Path, live: Qdrant, program: Path, number: int) -> None:
    box, other = SmallBox(tmp_path / "box", "first"), SmallBox(tmp_path / "other", "second")
    for one in (box, other):
        (one.secrets / "qdrant_api_key").write_text(f"{KEY}\n")
    other.identity.write_text(box.identity.read_text())
    stop, written = threading.Event(), [0]

    def write() -> None:
        while not stop.is_set():
            live.put(written[0])
            written[0] += 1
            time.sleep(0.005)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(number):
            came = written[0]
            trial(box, live, other, program)
            assert written[0] > came, "nobody wrote meanwhile"
            time.sleep(1.05)  # two backups of one second have one name
    finally:
        stop.set()
        thread.join()
    print(f"{number} backups of vectors while {written[0]} batches came in: none torn, none missing")


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="Qdrant comes for x86_64 from the registry")
def test_vectors_backed_up_while_they_come_in_are_whole(live: Qdrant, program: Path, tmp_path: Path) -> None:
    trials(tmp_path, live, program, 3)


@pytest.mark.slow
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="Qdrant comes for x86_64 from the registry")
def test_a_hundred_backups_of_vectors_are_whole(live: Qdrant, program: Path, tmp_path: Path) -> None:
    trials(tmp_path, live, program, 100)
