"""Where the vectors of documents lie: collections of one embedding model, never of two. Pure."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from .plan import VECTORS, ModelChoice, Plan


def prefix_for(recorded: dict[str, Any] | None, embedding: ModelChoice | None) -> str:
    """The beginning of the collections' names: the recorded one while its embedding model stays, else a new one.

    A name that was used before never comes back: what is in its collections may be old.
    """
    if recorded is None:
        return VECTORS
    held: str = recorded.get("vectors", VECTORS)
    old = next((m for m in recorded["models"] if m["use"] == "embedding"), None)
    if old is None or embedding is None or alike(ModelChoice.model_validate(old), embedding):
        return held
    mark = hashlib.sha256(f"{held} {embedding.tag}".encode()).hexdigest()[:8]
    name = re.sub(r"[^a-z0-9]+", "-", embedding.tag.lower()).strip("-")
    return f"{VECTORS}-{name}-{mark}"


def alike(one: ModelChoice, other: ModelChoice) -> bool:
    """Whether two embedding models give vectors that can be compared."""
    return one.tag == other.tag and one.dimension == other.dimension


def reindex_words(old: Plan, new: Plan) -> str:
    """What happens to indexed documents; empty where their vectors stay."""
    if old.vectors == new.vectors or not (old.has("open_webui") and new.has("open_webui")):
        return ""
    before, after = old.model("embedding"), new.model("embedding")
    was = f"{before.tag} ({before.dimension} dimensions)" if before else "none"
    then = f"{after.tag} ({after.dimension} dimensions)" if after else "none"
    return (
        f"documents are indexed anew: {was} becomes {then}; into new collections {new.vectors}_*, "
        f"and the old ones {old.vectors}_* are kept until `ownstack up --prune`"
    )
