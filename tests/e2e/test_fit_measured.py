"""What `fit` predicts, against the buffers that the real Ollama's engine logs on this machine's CPU."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from ownstack.fitting.gguf import read_header
from ownstack.fitting.machine import declared
from ownstack.fitting.memory import MIB
from ownstack.fitting.rows import Request, Row, make_row
from ownstack.fitting.weights import model_of_header
from tests.e2e.test_ollama_engine import Box, box, create, sha256

__all__ = ["box"]

TRAINED = 32768
HUNDREDTH = 0.011 * MIB  # the log says hundredths of a MiB


@pytest.fixture(scope="module")
def longer(box: Box, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bootstrap model, said to be trained for 32,768 tokens: the engine cuts a context to what the header says."""
    path = tmp_path_factory.mktemp("model") / "longer.gguf"
    path.write_bytes(longer_header(box.chat.read_bytes()))
    return path


def longer_header(model: bytes) -> bytes:
    data = bytearray(model)
    key = b"llama.context_length" + struct.pack("<I", 4)
    at = data.index(key) + len(key)
    data[at : at + 4] = struct.pack("<I", TRAINED)
    return bytes(data)


def predicted(file: Path, context: int) -> Row:
    header = read_header(file)
    return make_row(model_of_header(header, file.name), declared((), 32 * 2**30), Request(context=context), tag="m")


def logged(box: Box) -> dict[str, Any]:
    return {"manager": "supervisord", "unit": "test-ollama", "log_dir": str(box.folder)}


def compare(row: Row, held: dict[str, Any]) -> None:
    """Weights, cache and logits to the log's hundredths of a MiB, and the engine's own sum."""
    host, real = row.estimate.host, held["buffers"]["CPU"]
    print(f"context {row.settings.context}: predicted {host.total / MIB:.2f} MiB, held {held['size'] / MIB:.2f} MiB")
    assert host.weights == pytest.approx(real["model"], abs=HUNDREDTH)
    assert host.kv == pytest.approx(real.get("kv", 0), abs=HUNDREDTH)
    assert host.output == pytest.approx(real["output"], abs=HUNDREDTH)
    assert host.compute == pytest.approx(real["compute"], abs=HUNDREDTH)
    assert host.total == pytest.approx(held["size"], abs=4 * HUNDREDTH)


@pytest.mark.parametrize("context", [2048, 8192, 32768])
def test_the_bootstrap_model_takes_what_fit_says(box: Box, longer: Path, context: int) -> None:
    tag = f"fit{context}:1"
    made = create(box, longer, tag, sha256(longer), context)
    assert made["event"] == "result", made
    held = box.step("ollama.measure", model=tag, **logged(box))["data"]
    assert box.step("ollama.unload", model=tag)["event"] == "result"
    assert held["context_length"] == context
    compare(predicted(longer, context), held)


def test_the_embedding_model_takes_what_fit_says(box: Box) -> None:
    made = create(box, box.embedding, "fit-embedding:1", sha256(box.embedding), 512)
    assert made["event"] == "result", made
    assert box.step("ollama.embed_check", model="fit-embedding:1")["event"] == "result"
    held = box.step("ollama.ps", **logged(box))["data"]["models"]["fit-embedding:1"]
    assert box.step("ollama.unload", model="fit-embedding:1")["event"] == "result"
    compare(predicted(box.embedding, 512), held)
