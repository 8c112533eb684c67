"""A run over SSH goes on when its connection drops: it connects again, and begins where it stopped."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ..errors import ConfigError, ConnectionLostError, HeldError, OwnstackError, UnreachableError
from .output import note

Result = TypeVar("Result")

PATIENCE_S = 600.0  # how long a host may stay away; OWNSTACK_RECONNECT says another number of seconds
PAUSE_S = 5.0
MOST = 10  # connections that break, one after the other
# seconds for which a run whose connection broke may still hold the box there: longer than engine.hold.SILENCE_S
HELD_S = 60.0


@dataclass
class Run:
    """What must not be asked twice. `again`: its connection broke, and this is another attempt."""

    again: bool = False
    agreed: set[str] = field(default_factory=set)
    heard: dict[str, Any] = field(default_factory=dict, repr=False)

    def once(self, what: str, ask: Callable[[], Result]) -> Result:
        """What is asked or read at the first attempt only: a file may be a pipe, which has nothing a second time."""
        if what not in self.heard:
            self.heard[what] = ask()
        found: Result = self.heard[what]
        return found


CURRENT: ContextVar[Run] = ContextVar("run")


def current() -> Run:
    """The run at hand; one of its own for whoever calls a command's parts by themselves."""
    return CURRENT.get(Run())


def patience() -> float:
    """Raises ConfigError where OWNSTACK_RECONNECT is no number of seconds."""
    text = os.environ.get("OWNSTACK_RECONNECT", "")
    try:
        seconds = float(text) if text else PATIENCE_S
    except ValueError:
        seconds = -1
    if not 0 <= seconds < 1e6:
        raise ConfigError(
            f"OWNSTACK_RECONNECT={text}: not a number of seconds",
            hint=f"0 gives up at once; without it {PATIENCE_S:.0f}",
        )
    return seconds


def going_on(run: Callable[[], Result]) -> Result:
    """Run a command; again when its connection has broken, until the host has stayed away for too long."""
    most, token = patience(), CURRENT.set(Run())
    try:
        return _attempts(run, most)
    finally:
        CURRENT.reset(token)


def _attempts(run: Callable[[], Result], most: float) -> Result:
    broke, losses = 0.0, 0
    while True:
        try:
            return run()
        except ConnectionLostError as error:
            losses += 1
            if most == 0 or losses > MOST or _interrupted(error):
                raise
            note(f"{error.message}. What takes long goes on there; trying to connect again, for {most:.0f} s")
            current().again, broke = True, time.monotonic()
        except OwnstackError as error:
            if not losses or time.monotonic() - broke > _awaited(error, most) or _interrupted(error):
                raise
        time.sleep(min(PAUSE_S, most))


def _interrupted(error: BaseException | None) -> bool:
    """Whether somebody ended the run, and the connection broke on the way back: what he ended does not go on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def _awaited(error: OwnstackError, most: float) -> float:
    """How many seconds after the break this may still be due to it."""
    if isinstance(error, HeldError):
        return HELD_S
    # a step that was cut off works on over there until it wants to say something: a large copy, say
    return most if isinstance(error, UnreachableError) or error.code == "busy" else 0.0
