"""The GGUF header reader: what it reads, and that nothing breaks it."""

from __future__ import annotations

import io
import random
import struct
import time
import tracemalloc
from pathlib import Path

import pytest

from ownstack.errors import OwnstackError
from ownstack.fitting.gguf import GgufError, read_header, read_stream
from ownstack.fitting.memory import Placement, Settings, estimate
from ownstack.fitting.weights import model_of_header

from .golden import gguf_bytes, small_llama

MUTATIONS = 10_000
LLAMA = small_llama()


def test_reads_header_values_and_weights(tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    path.write_bytes(LLAMA)
    header = read_header(path)
    model = model_of_header(header, "small")
    assert (header.arch, model.vocabulary, model.context_train, len(model.layers)) == ("llama", 100, 2048, 2)
    layer = 4 * (64 * 64 * 2 + 64 * 32 * 2 + 64 * 256 * 3)
    assert model.weights.layers == (layer, layer)
    assert model.weights.embedding == model.weights.output_copy == 64 * 100 * 4
    e = estimate(model, Settings(context=256, batch=64), Placement((3,)))
    assert e.gpus[0].weights == 2 * layer + 256 + 64 * 100 * 4  # tied output: a copy on the GPU
    assert e.gpus[0].kv == 2 * 256 * (32 + 32) * 2


def test_reads_a_few_kilobytes_of_a_large_file(tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    path.write_bytes(LLAMA)
    with path.open("r+b") as file:
        file.truncate(60 * 10**9)
    header = read_header(path)
    assert header.file_bytes == 60 * 10**9
    assert header.bytes_read <= 256 * 1024
    assert header.complete


def test_split_files_are_read_together(tmp_path: Path) -> None:
    parts = [
        gguf_bytes({"general.architecture": "llama", "split.count": 2}, [(f"blk.{i}.attn_q.weight", (64, 64), 0)])
        for i in range(2)
    ]
    for i, part in enumerate(parts, 1):
        (tmp_path / f"m-{i:05}-of-00002.gguf").write_bytes(part)
    assert [t.name for t in read_header(tmp_path / "m-00001-of-00002.gguf").tensors] == [
        "blk.0.attn_q.weight",
        "blk.1.attn_q.weight",
    ]
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(GgufError, match="00002-of-00002"):
        read_header(tmp_path / "m-00001-of-00002.gguf")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a GGUF file"),
        (b"PK\x03\x04" + b"\0" * 40, "not a GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "version 9"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**40), "string"),
        (gguf_bytes({"general.name": "x"}, []), "general.architecture"),
        (gguf_bytes({"general.architecture": "llama"}, [("t", (64, 0), 0)]), "impossible shape"),
        (gguf_bytes({"general.architecture": "llama"}, [("t", (33, 2), 8)]), "whole Q8_0 blocks"),
        (gguf_bytes({"general.architecture": "llama"}, [("t", (64,), 99)]), "unknown type 99"),
        (gguf_bytes({"general.architecture": "llama"}, [("t", (64,), 0), ("t", (64,), 0)]), "same name"),
        (LLAMA[:-40], "ends early"),
    ],
)
def test_malformed_files_are_named(content: bytes, words: str) -> None:
    with pytest.raises(GgufError) as caught:
        read_stream(io.BytesIO(content), len(content), "bad.gguf")
    assert words in caught.value.message
    assert caught.value.message.startswith("bad.gguf: ")
    assert caught.value.hint


def test_a_missing_file_is_an_error_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(GgufError, match="No such file"):
        read_header(tmp_path / "none.gguf")
    with pytest.raises(GgufError, match="folder"):
        read_header(tmp_path)


def test_a_huge_array_costs_nothing() -> None:
    """An array that claims more elements than the file has bytes is refused before it is read."""
    for kind in (8, 4, 12):
        bad = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, kind, 2**62)
        with pytest.raises(GgufError, match="array"):
            read_stream(io.BytesIO(bad + b"\0" * 100), len(bad) + 100, "bomb")


def mutated(rng: random.Random) -> bytes:
    data = bytearray(LLAMA)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        kind = rng.randrange(5)
        at = rng.randrange(len(data) or 1)
        if kind == 0 and data:
            data[at] = rng.randrange(256)
        elif kind == 1:
            data[at : at + 8] = struct.pack("<Q", rng.choice((0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)))
        elif kind == 2:
            del data[at : at + rng.randrange(1, 64)]
        elif kind == 3:
            data[at:at] = rng.randbytes(rng.randrange(1, 64))
        else:
            data = data[: max(at, 1)]
    return bytes(data)


def test_ten_thousand_mutations_neither_crash_nor_grow() -> None:
    """Any file gives a model or one of our own errors, in bounded time and memory."""
    rng = random.Random(20261121)  # noqa: S311 -- repeatable, nothing secret
    read = refused = 0
    slowest = 0.0
    model_of_header(read_stream(io.BytesIO(LLAMA), len(LLAMA), "warm"), "warm")
    estimate(model_of_header(read_stream(io.BytesIO(LLAMA), len(LLAMA), "warm"), "warm"), Settings(), Placement((1,)))
    tracemalloc.start()
    try:
        for _ in range(MUTATIONS):
            content = mutated(rng)
            begun = time.perf_counter()
            try:
                model = model_of_header(read_stream(io.BytesIO(content), len(content), "fuzz"), "fuzz")
                estimate(model, Settings(context=4096), Placement((1,)))
                read += 1
            except OwnstackError:
                refused += 1
            slowest = max(slowest, time.perf_counter() - begun)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert read + refused == MUTATIONS
    assert read > 100
    assert refused > 1000
    assert slowest < 2.0
    assert most < 64 * 2**20
