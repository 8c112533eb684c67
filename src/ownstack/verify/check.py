"""A check: a stable id, what was measured, and how to go on when it fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ..plan import Plan

Status = Literal["ok", "amber", "failed", "skipped"]


@dataclass(frozen=True)
class Outcome:
    """What a check found. `measured` is one plain sentence, `values` the numbers behind it."""

    status: Status
    measured: str
    values: dict[str, Any] = field(default_factory=dict)
    hint: str = ""

    @classmethod
    def ok(cls, measured: str, **values: Any) -> Outcome:
        return cls("ok", measured, values)

    @classmethod
    def amber(cls, measured: str, hint: str = "", **values: Any) -> Outcome:
        return cls("amber", measured, values, hint)

    @classmethod
    def failed(cls, measured: str, hint: str = "", **values: Any) -> Outcome:
        return cls("failed", measured, values, hint)

    @classmethod
    def skipped(cls, reason: str) -> Outcome:
        return cls("skipped", reason)


class Context(Protocol):
    """What a check may use: the plan, a testinfra host, and runner steps on the target."""

    plan: Plan
    host: Any

    def step(self, name: str, **spec: Any) -> dict[str, Any]:
        """Run a runner step on the target and return its data; raises RunError when it fails."""


@dataclass(frozen=True)
class Check:
    id: str
    title: str
    run: Callable[[Context], Outcome]
    hint: str = ""
    role: str = ""
