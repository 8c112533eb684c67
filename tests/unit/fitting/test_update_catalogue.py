"""The maintainers' catalogue refresh, against a registry on loopback that serves ranges."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ownstack.fitting.catalogue import load_catalogue

from .golden import small_llama

BLOB = small_llama() + b"\0" * 3_000_000
DIGEST = "sha256:" + hashlib.sha256(BLOB).hexdigest()


class Registry(BaseHTTPRequestHandler):
    served = 0

    def do_GET(self) -> None:
        if self.path == "/v2/library/tiny/manifests/1b":
            layer = {"mediaType": "application/vnd.ollama.image.model", "digest": DIGEST, "size": len(BLOB)}
            self.answer(200, json.dumps({"schemaVersion": 2, "layers": [layer]}).encode())
        elif self.path == f"/v2/library/tiny/blobs/{DIGEST}":
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
            assert match is not None
            part = BLOB[int(match[1]) : int(match[2]) + 1]
            Registry.served += len(part)
            self.answer(206, part)
        else:
            self.answer(404, b"{}")

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def registry() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def tool() -> ModuleType:
    path = Path(__file__).parents[3] / "tools" / "update_catalogue.py"
    spec = importlib.util.spec_from_file_location("update_catalogue", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_entry_is_written_from_the_header(registry: str, tmp_path: Path) -> None:
    path = tmp_path / "catalogue.json"
    path.write_text('{"schema":1,"models":[]}')
    Registry.served = 0
    assert tool().main(["--registry", registry, "--catalogue", str(path), "tiny:1b"]) == 0
    entry = load_catalogue(path).entries["tiny:1b"]
    assert (entry.verified, entry.arch, entry.context) == ("header", "llama", 2048)
    assert entry.raw["quants"]["F32"]["file"] == len(BLOB)
    assert entry.raw["quants"]["F32"]["digest"] == DIGEST
    assert entry.exact("F32")
    assert len(entry.model("F32").layers) == 2
    assert Registry.served < len(BLOB)  # the weights are not fetched


def test_a_model_that_is_not_there(registry: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "catalogue.json"
    path.write_text('{"schema":1,"models":[]}')
    assert tool().main(["--registry", registry, "--catalogue", str(path), "none:1b"]) == 2
    assert "404" in capsys.readouterr().err
    assert path.read_text() == '{"schema":1,"models":[]}'
