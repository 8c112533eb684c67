"""The lab's file server and model registry: what the fetching code and a real Ollama rely on."""

from __future__ import annotations

import hashlib
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ownstack.fitting import gguf
from ownstack.runner.core import StepError
from ownstack.runner.fetch import fetch
from tests.hosts import gguf_file
from tests.hosts.registry import Registry
from tests.hosts.serve import Fault, FileServer, folder, span

DATA = bytes(range(256)) * 4000


@pytest.fixture
def served(tmp_path: Path) -> Iterator[FileServer]:
    target = tmp_path / "root" / "github.com" / "a b+c.bin"
    target.parent.mkdir(parents=True)
    target.write_bytes(DATA)
    (tmp_path / "secret").write_text("outside")
    with FileServer(folder(tmp_path / "root")) as server:
        yield server


def ask(url: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(url, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), b""


@pytest.mark.parametrize(
    ("header", "expected"),
    [("bytes=0-9", (0, 9)), ("bytes=90-", (90, 99)), ("bytes=-5", (95, 99)), ("bytes=50-500", (50, 99)),
     ("", None), ("bytes=", None), ("bytes=-", None), ("bytes=9-3", None), ("items=1-2", None),
     ("bytes=1-2,4-5", None)],
)  # fmt: skip
def test_ranges_are_read_as_the_standard_says(header: str, expected: tuple[int, int] | None) -> None:
    assert span(header, 100) == expected


def test_a_range_outside_the_file_is_refused(served: FileServer) -> None:
    with pytest.raises(ValueError, match="range"):
        span("bytes=100-", 100)
    status, headers, _ = ask(f"{served.url}/github.com/a%20b%2Bc.bin", Range=f"bytes={len(DATA)}-")
    assert (status, headers["Content-Range"]) == (416, f"bytes */{len(DATA)}")


def test_whole_part_and_head(served: FileServer) -> None:
    url = f"{served.url}/github.com/a%20b%2Bc.bin"
    assert ask(url)[2] == DATA
    status, headers, body = ask(url, Range="bytes=1000-1999")
    assert (status, body) == (206, DATA[1000:2000])
    assert headers["Content-Range"] == f"bytes 1000-1999/{len(DATA)}"
    status, headers, body = ask(url, "HEAD")
    assert (status, headers["Content-Length"], body) == (200, str(len(DATA)), b"")
    assert [asked.sent for asked in served.asked] == [len(DATA), 1000, 0]


def test_no_way_out_of_the_folder(served: FileServer) -> None:
    connection = http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=5)
    connection.request("GET", "/../secret")
    assert connection.getresponse().status == 404
    assert ask(f"{served.url}/github.com/%2e%2e/%2e%2e/secret")[0] == 404


def test_a_fetch_cut_twice_continues_where_it_stopped(served: FileServer, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("ownstack.runner.fetch.time.sleep", lambda seconds: None)
    served.faults["/github.com/a b+c.bin"] = Fault(cut_after=300_000, times=2)
    digest = hashlib.sha256(DATA).hexdigest()
    target = tmp_path / "got"
    assert fetch("https://github.com/a%20b%2Bc.bin", str(target), digest, lambda event: None, mirror=served.url)
    assert target.read_bytes() == DATA
    assert [asked.range for asked in served.asked] == ["", "bytes=300000-", "bytes=600000-"]


def test_a_wrong_bit_is_never_installed(served: FileServer, tmp_path: Path) -> None:
    served.faults["/github.com/a b+c.bin"] = Fault(flip=True)
    target = tmp_path / "got"
    with pytest.raises(StepError, match="the lock says"):
        fetch("https://github.com/a%20b%2Bc.bin", str(target), hashlib.sha256(DATA).hexdigest(), lambda event: None,
              mirror=served.url)  # fmt: skip
    assert list(tmp_path.glob("got*")) == []


def test_the_registry_says_what_is_in_the_model(tmp_path: Path) -> None:
    model = gguf_file.write(
        tmp_path / "x.gguf",
        {"general.architecture": "llama", "general.file_type": 1, "llama.block_count": 2},
        {"token_embd.weight": (64, 32), "output.weight": (64, 32)},
    )
    registry = Registry(tmp_path / "registry")
    digest = registry.add("tiny", "1m", model, template="{{ .Prompt }}", parameters={"num_ctx": 512})
    with registry.serve() as server:
        status, headers, body = ask(f"{server.url}/v2/library/tiny/manifests/1m")
        assert (status, hashlib.sha256(body).hexdigest()) == (200, digest)
        manifest = json.loads(body)
        config = json.loads(ask(f"{server.url}/v2/library/tiny/blobs/{manifest['config']['digest']}")[2])
        assert (config["model_family"], config["file_type"]) == ("llama", "F16")
        kinds = [layer["mediaType"].rpartition(".")[2] for layer in manifest["layers"]]
        assert kinds == ["model", "template", "params"]
        blob = f"/v2/library/tiny/blobs/{manifest['layers'][0]['digest']}"
        status, headers, part = ask(server.url + blob, Range="bytes=0-255")
        assert (status, headers["Location"], part) == (206, blob, model.read_bytes()[:256])
        assert int(ask(server.url + blob, "HEAD")[1]["Content-Length"]) == manifest["layers"][0]["size"]
        assert ask(f"{server.url}/v2/library/tiny/manifests/none")[0] == 404
    assert gguf.read_header(registry.root / "blobs" / manifest["layers"][0]["digest"][7:]).arch == "llama"
