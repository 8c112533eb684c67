"""The chat model that serves, as a value for specifications of steps."""

from __future__ import annotations

from typing import Any

from ..plan import Plan
from ..runner.served import MARK


def chat_model(plan: Plan) -> Any:
    """The chat model's tag; where it is still being pulled, the mark by which the runner finds the one that serves."""
    tags = [model.tag for model in (plan.model("chat"), plan.model("bootstrap")) if model is not None]
    tags = [tag if ":" in tag else f"{tag}:latest" for tag in dict.fromkeys(tags)]
    if len(tags) > 1:
        return {MARK: {"url": plan.engine_url, "tags": tags}}
    return tags[0] if tags else ""
