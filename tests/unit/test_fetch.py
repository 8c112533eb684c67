"""Fetching: whole and right, or not there. Against a real server with faults, and mirror folders."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ownstack.runner import fetch
from ownstack.runner.core import Event, StepError
from tests.hosts.serve import Answer, Fault, FileServer

BODY = bytes(range(256)) * 12_000  # three reads of the fetcher
RIGHT = hashlib.sha256(BODY).hexdigest()
WRONG = hashlib.sha256(b"other").hexdigest()


def silent(event: Event) -> None:
    """Nobody listens."""


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer(lambda host, path: Answer(BODY) if path == "/file" else None) as made:
        yield made


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ownstack.runner.fetch.time.sleep", lambda seconds: None)


def failed(url: str, dest: Path, sha256: str = RIGHT, mirror: str = "") -> StepError:
    with pytest.raises(StepError) as caught:
        fetch.fetch(url, str(dest), sha256, silent, mirror=mirror)
    return caught.value


def test_a_file_is_brought_once_and_its_bytes_are_told(server: FileServer, tmp_path: Path) -> None:
    events: list[Event] = []
    dest = tmp_path / "deep" / "file"
    assert fetch.fetch(f"{server.url}/file", str(dest), RIGHT, events.append)
    assert dest.read_bytes() == BODY
    assert events[0]["what"] == "file"
    assert events[0]["total"] == len(BODY)
    assert not fetch.fetch(f"{server.url}/file", str(dest), RIGHT, silent)
    assert server.paths() == ["/file"]
    assert os.listdir(dest.parent) == ["file"]


def test_a_cut_connection_is_continued_where_it_stopped(server: FileServer, tmp_path: Path) -> None:
    server.faults["/file"] = Fault(cut_after=1_500_000, times=1)
    dest = tmp_path / "file"
    assert fetch.fetch(f"{server.url}/file", str(dest), RIGHT, silent)
    assert dest.read_bytes() == BODY
    first, second = server.asked
    assert first.range == ""
    begin = int(second.range.removeprefix("bytes=").rstrip("-"))
    assert 0 < begin < len(BODY)
    assert second.status == 206
    assert second.sent == len(BODY) - begin


def test_a_later_run_continues_an_earlier_one(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(BODY[:1_000_000])
    assert fetch.fetch(f"{server.url}/file", str(tmp_path / "file"), RIGHT, silent)
    assert (tmp_path / "file").read_bytes() == BODY
    assert server.asked[0].range == "bytes=1000000-"


def test_a_part_that_is_whole_already_needs_no_bytes_twice(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(BODY)
    assert fetch.fetch(f"{server.url}/file", str(tmp_path / "file"), RIGHT, silent)
    assert (tmp_path / "file").read_bytes() == BODY


def test_always_truncated_fails_with_a_reason_and_keeps_only_the_part(server: FileServer, tmp_path: Path) -> None:
    server.faults["/file"] = Fault(cut_after=0)
    error = failed(f"{server.url}/file", tmp_path / "file")
    assert error.code == "fetch-network"
    assert "bytes" in error.message or "closed" in error.message.lower()
    assert not (tmp_path / "file").exists()
    assert len(server.asked) == fetch.TRIES


@pytest.mark.parametrize("fault", [Fault(flip=True), Fault()], ids=["damaged", "other-content"])
def test_a_wrong_hash_leaves_nothing(server: FileServer, tmp_path: Path, fault: Fault) -> None:
    server.faults["/file"] = fault
    expected = RIGHT if fault.flip else WRONG
    error = failed(f"{server.url}/file", tmp_path / "file", expected)
    assert error.code == "fetch-hash"
    assert expected in error.message
    assert list(tmp_path.iterdir()) == []


def test_an_older_file_of_the_same_name_is_replaced_only_by_the_right_one(server: FileServer, tmp_path: Path) -> None:
    dest = tmp_path / "file"
    dest.write_bytes(b"old")
    failed(f"{server.url}/file", dest, WRONG)
    assert dest.read_bytes() == b"old"
    assert fetch.fetch(f"{server.url}/file", str(dest), RIGHT, silent)
    assert dest.read_bytes() == BODY


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (403, 1), (503, 4)])
def test_an_error_answer_is_told_and_retried_only_where_that_helps(
    server: FileServer, tmp_path: Path, status: int, tries: int
) -> None:
    server.faults["/file"] = Fault(status=status)
    error = failed(f"{server.url}/file", tmp_path / "file")
    assert (error.code, str(status) in error.message) == ("fetch-network", True)
    assert len(server.asked) == tries


def test_nobody_listens(tmp_path: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}/file"
        error = failed(url, tmp_path / "file")
    assert error.code == "fetch-network"
    assert url in error.message


def test_a_server_that_speaks_no_http(tmp_path: Path) -> None:
    """A captive portal, a wrong port: told as a failed fetch, never as a fault of the kit."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def babble() -> None:
            for _ in range(fetch.TRIES):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")

        thread = threading.Thread(target=babble, daemon=True)
        thread.start()
        error = failed(f"http://127.0.0.1:{listener.getsockname()[1]}/file", tmp_path / "file")
        thread.join(5)
    assert error.code == "fetch-network"


