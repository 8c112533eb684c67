"""Settings of the models."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ownstack.hardware.report import Frozen

PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
NAME = rf"^(({PART}(:\d+)?/)?({PART}/)?{PART}(:{PART})?)?$"


def tag(text: str) -> str:
    field: str = Field("", description=text, pattern=NAME, max_length=200)
    return field


class Settings(Frozen):
    chat: str = tag("The chat model, as Ollama names it (qwen3:14b); empty: the best that fits.")
    embedding: str = tag("The embedding model; empty: the one that fits beside the chat model.")
    code: str = tag("A model for code completion; empty: none.")
    vision: str = tag("A model that reads pictures; empty: none.")
    context: int | None = Field(
        None, ge=512, le=1048576, description="Context length of the chat model in tokens; from memory where not set."
    )
    kv_type: Literal["f16", "q8_0", "q4_0"] | None = Field(
        None, description="How the cache of a conversation is kept; smaller kinds save memory and cost some quality."
    )
    parallel: int = Field(
        1, ge=1, le=16, description="Requests answered at the same time; each takes memory of its own."
    )
    speed_floor: float | None = Field(
        None, ge=0, le=1000, description="Tokens a second that the chat model must reach; by the machine's class where "
        "not set. Lower it for a better and slower model."
    )  # fmt: skip
    keep: bool = Field(
        False, description="Keep a standing box's models when its hardware changes; their memory is fitted anew."
    )
    refit: bool = Field(
        False, description="Choose a standing box's models anew, also where hardware and wishes are the same."
    )
    may_add_models: bool = Field(
        False, description="Consent to add missing models to an Ollama that the kit did not install, through its API."
    )
    accept_moved: bool = Field(
        False, description="Take a model whose registry tag no longer names the build that the catalogue knows."
    )
