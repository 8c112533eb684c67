"""ownstack: a private AI box from one command, sized to its hardware and verified."""

__version__ = "0.1.0"