def test_a_mirror_address_replaces_the_network(server: FileServer, tmp_path: Path) -> None:
    server.resolve = lambda host, path: Answer(BODY) if path == "/vendor.example/a/file" else None
    url = "https://vendor.example/a/file?token=1"
    assert fetch.fetch(url, str(tmp_path / "file"), RIGHT, silent, mirror=server.url + "/")
    assert server.paths() == ["/vendor.example/a/file"]


def test_a_mirror_folder_replaces_the_network(tmp_path: Path) -> None:
    place = tmp_path / "mirror/vendor.example/a+b/file"
    place.parent.mkdir(parents=True)
    place.write_bytes(BODY)
    mirror = str(tmp_path / "mirror")
    # an address is written with escapes, a folder without
    for url in ("https://vendor.example/a+b/file", "https://vendor.example/a%2Bb/file"):
        dest = tmp_path / "out" / url.replace("/", "_")
        assert fetch.fetch(url, str(dest), RIGHT, silent, mirror=mirror)
        assert dest.read_bytes() == BODY
    error = failed("https://vendor.example/none", tmp_path / "out/none", mirror=mirror)
    assert error.code == "fetch-missing"
    place.write_bytes(b"other")
    error = failed("https://vendor.example/a+b/file", tmp_path / "out/third", mirror=mirror)
    assert error.code == "fetch-hash"
    assert not (tmp_path / "out/third").exists()


def test_a_mirror_folder_is_never_left(tmp_path: Path) -> None:
    (tmp_path / "mirror").mkdir()
    (tmp_path / "secret").write_bytes(BODY)
    error = failed("https://vendor.example/%2e%2e/%2e%2e/secret", tmp_path / "file", mirror=str(tmp_path / "mirror"))
    assert error.code == "fetch-missing"


def test_the_step_says_beforehand_whether_there_is_work(server: FileServer, tmp_path: Path) -> None:
    spec = {"url": f"{server.url}/file", "dest": str(tmp_path / "file"), "sha256": RIGHT}
    assert fetch.file({**spec, "dry": True}, silent)["changed"]
    assert server.asked == []
    assert fetch.file(spec, silent)["changed"]
    assert not fetch.file({**spec, "dry": True}, silent)["changed"]
    (tmp_path / "file").write_bytes(b"touched")
    assert fetch.file({**spec, "dry": True}, silent)["changed"]


def test_hosts_that_answer_and_hosts_that_do_not() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        name = f"127.0.0.1:{held.getsockname()[1]}"
        answers = fetch.reachable({"hosts": [name], "timeout": 2}, silent)["data"]
    assert "refused" in answers[name]
