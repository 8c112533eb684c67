"""The model catalogue: data in `data/catalogue.json`, read quickly, turned into models on demand.

An entry holds header values (llama.cpp's names, without the architecture's prefix), sizes by place for
each quantisation, and facts: Ollama tag, licence, capabilities, source, and how far it is verified.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..kit import data_path
from .model import Model, Weights, make_model

DATA = Path(__file__).with_name("data")
# from the best to the smallest; what a misfit may be told to try
QUANTS = ("F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "MXFP4", "Q4_1", "Q4_0", "Q3_K_M", "Q2_K")


@dataclass(frozen=True)
class Entry:
    """One model of the catalogue. `raw` is its JSON object."""

    tag: str
    title: str
    family: str
    arch: str
    licence: str
    capabilities: frozenset[str]
    default_quant: str
    parameters: int
    active_parameters: int
    context: int
    dimension: int | None
    verified: str
    source: tuple[str, ...]
    raw: Mapping[str, Any] = field(repr=False, compare=False)
    # models made so far, by quantisation
    made: dict[str, Model] = field(default_factory=dict, repr=False, compare=False)

    @property
    def quants(self) -> tuple[str, ...]:
        return tuple(self.raw["quants"])

    @property
    def embedding(self) -> bool:
        return "embedding" in self.capabilities

    @property
    def projector_bytes(self) -> int:
        """File size of the vision projector, 0 where there is none or its size is not known."""
        return int(self.raw.get("projector_bytes", 0))

    @property
    def projector_source(self) -> str:
        """Where the projector's size is from."""
        return str(self.raw.get("projector", ""))

    def download_bytes(self, quant: str) -> int:
        sizes = self.raw["quants"][quant]
        return int(sizes["file"]) + self.projector_bytes

    def exact(self, quant: str) -> bool:
        """Whether the sizes are of a published file (else: by the mixture's rule)."""
        return bool(self.raw["quants"][quant].get("header"))

    def model(self, quant: str = "") -> Model:
        """The model in one of its quantisations. Raises ConfigError for one it does not have."""
        quant = quant or self.default_quant
        if quant not in self.raw["quants"]:
            raise ConfigError(f"{self.tag} has no {quant} in the catalogue", hint="known: " + ", ".join(self.quants))
        return _model(self, quant)


def runs(values: Iterable[Any]) -> list[list[Any]]:
    """Run-length code: [[value, count], ...]."""
    coded: list[list[Any]] = []
    for value in values:
        if coded and coded[-1][0] == value:
            coded[-1][1] += 1
        else:
            coded.append([value, 1])
    return coded


def unrun(coded: Sequence[Sequence[Any]]) -> tuple[Any, ...]:
    return tuple(value for value, count in coded for _ in range(count))


def encode_weights(weights: Weights) -> dict[str, Any]:
    """Weights as the catalogue stores them."""
    coded: dict[str, Any] = {
        "file": weights.total,
        "layers": runs(weights.layers),
        "embedding": weights.embedding,
        "output": weights.output,
        "copy": weights.output_copy,
        "active": weights.active,
    }
    if any(weights.experts):
        coded |= {
            "experts": runs(weights.experts),
            "largest": weights.largest_expert,
            "ffn": runs(list(f) for f in weights.ffn),
        }
    return coded


def decode_weights(coded: Mapping[str, Any], tensors: Mapping[str, int]) -> Weights:
    layers = unrun(coded["layers"])
    return Weights(
        layers=layers,
        experts=unrun(coded["experts"]) if "experts" in coded else (0,) * len(layers),
        embedding=coded["embedding"],
        output=coded["output"],
        output_copy=coded["copy"],
        active=coded["active"],
        largest_expert=coded.get("largest", 0),
        ffn=tuple((f[0], f[1], f[2]) for f in unrun(coded.get("ffn", ()))),
        tensors=tensors,
    )


