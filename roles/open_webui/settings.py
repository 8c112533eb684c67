"""Settings of Open WebUI, the web page."""

from __future__ import annotations

import difflib
from typing import Literal

from pydantic import Field, field_validator

from ownstack.hardware.report import Frozen

from .owned import KEYS


class Settings(Frozen):
    port: int = Field(8080, ge=1024, le=65535, description="Loopback port of the web page.")
    admin_email: str = Field(
        "owner@ownstack.local",
        pattern=r"^[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9.-]{1,190}$",
        description="Sign-in name of the owner's account, made at the first start.",
    )
    admin_name: str = Field(
        "Owner", min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]*$", description="Name shown for that account."
    )
    full: bool = Field(
        False,
        description="Install the parts that the box does without: speech to text, text in pictures of a PDF, the "
        "Chroma store, other databases. About 0.7 GB more. PyTorch is in neither: embedding is Ollama's work here.",
    )
    background_tasks: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Titles, tags, follow-up questions and search queries made by a model: auto makes them where the "
        "plan has a small model for it or a GPU.",
    )
    plugins: bool = Field(
        False,
        description="Let administrators add functions and tools: Python code of others that runs inside the service.",
    )
    hosts: tuple[str, ...] = Field((), description="Further host names under which browsers may ask, behind a proxy.")
    user_owned: tuple[str, ...] = Field(
        (), description="Keys of Open WebUI's configuration that ownstack sets by default and that you take over."
    )

    @field_validator("hosts")
    @classmethod
    def _host_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not name or not all(char.isascii() and (char.isalnum() or char in ".-:") for char in name):
                raise ValueError(f"{name!r} is not a host name")
        return tuple(name.lower() for name in value)

    @field_validator("user_owned")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in KEYS:
                near = difflib.get_close_matches(name, KEYS, 1)
                raise ValueError(
                    f"{name!r} is not a key that ownstack owns" + (f": did you mean {near[0]!r}?" if near else "")
                )
        return value
