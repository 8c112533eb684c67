"""What the processes of one test run share: the first that needs it makes it, the others take it over.

End-to-end tests run in two lanes, which are processes of their own, each with its own network
and its own mirror. The provisioned host is made once and frozen, and both clone it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, TypeVar

from .commands import cache

Value = TypeVar("Value")


class Lane:
    """This process's place in its run. `finish` waits for the others where this one made what they use."""

    def __init__(self) -> None:
        live = cache() / "live"
        live.mkdir(exist_ok=True)
        self.folder = live / f"shared-{os.environ.get('PYTEST_XDIST_TESTRUNUID') or os.getpid()}"
        self.made = False
        with (live / "shared.lock").open("w") as alone:
            fcntl.flock(alone, fcntl.LOCK_EX)
            _sweep(live, self.folder)
            self.folder.mkdir(exist_ok=True)
            self.users = (self.folder / "users").open("w")
            fcntl.flock(self.users, fcntl.LOCK_SH)

    def once(self, name: str, make: Callable[[], Value]) -> Value:
        """What `make` gives, from the first process of the run that asks; the value must be one that pickle takes."""
        path = self.folder / name
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists():
                taken: Value = pickle.loads(path.read_bytes())  # noqa: S301 - written by this run
                return taken
            value = make()
            path.write_bytes(pickle.dumps(value))
            self.made = True
            return value

    def finish(self) -> None:
        """Call before what this process made goes. Safe to call twice."""
        if self.users.closed:
            return
        fcntl.flock(self.users, fcntl.LOCK_UN)
        if self.made:
            fcntl.flock(self.users, fcntl.LOCK_EX)
        if self.made or _free(self.users):
            shutil.rmtree(self.folder, ignore_errors=True)
        self.users.close()


def _free(users: IO[str]) -> bool:
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _sweep(live: Path, mine: Path) -> None:
    """Remove what runs that died have left."""
    for folder in live.glob("shared-*"):
        if folder != mine:
            with (folder / "users").open("a") as users:
                if _free(users):
                    shutil.rmtree(folder, ignore_errors=True)
