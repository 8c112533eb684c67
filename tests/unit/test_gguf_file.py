"""The writer of GGUF files that the lab's models are made with."""

from __future__ import annotations

from pathlib import Path

from ownstack.fitting import gguf
from tests.hosts import gguf_file


def test_a_model_with_more_blocks_keeps_what_it_says(tmp_path: Path) -> None:
    block = {"attn_output.weight": (32, 2), "attn_norm.weight": (3,), "ffn_down.weight": (32, 3)}
    tensors = {
        "token_embd.weight": (32, 5),
        **{f"blk.{n}.{name}": dims for n in (0, 1) for name, dims in block.items()},
    }
    metadata: dict[str, int | float | str] = {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "llama.context_length": 64,
    }
    source = gguf_file.write(tmp_path / "small.gguf", metadata, tensors)
    before, data = gguf.read_header(source), bytearray(source.read_bytes())
    for number, one in enumerate(before.tensors, 1):
        begin = before.data_offset + one.offset
        data[begin : begin + one.bytes] = bytes([number]) * one.bytes
    source.write_bytes(data)

    made = gguf_file.deeper(source, tmp_path / "deep.gguf", 3)
    after, data = gguf.read_header(made), bytearray(made.read_bytes())
    assert after.metadata == {**metadata, "llama.block_count": 6}
    assert {one.name: one.dims for one in after.tensors} == {
        "token_embd.weight": (32, 5), **{f"blk.{n}.{name}": dims for n in range(6) for name, dims in block.items()},
    }  # fmt: skip
    end, filled = 0, {}
    for one in after.tensors:
        assert one.offset == end  # llama.cpp refuses gaps
        end += -(-one.bytes // 32) * 32
        begin = after.data_offset + one.offset
        (filled[one.name],) = set(data[begin : begin + one.bytes])
    assert after.data_offset + end == len(data)
    numbers = {one.name: number for number, one in enumerate(before.tensors, 1)}
    for name, value in filled.items():
        if not name.startswith("blk."):
            assert value == numbers[name]
            continue
        _, place, part = name.split(".", 2)
        silent = int(place) > 1 and part != "attn_norm.weight"
        assert value == (0 if silent else numbers[f"blk.{int(place) % 2}.{part}"])
