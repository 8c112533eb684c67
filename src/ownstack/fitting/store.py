"""Models in an Ollama store on this machine: tag -> the GGUF file that holds it."""

from __future__ import annotations

import json
import os
from pathlib import Path

MODEL = "application/vnd.ollama.image.model"
PLACES = ("~/.ollama/models", "/var/lib/ownstack/ollama/models", "/usr/share/ollama/.ollama/models")


def stores() -> list[Path]:
    """The stores that can be looked into, `OLLAMA_MODELS` first."""
    named = os.environ.get("OLLAMA_MODELS")
    return [path for text in ((named,) if named else ()) + PLACES if (path := Path(text).expanduser()).is_dir()]


def find(tag: str, places: list[Path] | None = None) -> Path | None:
    """The file of `tag` (`name:tag`, `namespace/name:tag`, `host/namespace/name:tag`), or None.

    Unreadable stores and manifests count as absent: the catalogue is asked next.
    """
    name, _, version = tag.partition(":") if tag.rfind(":") > tag.rfind("/") else (tag, "", "")
    parts = name.split("/")
    if not all(part and not part.startswith(".") for part in (*parts, version or "latest")) or len(parts) > 3:
        return None
    path = ["registry.ollama.ai", "library"][: 3 - len(parts)] + parts
    for store in stores() if places is None else places:
        try:
            manifest = json.loads(store.joinpath("manifests", *path, version or "latest").read_text())
            digests = [layer["digest"] for layer in manifest["layers"] if layer["mediaType"] == MODEL]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        for digest in digests:
            blob = store / "blobs" / str(digest).replace(":", "-").replace("/", "")
            if blob.is_file():
                return blob
    return None
