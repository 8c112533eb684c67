"""Settings of Qdrant, the vector database."""

from __future__ import annotations

from pydantic import Field

from ownstack.hardware.report import Frozen


class Settings(Frozen):
    port: int = Field(6333, ge=1024, le=65535, description="Loopback port of Qdrant's HTTP interface.")
    allow_below_floor: bool = Field(
        False, description="Accept a version below the security floor, where nothing else can be had."
    )
