"""Choosing: from five frozen inputs to a Plan. Pure: nothing here reads anything else."""

from .choose import choose

__all__ = ["choose"]
