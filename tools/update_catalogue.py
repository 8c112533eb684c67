#!/usr/bin/env python3
"""Maintainers: read models' true sizes from an Ollama-style registry and write them into the catalogue.

Only the manifest and the first megabytes of each model's file are read (HTTP range requests). An entry that
is there already keeps its hand-written facts; its header values and the read quantisation's sizes are replaced
and marked `header`.

    tools/update_catalogue.py --registry https://registry.example qwen3:14b llama3.1:8b-instruct-q8_0
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from ownstack.errors import ConfigError, OwnstackError  # noqa: E402
from ownstack.fitting.catalogue import DATA, encode_hparams, encode_weights  # noqa: E402
from ownstack.fitting.gguf import Header, read_stream  # noqa: E402
from ownstack.fitting.weights import header_hparams, header_shapes, model_of_header, place  # noqa: E402

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
MODEL, PROJECTOR = "application/vnd.ollama.image.model", "application/vnd.ollama.image.projector"
CHUNK = 1 << 20


class Remote(io.RawIOBase):
    """A file behind a URL, read forward by ranges; `read_total` counts what was fetched."""

    def __init__(self, url: str, size: int) -> None:
        self.url, self.size, self.at, self.read_total = url, size, 0, 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = offset
        return offset

    def read(self, count: int = -1) -> bytes:
        end = min(self.size, self.at + max(count, CHUNK)) - 1
        if end < self.at:
            return b""
        request = urllib.request.Request(self.url, headers={"Range": f"bytes={self.at}-{end}"})  # noqa: S310
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            if answer.status != 206:
                raise ConfigError(f"{self.url}: the registry does not serve ranges")
            data: bytes = answer.read()
        self.at += len(data)
        self.read_total += len(data)
        return data


def manifest(registry: str, tag: str) -> dict[str, Any]:
    """The manifest of `name:tag`."""
    name, _, version = tag.partition(":")
    path = name if "/" in name else f"library/{name}"
    url = f"{registry}/v2/{path}/manifests/{version or 'latest'}"
    request = urllib.request.Request(url, headers={"Accept": MANIFEST})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            found: dict[str, Any] = json.load(answer)
    except (urllib.error.URLError, ValueError) as error:
        raise ConfigError(f"{url}: {error}", hint="name a model that the registry has") from error
    return found | {"path": path}


def layer_of(found: dict[str, Any], kind: str) -> dict[str, Any] | None:
    return next((layer for layer in found["layers"] if layer["mediaType"] == kind), None)


def read_model(registry: str, tag: str) -> tuple[Header, dict[str, Any], int]:
    """The header of a tag's model file, its manifest, and how many bytes were fetched."""
    found = manifest(registry, tag)
    layer = layer_of(found, MODEL)
    if layer is None:
        raise ConfigError(f"{tag}: its manifest names no model file")
    source = Remote(f"{registry}/v2/{found['path']}/blobs/{layer['digest']}", layer["size"])
    return read_stream(source, layer["size"], tag), found, source.read_total  # type: ignore[arg-type]


def parameters(header: Header) -> tuple[int, int]:
    """All parameters, and those that one token uses."""
    model = model_of_header(header, "x")
    total = experts = 0
    for tensor in header.tensors:
        count = 1
        for dim in tensor.dims:
            count *= dim
        total += count
        experts += count if "_exps" in tensor.name else 0
    used, of = model.number("expert_used_count"), model.number("expert_count")
    return total, total - experts + (experts * used // of if of else 0)


def updated(entry: dict[str, Any], header: Header, found: dict[str, Any], source: str) -> dict[str, Any]:
    """The entry with what the header says."""
    model = model_of_header(header, entry["tag"])
    weights = place(header.arch, model.hparams, header_shapes(header))
    quant = model.quant or str(entry["default_quant"])
    total, active = parameters(header)
    layer, projector = layer_of(found, MODEL), layer_of(found, PROJECTOR)
    sizes = encode_weights(weights) | {"file": (layer or {})["size"], "header": True, "digest": (layer or {})["digest"]}
    entry = entry | {
        "arch": header.arch,
        "parameters": total,
        "active_parameters": active,
        "context": model.context_train,
        "hparams": encode_hparams(header_hparams(header)),
        "quants": entry.get("quants", {}) | {quant: sizes},
        "verified": "header",
        "source": [source],
    }
    if projector is not None:
        entry |= {"projector_bytes": projector["size"], "projector": "published file"}
    if entry["default_quant"] not in entry["quants"]:
        entry["default_quant"] = quant
    if quant == entry["default_quant"]:
        entry["tensors"] = {name: size for name, size in weights.tensors.items() if size >= 1 << 16}
    return entry


def blank(tag: str) -> dict[str, Any]:
    """A new entry's hand-written facts, to be filled in by the maintainer."""
    return {
        "tag": tag, "title": tag, "family": tag.split(":")[0], "licence": "to be filled in",
        "capabilities": ["chat"], "default_quant": "Q4_K_M",
    }  # fmt: skip


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registry", required=True, help="the registry's address")
    parser.add_argument("--catalogue", type=Path, default=DATA / "catalogue.json")
    parser.add_argument("tags", nargs="+")
    asked = parser.parse_args(argv)
    data = json.loads(asked.catalogue.read_text(encoding="utf-8"))
    entries = {entry["tag"]: entry for entry in data["models"]}
    try:
        for tag in asked.tags:
            header, found, fetched = read_model(asked.registry.rstrip("/"), tag)
            entries[tag] = updated(entries.get(tag, blank(tag)), header, found, f"registry header of {tag}")
            print(f"{tag}: {header.arch}, {len(header.tensors)} tensors, {fetched >> 10} KiB read")
    except OwnstackError as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        return error.exit_code
    rows = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries.values())
    fresh = asked.catalogue.with_suffix(".new")
    fresh.write_text('{"schema":1,"models":[\n' + rows + "\n]}\n", encoding="utf-8")
    fresh.replace(asked.catalogue)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
