"""Which type each tensor gets in a quantisation mixture: file sizes by rule, without the file.

Source: llama.cpp's llama-quant.cpp (tensor_allows_quantization, llama_tensor_get_type_impl,
tensor_type_fallback). Files made with an importance matrix or by hand may differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import ConfigError
from .model import number
from .quants import NUMBERS, TYPES
from .weights import Shape

BASE = {
    "Q2_K": "Q2_K", "Q3_K_M": "Q3_K", "Q4_0": "Q4_0", "Q4_K_S": "Q4_K", "Q4_K_M": "Q4_K", "Q5_K_M": "Q5_K",
    "Q6_K": "Q6_K", "Q8_0": "Q8_0", "F16": "F16", "BF16": "BF16", "MXFP4": "Q8_0",
}  # fmt: skip
_KEPT = (
    "_norm.weight", "ffn_gate_inp.weight", "altup", "laurel", "per_layer_model_proj", "ssm_conv1d",
    "shortconv.conv.weight", "time_mix_first", "time_mix_w0", "time_mix_w1", "time_mix_w2", "time_mix_v0",
    "time_mix_v1", "time_mix_v2", "time_mix_a0", "time_mix_a1", "time_mix_a2", "time_mix_g1", "time_mix_g2",
    "time_mix_decay_w1", "time_mix_decay_w2", "time_mix_lerp_fused", "attn_rel_b", "position_embd", "token_types",
)  # fmt: skip
_SMALLER_BLOCK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
_ATTN_V = ("attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight")


def _more_bits(index: int, count: int) -> bool:
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2


def _whole_blocks(type_name: str, width: int) -> str:
    if width % TYPES[NUMBERS[type_name]][1] == 0:
        return type_name
    smaller = _SMALLER_BLOCK.get(type_name, type_name)
    return smaller if width % TYPES[NUMBERS[smaller]][1] == 0 else "F16"


def _kept(shape: Shape) -> bool:
    if len(shape.dims) < 2 or not shape.name.endswith("weight"):
        return True
    return any(part in shape.name for part in _KEPT)


def _attention_v(mixture: str, base: str, index: int, count: int, gqa: int) -> str:
    if mixture == "Q2_K":
        return "Q4_K" if gqa >= 4 else "Q3_K"
    if mixture == "Q3_K_M":
        return "Q5_K" if index < 2 else "Q4_K"
    if mixture in {"Q4_K_M", "Q5_K_M"} and _more_bits(index, count):
        return "Q6_K"
    if mixture == "Q4_K_S" and index < 4:
        return "Q5_K"
    return base


def _ffn_down(mixture: str, base: str, layer: int, count: int) -> str:
    if mixture == "Q2_K":
        return "Q3_K"
    if mixture == "Q3_K_M":
        return "Q5_K" if layer < count // 16 else "Q4_K"
    if mixture in {"Q4_K_M", "Q5_K_M"} and _more_bits(layer, count):
        return "Q6_K"
    if mixture == "Q4_K_S" and layer < count // 8:
        return "Q5_K"
    return base


def _large_llama(hparams: Mapping[str, Any]) -> bool:
    """llama.cpp's 70B type: 80 layers and grouped heads."""
    return number(hparams, "block_count") == 80 and number(hparams, "attention.head_count_kv") < number(
        hparams, "attention.head_count"
    )


def requantise(  # noqa: C901 -- one rule a branch, in the engine's own order
    hparams: Mapping[str, Any], shapes: Iterable[Shape], mixture: str
) -> list[Shape]:
    """The same tensor table in another mixture. Raises ConfigError for an unknown one."""
    if mixture not in BASE:
        raise ConfigError(f"unknown quantisation {mixture!r}", hint="known: " + ", ".join(BASE))
    table = list(shapes)
    base, layers = BASE[mixture], number(hparams, "block_count")
    tied = not any(s.name == "output.weight" for s in table)
    values = [s.name for s in table if s.name.endswith(_ATTN_V)]
    values.sort(key=lambda name: int(match[1]) if (match := re.match(r"blk\.(\d+)\.", name)) else -1)
    order = {name: i for i, name in enumerate(values)}
    heads, kv = number(hparams, "attention.head_count"), number(hparams, "attention.head_count_kv")
    gqa = heads // kv if kv else 0
    eight, large = number(hparams, "expert_count") == 8, _large_llama(hparams)

    def chosen(shape: Shape) -> str:
        name = shape.name
        if name == "output.weight" or (tied and name == "token_embd.weight"):
            return "Q8_0" if base == "Q8_0" or shape.dims[0] % TYPES[NUMBERS[base]][1] else "Q6_K"
        if mixture == "MXFP4":
            return "MXFP4" if len(shape.dims) == 3 else "Q8_0"
        match = re.match(r"blk\.(\d+)\.", name)
        if name in order:
            if eight:
                return "Q8_0"
            better = _attention_v(mixture, base, order[name], len(order), gqa)
            return "Q5_K" if large and better in {"Q3_K", "Q4_K"} else better
        if eight and name.endswith("attn_k.weight"):
            return "Q8_0"
        if "ffn_down" in name and match:
            return _ffn_down(mixture, base, int(match[1]), layers)
        if name.endswith("attn_output.weight"):
            if eight:
                return "Q5_K" if mixture in {"Q2_K", "Q3_K_M", "Q4_K_S", "Q4_K_M"} else base
            return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K"}.get(mixture, base)
        return base

    def final(shape: Shape) -> Shape:
        if _kept(shape):
            return Shape(shape.name, shape.dims, "F32")
        if base in {"F16", "BF16"}:
            return Shape(shape.name, shape.dims, base)
        return Shape(shape.name, shape.dims, _whole_blocks(chosen(shape), shape.dims[0]))

    return [final(shape) for shape in table]
