"""The engine's own dry run, from Debian's llama.cpp packages: sizes of a model of which only the header exists."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import struct
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from ownstack.engine import carry
from ownstack.engine.builds import debian
from ownstack.errors import OwnstackError
from ownstack.fitting.mixtures import requantise
from ownstack.fitting.quants import FILE_TYPES, NUMBERS
from ownstack.fitting.weights import Shape, data_bytes

from .golden import FIXTURES, packed, text

PACKAGE = "llama.cpp-tools-extra"
SUITE = "forky"
LIBRARY = Path("usr/lib/x86_64-linux-gnu")
BACKEND = LIBRARY / "ggml/backends0/libggml-cpu-x64.so"  # runs on any machine, and repacks no weights
ALIGNMENT = 32


class NotHereError(Exception):
    """The packages cannot be had; says why."""


def obtain() -> Path:
    """The root of the unpacked packages: from the user's cache folder, or fetched into it."""
    place = carry.cache_root() / "tests" / "llama-fit-params"
    if (place / "usr/bin/llama-fit-params").exists():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="llama-fit-params.", dir=place.parent))
    try:
        root, _ = debian.packages([PACKAGE], SUITE, "linux-x86_64", work, lambda _: None)
        if not place.exists():
            root.rename(place)
    except OwnstackError as error:
        raise NotHereError(f"{error.message} ({error.hint})") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return place


def dry_run(root: Path, model: Path, *options: str) -> tuple[int, int, int]:
    """Whole MiB of weights, of context and of compute on a machine without a GPU."""
    library = root / LIBRARY
    paths = f"{library}:{library / 'llama'}"
    command = [str(library / "ld-linux-x86-64.so.2"), "--library-path", paths, str(root / "usr/bin/llama-fit-params")]
    command += ["--model", str(model), "-np", "1", "-fitp", "on", *options]
    environment = {"PATH": os.environ["PATH"], "GGML_BACKEND_PATH": str(root / BACKEND)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("Host ")]
    if done.returncode or not lines:
        raise AssertionError(f"{model.name}: {done.stderr[-1500:]}")
    weights, context, compute = (int(word) for word in lines[0][1:4])
    return weights, context, compute


@cache
def tables() -> dict[str, Any]:
    """Header values and tensor tables of the catalogue's models, as the engine's loader asks for them."""
    data: dict[str, Any] = json.loads((FIXTURES / "tables.json").read_text())
    return data["models"]  # type: ignore[no-any-return]


def shapes(tag: str, quant: str) -> list[Shape]:
    """The tensor table in a quantisation mixture."""
    raw = tables()[tag]
    found = [Shape(name, tuple(dims), "F16") for name, dims in raw["tensors"]]
    kinds = itertools.chain.from_iterable([raw["kinds"][kind]] * count for kind, count in raw["blocks"])
    for index, kind in enumerate(kinds):
        found += [Shape(f"blk.{index}.{name}", tuple(dims), "F16") for name, dims in kind]
    return requantise(raw["values"], found, quant)


def _value(value: Any) -> bytes:
    if isinstance(value, list) and isinstance(value[0], float):
        return struct.pack(f"<IIQ{len(value)}f", 9, 6, len(value), *value)
    return packed(value)


def write_header(path: Path, tag: str, quant: str) -> Path:
    """A GGUF file with a header and a hole of the data's size: kilobytes on the disk."""
    raw = tables()[tag]
    numbers = {name: number for number, name in FILE_TYPES.items()}
    pairs: dict[str, Any] = {"general.architecture": raw["arch"], "general.file_type": numbers[quant]}
    pairs["tokenizer.ggml.model"] = "no_vocab"
    for key, value in raw["values"].items():
        pairs[key if key.startswith("tokenizer.") else f"{raw['arch']}.{key}"] = value
    table = shapes(tag, quant)
    out = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(table), len(pairs)))
    for key, value in pairs.items():
        out += text(key) + _value(value)
    offset = 0
    for shape in table:
        out += text(shape.name) + struct.pack(f"<I{len(shape.dims)}Q", len(shape.dims), *shape.dims)
        out += struct.pack("<IQ", NUMBERS[shape.type_name], offset)
        offset += -(-data_bytes(shape) // ALIGNMENT) * ALIGNMENT
    out += bytes(-len(out) % ALIGNMENT)
    with path.open("wb") as stream:
        stream.write(out)
        stream.truncate(len(out) + offset)
    return path
