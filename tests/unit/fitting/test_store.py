"""An Ollama store on the machine as a source of headers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from ownstack.cli.fit import fit
from ownstack.fitting.store import find

from .golden import small_llama


def store(root: Path) -> Path:
    manifest = root / "manifests" / "registry.ollama.ai" / "library" / "tiny" / "1b"
    manifest.parent.mkdir(parents=True)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:abc"}
    manifest.write_text(json.dumps({"layers": [layer]}))
    (root / "blobs").mkdir()
    (root / "blobs" / "sha256-abc").write_bytes(small_llama())
    return root


def test_a_stored_model_is_found_by_its_tag(tmp_path: Path) -> None:
    root = store(tmp_path)
    assert find("tiny:1b", [root]) == root / "blobs" / "sha256-abc"
    assert find("tiny:2b", [root]) is None
    assert find("library/tiny:1b", [root]) == root / "blobs" / "sha256-abc"
    assert find("../../tiny:1b", [root]) is None


def test_fit_reads_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(store(tmp_path)))
    asked = ["--model", "tiny:1b", "--vram", "unlimited", "--ctx", "256", "--json"]
    row = json.loads(CliRunner().invoke(fit, asked).stdout)["data"]
    assert row["model"] == "tiny:1b"
    assert row["provenance"]["weights"] == "tensor table"
