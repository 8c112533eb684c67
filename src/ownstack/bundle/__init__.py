"""New versions without a new program: a small signed bundle of the kit's data, and how one comes into use.

A bundle is a tar of locks, floors, catalogue and card table with `bundle.json` before them, and a minisign signature
beside it. `files` names what may lie in it, `pack` makes one, `check` is everything that has to hold, `store` keeps it
in the user's folder, `changes` says what it would change, `source` fetches it.
"""

from __future__ import annotations

from ..errors import RunError


class BundleError(RunError):
    """A bundle that is not taken. Nothing was changed."""

    def __init__(self, message: str, hint: str, code: str) -> None:
        super().__init__(message, hint=hint, code=f"bundle-{code}")
