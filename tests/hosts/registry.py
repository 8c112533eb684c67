"""A model registry as Ollama's: static files with the few rules that a real `ollama pull` insists on.

    registry = Registry(folder)
    registry.add("smollm2", "135m", Path("smollm2.gguf"))
    with registry.serve(network.gateway) as server:
        ollama pull --insecure <server.address>/library/smollm2:135m

A blob's answer must carry a `Location` header (any address that serves it), and blobs must know HEAD and ranges.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from ownstack.fitting import gguf

from .serve import Answer, FileServer

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
LAYER = "application/vnd.ollama.image."
FILE_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    7: "Q8_0",
    15: "Q4_K_M",
    17: "Q5_K_M",
    18: "Q6_K",
}  # llama.h, LLAMA_FTYPE_*


class Registry:
    """Models in a folder: `blobs/<sha256>` and `manifests/<namespace>/<name>/<tag>`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "blobs").mkdir(parents=True, exist_ok=True)

    def add(
        self, name: str, tag: str, model: Path, *, template: str = "", parameters: dict[str, Any] | None = None,
        licence: str = "", namespace: str = "library",
    ) -> str:  # fmt: skip
        """Take a GGUF file in under a name; return the sha256 of its manifest (Ollama's digest of the model)."""
        layers = [self._layer("model", self._file(model))]
        for kind, text in (("template", template), ("license", licence)):
            if text:
                layers.append(self._layer(kind, self._text(text)))
        if parameters:
            layers.append(self._layer("params", self._text(json.dumps(parameters))))
        config = {**_about(model), "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]}}
        digest, size = self._text(json.dumps(config))
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": f"sha256:{digest}", "size": size},
            "layers": layers,
        }
        text = json.dumps(manifest)
        path = self.root / "manifests" / namespace / name / tag
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return hashlib.sha256(text.encode()).hexdigest()

    def serve(self, address: str = "127.0.0.1", port: int = 0, certificate: Path | None = None) -> FileServer:
        return FileServer(self.resolve, address, port, certificate)

    def resolve(self, host: str, path: str) -> Answer | None:
        """GET /v2/<namespace>/<name>/manifests/<tag> and GET /v2/<namespace>/<name>/blobs/sha256:<hex>."""
        parts = path.strip("/").split("/")
        if parts == ["v2"]:
            return Answer(b"{}")
        if len(parts) != 5 or parts[0] != "v2" or ".." in parts:
            return None
        _, namespace, name, kind, what = parts
        if kind == "manifests":
            manifest = self.root / "manifests" / namespace / name / what
            return Answer(manifest, {"Content-Type": MANIFEST}) if manifest.is_file() else None
        blob = self.root / "blobs" / what.removeprefix("sha256:")
        if kind != "blobs" or not blob.is_file():
            return None
        return Answer(blob, {"Location": path, "Docker-Content-Digest": what})

    def _layer(self, kind: str, blob: tuple[str, int]) -> dict[str, Any]:
        digest, size = blob
        return {"mediaType": LAYER + kind, "digest": f"sha256:{digest}", "size": size}

    def _text(self, text: str) -> tuple[str, int]:
        data = text.encode()
        digest = hashlib.sha256(data).hexdigest()
        (self.root / "blobs" / digest).write_bytes(data)
        return digest, len(data)

    def _file(self, path: Path) -> tuple[str, int]:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        target = self.root / "blobs" / digest
        if not target.exists():
            try:
                target.hardlink_to(path)
            except OSError:  # another file system
                shutil.copyfile(path, target)
        return digest, path.stat().st_size


def _about(model: Path) -> dict[str, Any]:
    """What Ollama's own registry says of a model in its config, read from the GGUF's header."""
    header = gguf.read_header(model)
    family = str(header.metadata["general.architecture"])
    elements = sum(_product(tensor.dims) for tensor in header.tensors)
    kind = header.metadata.get("general.file_type")
    return {
        "model_format": "gguf",
        "model_family": family,
        "model_families": [family],
        "model_type": f"{elements / 1e9:.1f}B" if elements >= 1e9 else f"{elements / 1e6:.2f}M",
        "file_type": FILE_TYPES.get(kind, "unknown") if isinstance(kind, int) else "unknown",
        "architecture": "amd64",
        "os": "linux",
    }


def _product(dims: tuple[int, ...]) -> int:
    total = 1
    for size in dims:
        total *= size
    return total
