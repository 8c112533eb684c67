"""Values of a specification that are known only on the box: which of several models is served now.

A planned model may still be on its way when a service is configured, and be there when it is configured again. So the
specification says `{"first_served": {"url": ..., "tags": [...]}}`, and the step gets the first of the tags that the
engine has; the last one where it has none or does not answer.
"""

from __future__ import annotations

from typing import Any

from . import ollama_api as api
from .core import StepError

MARK = "first_served"


def resolve(value: Any) -> Any:
    """The value with every mark replaced by a tag."""
    if isinstance(value, dict):
        if set(value) == {MARK}:
            return first_served(value[MARK]["url"], value[MARK]["tags"])
        return {key: resolve(item) for key, item in value.items()}
    if isinstance(value, list):
        return [resolve(item) for item in value]
    return value


def first_served(url: str, tags: list[str]) -> str:
    try:
        there = api.listed(url)
    except StepError:
        there = {}
    return next((tag for tag in tags if api.parse(tag).short in there), tags[-1])
