"""Settings of the base: there are none to choose."""

from __future__ import annotations

from ownstack.hardware.report import Frozen


class Settings(Frozen):
    """The base role has no settings of its own."""
