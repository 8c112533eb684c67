"""The lab mirror: archives in vendors' layouts that the product's rows fetch, unpack and run; a registry for pulls."""

from __future__ import annotations

import hashlib
import importlib
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ownstack.runner import artifacts
from tests.e2e.conftest import Mirror
from tests.hosts import gguf_file, lab
from tests.hosts.commands import run
from tests.hosts.local import LocalBox
from tests.hosts.network import Network
from tests.hosts.registry import Registry
from tests.hosts.serve import FileServer, folder

SAYS_ITS_VERSION = {"qdrant": "bin/qdrant", "uv": "bin/uv", "node": "bin/node", "ollama": "bin/ollama"}


@pytest.fixture(scope="module")
def built(mirror: Mirror) -> lab.Lab:
    return mirror.lab


def rows(built: lab.Lab) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of the lab's own lock that stand for its archives."""
    urls = {one.url for one in built.made.values()}
    for path in sorted((built.kit / "roles").glob("*/artifacts.toml")):
        for artifact in tomllib.loads(path.read_text())["artifact"]:
            for row in artifact["variant"]:
                if row.get("url") in urls and "cpu" in row.get("engines", ["cpu"]):
                    yield artifact["name"], row


@pytest.mark.slow  # a provisioned host shows it too: `up` fetches and unpacks them, and `verify` has them run
def test_vendors_archives_of_the_lab_run(built: lab.Lab, tmp_path: Path) -> None:
    seen = set()
    with FileServer(folder(built.mirror)) as server:
        for name, row in rows(built):
            rule = row["unpack"]
            if row.get("parts"):
                rule = importlib.import_module("roles.ollama").unpack_rule(row, "cpu")
            current = tmp_path / name / "current"
            spec = {
                "name": name, "version": row["version"], "work": str(tmp_path / "work"), "mirror": server.url,
                "release": str(tmp_path / name / "releases/1"), "current": str(current),
                "parts": [{"url": row["url"], "sha256": row["sha256"], "size": row["size"], "unpack": rule}],
            }  # fmt: skip
            artifacts.release(spec, lambda event: None)
            seen.add(name)
            if name in SAYS_ITS_VERSION:
                said = run(current / SAYS_ITS_VERSION[name], "--version")
                assert row["version"] in said.stdout + said.stderr
            if name == "ollama":
                assert "version" in run(current / "lib/ollama/llama-server", "--version").stderr
                assert not (current / "lib/ollama/cuda_v12").exists()
    assert set(SAYS_ITS_VERSION) <= seen


def test_the_products_own_lock_is_untouched(built: lab.Lab) -> None:
    for name in ("floors.toml", "qdrant/artifacts.toml"):
        product, own = lab.KIT / "roles" / name, built.kit / "roles" / name
        assert tomllib.loads(product.read_text()) != tomllib.loads(own.read_text())
    row = dict(rows(built))["qdrant"]
    archive = built.mirror / row["url"].removeprefix("https://")
    assert hashlib.sha256(archive.read_bytes()).hexdigest() == row["sha256"]


@pytest.mark.slow  # a provisioned host has pulled its models from there
def test_a_real_ollama_pulls_from_the_registry(built: lab.Lab, network: Network, tmp_path: Path) -> None:
    """A model of 8 MB, in a network of its own."""
    model = gguf_file.write(
        tmp_path / "tiny.gguf",
        {"general.architecture": "llama", "general.file_type": 0, "llama.block_count": 1},
        {"token_embd.weight": (1024, 2048)},
    )
    registry = Registry(tmp_path / "registry")
    digest = registry.add("tiny", "2m", model, template="{{ .Prompt }}")
    archive = next(one.path for url, one in built.made.items() if "ollama-linux-amd64.tar" in url)
    with registry.serve(network.gateway) as server, LocalBox(network, "pull") as box:
        box.run(f"mkdir -p /opt/engine && tar -C /opt/engine --zstd -xf {archive}")
        box.run(
            "export HOME=/opt OLLAMA_MODELS=/opt/models\n"
            "setsid /opt/engine/bin/ollama serve >/opt/log 2>&1 </dev/null &\n"
            "for i in $(seq 100); do curl -sf http://127.0.0.1:11434/api/version && exit 0; sleep 0.1; done\n"
            "cat /opt/log; exit 1\n"
        )
        name = f"{server.url.removeprefix('http://')}/library/tiny:2m"
        box.run(f"HOME=/opt /opt/engine/bin/ollama pull --insecure {name}")
        tags = box.output("curl -s http://127.0.0.1:11434/api/tags")
        assert digest in tags
        assert '"family":"llama"' in tags
    assert any(asked.range for asked in server.asked)
