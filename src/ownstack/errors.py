"""The one error hierarchy. Every error names what went wrong and how to go on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

Method = TypeVar("Method", bound=Callable[..., Any])


class OwnstackError(Exception):
    """A failure that is reported to the user as `error:` and `hint:`.

    `code` is stable and machine readable (it appears in `--json`), `exit_code` is the process's
    exit status as `ownstack --help` tells it.
    """

    code = "error"
    exit_code = 1

    def __init__(self, message: str, *, hint: str = "", code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if code is not None:
            self.code = code


class RunError(OwnstackError):
    """A run or a check failed."""

    code = "run-failed"
    exit_code = 1


class HeldError(RunError):
    """Another run works on the box."""

    code = "busy"


class ConfigError(OwnstackError):
    """Wrong usage, settings or data files."""

    code = "config"
    exit_code = 2


class UnsupportedError(OwnstackError):
    """Nothing fits this host, or the host is not supported."""

    code = "unsupported"
    exit_code = 3


class DetectionError(UnsupportedError):
    """Something visibly there could not be read; never treated as absent."""

    code = "detection"


class UnreachableError(OwnstackError):
    """The host could not be reached or refused us."""

    code = "unreachable"
    exit_code = 4


class ConnectionLostError(UnreachableError):
    """A connection that stood has broken: what runs again goes on where it stopped."""


def way_back(method: Method) -> Method:
    """For a method that puts back what was there, and is told first why (in words or as an error): what fails on that
    way says why it was gone, or the first fault would be known to nobody, and that `up` goes on from there.
    """

    @functools.wraps(method)
    def going(self: Any, why: OwnstackError | str, *more: Any) -> Any:
        try:
            return method(self, why, *more)
        except OwnstackError as error:
            reason = why.message if isinstance(why, OwnstackError) else why
            error.message = f"{error.message} (on the way back, after this: {reason})"
            error.hint = f"{error.hint or 'mend that'}; then run `ownstack up`: it ends what was begun"
            raise

    return cast(Method, going)
