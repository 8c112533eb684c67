"""From a tensor table to bytes by place."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from .gguf import Header, LongArray
from .model import EMBEDDING_FAMILIES, INPUT_TENSORS, MAX_LAYERS, Model, Weights, make_model, number
from .quants import FILE_TYPES, NUMBERS, TYPES

_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
_EXPERT = re.compile(r"ffn_(up|down|gate_up|gate)_(ch|)exps")
# architectures whose output matrix is never tied to the embedding (they have none, or always their own)
_NEVER_TIED = (EMBEDDING_FAMILIES - {"gemma-embedding"}) | {"wavtokenizer-dec"}
_ALIGN, _ROW = 128, 512
_HOST_ALIGN = 32  # ggml's CPU buffers


@dataclass(frozen=True, slots=True)
class Shape:
    """A tensor without a place in a file."""

    name: str
    dims: tuple[int, ...]
    type_name: str


def data_bytes(shape: Shape) -> int:
    """Bytes of the tensor's data as stored in a file."""
    _, block, size = TYPES[NUMBERS[shape.type_name]]
    count = 1
    for dim in shape.dims:
        count *= dim
    return count // block * size


def device_bytes(shape: Shape) -> int:
    """Bytes on a device: quantised rows are padded to 512 values once, tensors lie on 128-byte borders."""
    _, block, size = TYPES[NUMBERS[shape.type_name]]
    count = data_bytes(shape)
    if block > 1 and shape.dims[0] % _ROW:
        count += (_ROW - shape.dims[0] % _ROW) // block * size
    return -(-count // _ALIGN) * _ALIGN


def _on_host(shape: Shape) -> int:
    return -(-data_bytes(shape) // _HOST_ALIGN) * _HOST_ALIGN


def _is_input(name: str) -> bool:
    return name.split(".")[0] in INPUT_TENSORS


def _kind(rest: str) -> int | None:
    """0 gate, 1 up, 2 down: which of the feed-forward groups a tensor of a layer belongs to."""
    for prefix, kind in (("ffn_gate", 0), ("ffn_up", 1), ("ffn_down", 2)):
        if rest.startswith(prefix):
            return kind
    return None


def place(arch: str, hparams: Mapping[str, Any], shapes: Iterable[Shape]) -> Weights:
    """Sum a tensor table by place. Layers of a draft head (`nextn_predict_layers`) are not loaded."""
    every = number(hparams, "block_count")
    if not 0 < every <= MAX_LAYERS:
        raise ConfigError(f"{arch}: block_count is {every}", hint="the model file is damaged")
    count = every - min(number(hparams, "nextn_predict_layers"), max(every - 1, 0))
    layers, experts = [0] * count, [0] * count
    ffn = [[0, 0, 0] for _ in range(count)]
    embedding = output = largest = token_embedding = padding = 0
    has_output = False
    tensors: dict[str, int] = {}
    for shape in shapes:
        match = _BLOCK.match(shape.name)
        if match:
            index, rest = int(match[1]), match[2]
            if index >= every:
                raise ConfigError(f"{shape.name}: the model has {every} layers", hint="the model file is damaged")
            if index >= count:
                continue
            size = device_bytes(shape)
            padding += size - _on_host(shape)
            layers[index] += size
            tensors[rest] = max(tensors.get(rest, 0), size)
            if (kind := _kind(rest)) is not None:
                ffn[index][kind] += size
            if _EXPERT.match(rest):
                experts[index] += size
                largest = max(largest, data_bytes(shape))
        elif _is_input(shape.name):
            embedding += data_bytes(shape)
            token_embedding += device_bytes(shape) if shape.name == "token_embd.weight" else 0
        else:
            output += device_bytes(shape)
            padding += device_bytes(shape) - _on_host(shape)
            tensors[shape.name] = device_bytes(shape)
            has_output = has_output or shape.name == "output.weight"
    copy = 0 if has_output or arch in _NEVER_TIED else token_embedding
    used, of = number(hparams, "expert_used_count"), number(hparams, "expert_count")
    active = sum(layers) - sum(experts) + (sum(experts) * used // of if of else sum(experts)) + output + copy
    return Weights(
        layers=tuple(layers),
        experts=tuple(experts),
        embedding=embedding,
        output=output,
        output_copy=copy,
        active=active,
        largest_expert=largest,
        ffn=tuple((a, b, c) for a, b, c in ffn) if any(experts) else (),
        tensors=tensors,
        padding=padding,
    )


def header_hparams(header: Header) -> dict[str, Any]:
    """The architecture's own values without its prefix, and the vocabulary's size."""
    prefix = f"{header.arch}."
    values = {
        key[len(prefix) :]: value
        for key, value in header.metadata.items()
        if key.startswith(prefix) and not isinstance(value, (LongArray, str))
    }
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, LongArray):
        values["vocab_size"] = tokens.count
    elif isinstance(tokens, list):
        values["vocab_size"] = len(tokens)
    return values


def header_shapes(header: Header) -> list[Shape]:
    return [Shape(t.name, t.dims, t.type_name) for t in header.tensors]


def model_of_header(header: Header, name: str) -> Model:
    """The model that a GGUF file holds. Raises ConfigError where header values are missing or absurd."""
    hparams = header_hparams(header)
    shapes = header_shapes(header)
    if "vocab_size" not in hparams:
        rows = [t.dims[-1] for t in header.tensors if t.name == "token_embd.weight"]
        hparams["vocab_size"] = rows[0] if rows else 0
    quant = FILE_TYPES.get(header.metadata.get("general.file_type", -1), "")
    return make_model(name, header.arch, hparams, place(header.arch, hparams, shapes), quant=quant)
