"""Models and runs of the golden data, and small GGUF files, for the tests of fitting."""

from __future__ import annotations

import json
import struct
from functools import cache
from pathlib import Path
from typing import Any

from ownstack.fitting.catalogue import decode_weights
from ownstack.fitting.memory import Settings
from ownstack.fitting.model import Model, Weights, make_model

FIXTURES = Path(__file__).parents[2] / "fixtures" / "golden"
MIB = 2**20


@cache
def golden() -> dict[str, Any]:
    data: dict[str, Any] = json.loads((FIXTURES / "memory.json").read_text())
    return data["models"]  # type: ignore[no-any-return]


@cache
def offload_truth() -> dict[str, Any]:
    data: dict[str, Any] = json.loads((FIXTURES / "offload.json").read_text())
    return data


def empty_weights(layers: int) -> Weights:
    return Weights((0,) * layers, (0,) * layers, 0, 0, 0, 0)


@cache
def golden_model(name: str) -> Model:
    """A golden model from its header values alone: no stored constants, no weights."""
    raw = golden()[name]
    return make_model(name, raw["arch"], raw["hparams"], empty_weights(raw["hparams"]["block_count"]))


@cache
def weighted_model(name: str) -> Model:
    """A golden model with the weights of the file that the offload cases were made on."""
    raw, stored = golden()[name], offload_truth()["models"][name]
    return make_model(name, raw["arch"], raw["hparams"], decode_weights(stored["weights"], stored["tensors"]))


def run_settings(run: dict[str, Any]) -> Settings:
    """The settings of a golden run. Its stand-in device makes no F16 copies, as Vulkan does not."""
    n = run.get("seq", 1)
    return Settings(
        context=run["ctx"] // n,
        parallel=n,
        unified=run.get("unified", False),
        kv_type={1: "f16", 8: "q8_0"}[run.get("tk", 1)],
        flash_attention=run.get("fa", 1) != 0,
        batch=run["ub"],
        backend="vulkan",
        all_outputs=run.get("nout", 1) == 512,
    )


def kind_of(run: dict[str, Any]) -> str:
    """The group a golden run belongs to: server, no-fa, q8, all-outputs, sequences."""
    if run.get("fa", 1) == 0:
        return "no-fa"
    if run.get("tk", 1) != 1:
        return "q8"
    if run.get("nout", 1) == 512:
        return "all-outputs"
    return "sequences" if run.get("seq", 1) > 1 else "server"


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def packed(value: Any) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    if isinstance(value, list) and isinstance(value[0], str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(text(v) for v in value)
    return struct.pack("<IIQ", 9, 4, len(value)) + b"".join(struct.pack("<I", v) for v in value)


def gguf_bytes(pairs: dict[str, Any], tensors: list[tuple[str, tuple[int, ...], int]], version: int = 3) -> bytes:
    """A GGUF header with the given keys and tensors (name, dims, type number); no tensor data."""
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs))
    for key, value in pairs.items():
        out += text(key) + packed(value)
    offset = 0
    for name, dims, kind in tensors:
        out += text(name) + struct.pack("<I", len(dims)) + b"".join(struct.pack("<Q", d) for d in dims)
        out += struct.pack("<IQ", kind, offset)
        offset += 1024 * 32
    return out


def small_llama(layers: int = 2) -> bytes:
    """A llama of a few kilobytes: header values, vocabulary, tensor table."""
    pairs = {
        "general.architecture": "llama",
        "general.file_type": 0,
        "llama.context_length": 2048,
        "llama.embedding_length": 64,
        "llama.block_count": layers,
        "llama.feed_forward_length": 256,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "tokenizer.ggml.tokens": [f"t{i}" for i in range(100)],
    }
    tensors: list[tuple[str, tuple[int, ...], int]] = [
        ("token_embd.weight", (64, 100), 0),
        ("output_norm.weight", (64,), 0),
    ]
    for i in range(layers):
        tensors += [
            (f"blk.{i}.attn_q.weight", (64, 64), 0),
            (f"blk.{i}.attn_k.weight", (64, 32), 0),
            (f"blk.{i}.attn_v.weight", (64, 32), 0),
            (f"blk.{i}.attn_output.weight", (64, 64), 0),
            (f"blk.{i}.ffn_gate.weight", (64, 256), 0),
            (f"blk.{i}.ffn_up.weight", (64, 256), 0),
            (f"blk.{i}.ffn_down.weight", (256, 64), 0),
        ]
    return gguf_bytes(pairs, tensors)