def encode_hparams(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays of one repeated value become that value; long ones keep their runs."""
    coded: dict[str, Any] = {}
    for key, value in hparams.items():
        if isinstance(value, (list, tuple)) and len(value) > 8:
            packed = runs(value)
            coded[key] = packed[0][0] if len(packed) == 1 and key.endswith("length") else {"runs": packed}
        else:
            coded[key] = value
    return coded


def decode_hparams(coded: Mapping[str, Any]) -> dict[str, Any]:
    return {k: list(unrun(v["runs"])) if isinstance(v, dict) else v for k, v in coded.items()}


def _model(entry: Entry, quant: str) -> Model:
    made: dict[str, Model] = entry.made
    if quant not in made:
        made[quant] = _make(entry, quant)
    return made[quant]


def _make(entry: Entry, quant: str) -> Model:
    compute = entry.raw.get("compute", {})
    sizes = entry.raw["quants"][quant]
    # the largest tensors are stored for the default quantisation; others in proportion
    share = sizes["file"] / entry.raw["quants"][entry.default_quant]["file"]
    tensors = {name: int(size * share) for name, size in entry.raw.get("tensors", {}).items()}
    return make_model(
        entry.tag,
        entry.arch,
        decode_hparams(entry.raw["hparams"]),
        decode_weights(sizes, tensors),
        quant=quant,
        gpu_base=compute.get("gpu_base"),
        host_base=compute.get("host_base"),
    )


class Catalogue:
    """All entries, by tag."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries: dict[str, Entry] = {e.tag: e for e in entries}
        self._aliases = {alias: e.tag for e in self.entries.values() for alias in e.raw.get("aliases", ())}

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries.values())

    def __len__(self) -> int:
        return len(self.entries)

    def find(self, name: str) -> tuple[Entry, str]:
        """The entry and quantisation that `name` means: a tag, an alias, or `tag-q8_0`.

        Raises ConfigError naming the nearest tags.
        """
        wanted = name.strip().lower()
        if wanted.endswith(":latest"):
            wanted = wanted.removesuffix(":latest")
        for tag in (wanted, self._aliases.get(wanted, "")):
            if tag in self.entries:
                return self.entries[tag], self.entries[tag].default_quant
        for quant in QUANTS:
            for ending in (f"-{quant.lower()}", "-fp16" if quant == "F16" else f"-instruct-{quant.lower()}"):
                base = wanted.removesuffix(ending)
                for tag in (base, self._aliases.get(base, "")):
                    if base != wanted and tag in self.entries and quant in self.entries[tag].quants:
                        return self.entries[tag], quant
        names = list(self.entries) + list(self._aliases)
        near = difflib.get_close_matches(wanted, names, n=4, cutoff=0.5)
        stem = wanted.split(":")[0]
        near += [n for n in names if n.split(":")[0] == stem and n not in near][:4]
        raise ConfigError(
            f"unknown model {name!r}",
            hint=("nearest: " + ", ".join(near)) if near else "`ownstack fit --all` lists every model",
            code="unknown-model",
        )


def entry_of(raw: Mapping[str, Any]) -> Entry:
    return Entry(
        tag=raw["tag"],
        title=raw["title"],
        family=raw["family"],
        arch=raw["arch"],
        licence=raw["licence"],
        capabilities=frozenset(raw["capabilities"]),
        default_quant=raw["default_quant"],
        parameters=raw["parameters"],
        active_parameters=raw["active_parameters"],
        context=raw["context"],
        dimension=raw.get("dimension"),
        verified=raw["verified"],
        source=tuple(raw["source"]),
        raw=raw,
    )


def load_catalogue(path: Path | None = None) -> Catalogue:
    """Read the catalogue; a damaged file names itself."""
    path = path or data_path("fitting/catalogue.json")
    try:
        data = json.loads(path.read_bytes())
        return Catalogue(entry_of(raw) for raw in data["models"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: {error}", hint="put back the catalogue of this release") from error
