"""What a backup says of models and versions, and which models are in it."""

from __future__ import annotations

import hashlib
import json
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ownstack.runner import backup
from ownstack.runner.backup_file import MANIFEST
from ownstack.runner.core import Event, StepError
from tests.fixtures.small_box import SmallBox


def silent(event: Event) -> None:
    """Nobody listens."""


@pytest.fixture
def box(tmp_path: Path) -> SmallBox:
    return SmallBox(tmp_path, "first")


def made(box: SmallBox, **more: Any) -> dict[str, Any]:
    return dict(backup.make(box.make_spec(**more), silent)["data"])


@dataclass
class Engine:
    """A store of models as the engine lays it out (0.34), and its answers.

    One model was fetched by the kit, one pulled by hand, one made here of another, one of a file.
    """

    url: str
    folder: Path
    digests: dict[str, str]

    def spec(self, record: Path, with_models: bool) -> dict[str, Any]:
        record.write_text(json.dumps({"fetched:1": {"blob": "sha256:" + "a" * 64}}))
        return {
            "url": self.url, "folder": str(self.folder), "record": str(record), "planned": [],
            "with_models": with_models,
        }  # fmt: skip


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    folder, digests = tmp_path / "models", {}
    (folder / "blobs").mkdir(parents=True)
    for name in ("by-hand", "fetched", "mine", "mine-of-a-file"):
        layers: list[dict[str, str]] = []
        for part in ("weights", "config"):
            data = f"{name} {part}".encode()
            digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
            (folder / "blobs" / digest.replace(":", "-")).write_bytes(data)
            layers.append({"digest": digest})
        if name.startswith("mine"):
            layers[0]["from"] = "fetched:1" if name == "mine" else "a" * 64
        manifest = json.dumps({"layers": layers[:1], "config": layers[1]}).encode()
        manifest += b"\n" if name.startswith("mine") else b""
        path = folder / f"manifests/registry.ollama.ai/library/{name}/1"
        path.parent.mkdir(parents=True)
        path.write_bytes(manifest)
        digests[f"{name}:1"] = hashlib.sha256(manifest).hexdigest()

    class Handler(BaseHTTPRequestHandler):
        def say(self, value: Any) -> None:
            data = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self.say({"models": [{"name": name, "digest": digest, "size": 9} for name, digest in digests.items()]})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.say({"modelfile": f"FROM /blobs/sha256-{'a' * 64}"})

        def log_message(self, *_: Any) -> None:
            """It says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Engine(f"http://127.0.0.1:{server.server_port}", folder, digests)
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("all_of_them", [False, True])
def test_models_are_listed_by_digest_and_those_made_here_are_in_it(
    all_of_them: bool, box: SmallBox, engine: Engine, tmp_path: Path
) -> None:
    data = made(box, models=engine.spec(tmp_path / "record", all_of_them))
    digests = sorted(engine.digests.items())
    about = [{"name": n, "digest": d, "size": 9, "made_here": n.startswith("mine")} for n, d in digests]
    assert data["models"] == about
    reader = box.reader(data["file"])
    assert reader.manifest["models"] == about, "what can be read without a key"
    held = {name.rsplit("/", 2)[1] for name in reader.index if name.startswith("models/manifests")}
    mine = {"mine", "mine-of-a-file"}
    assert held == ({"by-hand", "fetched", *mine} if all_of_them else mine)
    blobs = [name for name in reader.index if name.startswith("models/blobs/")]
    assert len(blobs) == 2 * len(held)
    for name in blobs:
        assert hashlib.sha256(reader.read(name)).hexdigest() == name[-64:]


def test_a_model_that_is_damaged_in_the_store_makes_no_backup(box: SmallBox, engine: Engine, tmp_path: Path) -> None:
    for path in (engine.folder / "blobs").iterdir():
        if path.read_bytes() == b"mine weights":
            path.write_bytes(b"mine, bitten")
    with pytest.raises(StepError) as caught:
        made(box, models=engine.spec(tmp_path / "record", False))
    assert caught.value.code == "model"
    assert not list((box.folder / "backups").glob("*"))


def test_the_manifest_names_versions_and_the_hash_of_every_part(box: SmallBox) -> None:
    path = made(box, versions={"n8n": "2.41.1", "open-webui": "0.12.4"})["file"]
    with tarfile.open(path) as tar:
        stream = tar.extractfile(MANIFEST)
        assert stream is not None
        manifest = json.load(stream)
        parts = {one.name: tar.extractfile(one) for one in tar if one.name != MANIFEST}
        assert manifest["versions"] == {"n8n": "2.41.1", "open-webui": "0.12.4"}
        assert manifest["kit_version"] == "0.1.0"
        assert set(manifest["files"]) == set(parts)
        for name, content in parts.items():
            assert content is not None
            data = content.read()
            assert manifest["files"][name] == {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
