"""The facts of a whole deploy, asked in a few commands: one for all runner steps, one for all paths.

Asked one by one, each costs a round trip and, for a runner step, the start of an interpreter: a run that changes
nothing would spend most of its time on that. `gather` lets each operation of a prepared deploy say what it wants to
know first and asks for all of it together; `ask` then has the answer at hand. Once operations are carried out, facts
are asked one by one again: what was carried out before may have changed them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pyinfra.context import host, state

from .facts import NOTHING_KNOWN, Accounts, PathStates, StepState, StepStates

# of the specifications that travel in one command; a word of a command may have 128 KiB, and quoting adds to it
BATCH_BYTES = 48 << 10
Question = tuple[Any, dict[str, Any]]


class _LaterError(Exception):
    """An operation has said what it wants to know."""


@dataclass
class _Gathered:
    """Questions of operations by their key, and the answers."""

    questions: dict[str, Question] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)
    collecting: bool = True


_gathered: _Gathered | None = None


def _key(fact: Any, arguments: dict[str, Any]) -> str:
    return f"{fact.__name__} {json.dumps(arguments, sort_keys=True)}"


def ask(fact: Any, **arguments: Any) -> Any:
    """A fact of the host: what was gathered for the preview, else asked now."""
    if _gathered is None or state.is_executing:
        return host.get_fact(fact, **arguments)
    key = _key(fact, arguments)
    if key in _gathered.answers:
        return _gathered.answers[key]
    if _gathered.collecting and fact in (Accounts, PathStates, StepState):
        _gathered.questions[key] = (fact, arguments)
        raise _LaterError
    return host.get_fact(fact, **arguments)


@contextlib.contextmanager
def gather(operations: Iterable[Callable[[], Iterator[Any]]], steps: Iterable[dict[str, Any]] = ()) -> Iterator[None]:
    """While it is open, `ask` has the answers to the first question of each operation (its command generator).

    `steps`: of these runner steps (arguments of `StepState`) too.
    """
    global _gathered
    _gathered = _Gathered({_key(StepState, one): (StepState, one) for one in steps})
    try:
        for commands in operations:
            with contextlib.suppress(_LaterError):
                next(commands(), None)
        _gathered.collecting = False
        _answer(_gathered)
        yield
    finally:
        _gathered = None


def _answer(gathered: _Gathered) -> None:
    by_fact: dict[Any, dict[str, dict[str, Any]]] = {}
    for key, (fact, arguments) in gathered.questions.items():
        by_fact.setdefault(fact, {})[key] = arguments
    for key, arguments in by_fact.get(Accounts, {}).items():
        gathered.answers[key] = host.get_fact(Accounts, **arguments)
    paths = by_fact.get(PathStates, {})
    every = sorted({path for arguments in paths.values() for path in arguments["paths"]})
    if every:
        states: list[dict[str, str]] = host.get_fact(PathStates, paths=every, **_record(paths))
        seen = dict(zip(every, states, strict=True))
        for key, arguments in paths.items():
            gathered.answers[key] = [seen[path] for path in arguments["paths"]]
    for batch in _batches(by_fact.get(StepState, {})):
        runner = next(iter(batch.values()))["runner"]
        steps = [[arguments["step"], arguments["spec"]] for arguments in batch.values()]
        found: list[dict[str, Any]] | None = host.get_fact(StepStates, runner=runner, steps=steps)
        # a damaged runner says nothing: an operation before the steps makes it anew
        gathered.answers |= zip(batch, found or [NOTHING_KNOWN] * len(batch), strict=True)


def _record(questions: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The record of written files that the questions name: a box has one."""
    return next(({"written": asked["written"]} for asked in questions.values() if asked.get("written")), {})


def _batches(steps: dict[str, dict[str, Any]]) -> Iterator[dict[str, dict[str, Any]]]:
    """Steps in portions that a command line can carry; a single one may be larger, as it is when asked alone."""
    batch: dict[str, dict[str, Any]] = {}
    size = 0
    for key, arguments in steps.items():
        if batch and size + len(key) > BATCH_BYTES:
            yield batch
            batch, size = {}, 0
        batch[key] = arguments
        size += len(key)
    if batch:
        yield batch
