"""Live progress on stderr: one line a role, downloads with bytes and rate. Plain lines without a terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from .output import note, size, style

WIDTH = 100
PLAIN_EVERY_S = 20.0
CLEAR = "\r\x1b[K"


def silent(event: dict[str, Any]) -> None:
    """Nobody listens."""


class Progress:
    """Listens to the events of a run; at the end one line a role. Use as a context manager."""

    def __init__(self, quiet: bool = False, verbose: bool = False) -> None:
        self.quiet = quiet
        self.verbose = verbose and not quiet
        self.live = sys.stderr.isatty() and not quiet
        self.role = ""
        self.began = time.monotonic()
        self.seconds: dict[str, float] = {}
        self.shown = ""
        self.told = 0.0
        self.last = (0.0, 0)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._next("")
        if self.live:
            sys.stderr.write(CLEAR)
        for role, seconds in self.seconds.items():
            bad = kind is not None and role == list(self.seconds)[-1]
            mark = style("failed", "red") if bad else style("done", "green")
            if not self.quiet:
                note(f"  {role:<12} {mark}  {seconds:.1f} s")

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] == "operation":
            role, _, what = str(event["name"]).rpartition(": ")
            self._next(role or self.role)
            if self.verbose:
                note(f"{CLEAR if self.live else ''}  {event['name']}")
            else:
                self._show(what or event["name"])
        elif event["event"] == "progress":
            self._show(self._bytes(event))

    def _next(self, role: str) -> None:
        now = time.monotonic()
        if self.role:
            spent = self.seconds.pop(self.role, 0.0)  # last worked on, last in the list
            self.seconds[self.role] = spent + now - self.began
        self.role, self.began = role, now

    def _bytes(self, event: dict[str, Any]) -> str:
        done, total = event.get("done") or 0, event.get("total")
        if not done:
            return str(event["what"])
        now = time.monotonic()
        then, before = self.last
        rate = (done - before) / (now - then) if now > then and done >= before and then else 0
        self.last = (now, done)
        parts = [str(event["what"]), size(done) + (f" of {size(total)}" if total else "")]
        if rate > 0:
            parts.append(f"{size(rate)}/s")
        return ", ".join(parts)

    def _show(self, text: str) -> None:
        if self.quiet or text == self.shown:
            return
        self.shown = text
        line = f"  {self.role or 'ownstack'}  {text}"[:WIDTH]
        if self.live:
            sys.stderr.write(f"{CLEAR}{line}")
            sys.stderr.flush()
        elif time.monotonic() - self.told > PLAIN_EVERY_S:  # a log file is not filled with progress
            self.told = time.monotonic()
            note(line)
