"""Builds: the GGUF conversion by its bytes, libraries of ELF files, mirrors out of apt's configuration."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from ownstack.engine.builds import debian, minilm_gguf, toolchain
from ownstack.engine.builds.elf import needed
from ownstack.errors import RunError
from ownstack.fitting import gguf

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "##ing", "##s"]
CONFIG = {
    "architectures": ["BertModel"], "num_hidden_layers": 1, "max_position_embeddings": 4, "hidden_size": 2,
    "intermediate_size": 3, "num_attention_heads": 1, "layer_norm_eps": 1e-12, "type_vocab_size": 2,
}  # fmt: skip


def model(folder: Path, spoil: str = "") -> Path:
    """A tiny BERT of known numbers."""
    shapes = {
        "embeddings.word_embeddings.weight": [8, 2], "embeddings.position_embeddings.weight": [4, 2],
        "embeddings.token_type_embeddings.weight": [2, 2], "embeddings.LayerNorm.weight": [2],
        "embeddings.LayerNorm.bias": [2],
    }  # fmt: skip
    for name, _ in minilm_gguf.BLOCK:
        wide = [3, 2] if name.startswith("intermediate") else [2, 3] if name == "output.dense" else [2, 2]
        matrix = "LayerNorm" not in name
        shapes[f"encoder.layer.0.{name}.weight"] = wide if matrix else [2]
        shapes[f"encoder.layer.0.{name}.bias"] = [wide[0]] if matrix else [2]
    shapes.pop(spoil, None)
    table, data = {}, b""
    for at, (name, shape) in enumerate(shapes.items()):
        count = minilm_gguf.size(shape)
        begin = len(data)
        data += struct.pack(f"<{count}f", *[at + index / 8 for index in range(count)])
        table[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, len(data)]}
    header = json.dumps(table).encode()
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def test_conversion_is_read_back_by_our_own_reader(tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    minilm_gguf.convert(model(tmp_path / "m"), out)
    header = gguf.read_header(out)
    assert header.metadata["general.architecture"] == "bert"
    assert header.metadata["bert.embedding_length"] == 2
    tensors = {tensor.name: tensor for tensor in header.tensors}
    assert len(tensors) == 5 + 2 * len(minilm_gguf.BLOCK)
    assert tuple(tensors["token_embd.weight"].dims) == (2, 8)
    assert out.stat().st_size % minilm_gguf.ALIGNMENT == 0


def test_conversion_gives_the_same_bytes_every_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        minilm_gguf.convert(model(tmp_path / "m"), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_word_pieces_are_marked_as_llama_cpp_reads_them() -> None:
    special = {"[CLS]": 2}
    assert [minilm_gguf.word(token, special) for token in ("[CLS]", "hello", "##ing")] == ["[CLS]", "▁hello", "ing"]


def test_halves_round_to_the_nearest_even() -> None:
    values = (0.0, 1.0, -2.5, 1 + 2**-11, 1 + 3 * 2**-11)
    assert struct.unpack("<5e", minilm_gguf.halves(struct.pack("<5f", *values))) == (0.0, 1.0, -2.5, 1.0, 1 + 2**-9)


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"embeddings\.LayerNorm\.bias"):
        minilm_gguf.convert(model(tmp_path / "m", spoil="embeddings.LayerNorm.bias"), tmp_path / "x")
    (tmp_path / "m" / "config.json").write_text(json.dumps({**CONFIG, "architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(RunError, match="not a BertModel"):
        minilm_gguf.convert(tmp_path / "m", tmp_path / "x")


def test_libraries_of_a_program_are_those_the_loader_finds() -> None:
    python = Path(sys.executable).resolve()
    listed = subprocess.run(["ldd", str(python)], capture_output=True, text=True, check=True).stdout
    found = needed(python)
    assert found
    assert all(name in listed for name in found)


def test_what_is_no_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"#!/bin/sh\n")
    with pytest.raises(RunError, match="not a 64-bit"):
        needed(tmp_path / "x")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "sources.list",
            "deb [signed-by=/k] http://mirror.example/debian bookworm main\n# deb http://no/debian x main\n",
        ),
        ("sources.list.d/debian.sources", "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm\n"),
        (
            "sources.list.d/a.sources",
            "URIs: http://mirror.example/debian-security http://mirror.example/debian/\nSuites: bookworm\n",
        ),
    ],
)
def test_the_mirror_is_the_one_that_apt_uses_here(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    (tmp_path / "sources.list.d").mkdir(exist_ok=True)
    (tmp_path / "sources.list.d" / "other.disabled").write_text("deb http://disabled/debian x main\n")
    assert debian.mirrors(tmp_path) == ["http://mirror.example/debian"]


def test_a_lock_must_name_every_package_asked_for(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text("other==1 \\\n    --hash=sha256:00\n")
    with pytest.raises(RunError, match="does not lock all of wanted"):
        toolchain.wheels(lock, ["wanted"], tmp_path)
