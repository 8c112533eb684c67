"""Running checks: the same ones for `ownstack verify` and for the tests."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ConnectionLostError, OwnstackError, RunError
from ..plan import Plan
from .check import Check, Outcome

if TYPE_CHECKING:
    from ..engine.session import Session


# the watch restarts the engine and then measures: that long `verify` waits for it
SETTLE_S = 300


class LiveContext:
    """A check's view of a real box."""

    def __init__(self, plan: Plan, session: Session) -> None:
        from .backend import testinfra_host

        self.plan = plan
        self.session = session
        self.host = testinfra_host(session)
        self._kept: dict[str, dict[str, Any] | RunError] = {}

    def forget(self) -> None:
        """Ask everything anew from here on."""
        self._kept.clear()

    def step(self, name: str, **spec: Any) -> dict[str, Any]:
        """Run a runner step; the same question is asked once in a run, also one that fails: it may have waited long."""
        key = f"{name} {sorted(spec.items())!r}"
        if key not in self._kept:
            try:
                self._kept[key] = self.session.step(name, spec, looking=True)
            except RunError as error:
                self._kept[key] = error
        found = self._kept[key]
        if isinstance(found, RunError):
            raise found
        return found


@dataclass(frozen=True)
class CheckResult:
    check: Check
    outcome: Outcome
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return {
            "id": self.check.id,
            "role": self.check.role,
            "title": self.check.title,
            "status": self.outcome.status,
            "measured": self.outcome.measured,
            "values": self.outcome.values,
            "hint": self.hint,
            "seconds": round(self.seconds, 2),
        }

    @property
    def hint(self) -> str:
        if self.outcome.status in ("ok", "skipped"):
            return ""
        return self.outcome.hint or self.check.hint


@dataclass(frozen=True)
class VerifyReport:
    results: tuple[CheckResult, ...]

    @property
    def ok(self) -> bool:
        """Green: every check holds. Amber is not green."""
        return all(result.outcome.status in ("ok", "skipped") for result in self.results)

    def failed(self) -> list[CheckResult]:
        return [result for result in self.results if result.outcome.status in ("amber", "failed")]


def all_checks(plan: Plan) -> list[Check]:
    from roles import roles_of

    from .common import checks as common

    found = common(plan)
    for role in roles_of(plan):
        if role.name != "base":
            found += role.checks.checks(plan)
    return found


def run_check(check: Check, context: Any) -> CheckResult:
    """Run one check; a check that breaks has failed, with the reason.

    Raises ConnectionLostError: of a host that cannot be asked any more nothing is known, and no service is at fault.
    """
    began = time.monotonic()
    try:
        outcome = check.run(context)
    except ConnectionLostError:
        raise
    except OwnstackError as error:
        outcome = Outcome.failed(error.message, error.hint)
    except Exception as error:
        outcome = Outcome.failed(f"the check itself broke: {type(error).__name__}: {error}")
    return CheckResult(check, outcome, time.monotonic() - began)


def verify(
    plan: Plan,
    session: Session,
    tell: Callable[[CheckResult], None] = lambda result: None,
    roles: Collection[str] | None = None,
) -> VerifyReport:
    """Run the checks of the plan on the session's host; of some roles only, where they are named."""
    from ..engine import units

    session.layout_runner = units.runner_python(plan)
    context = LiveContext(plan, session)
    looked = remedies(context)
    results = []
    for check in all_checks(plan):
        if roles is not None and check.role not in roles:
            continue
        result = run_check(check, context)
        if looked and result.outcome.status in ("amber", "failed"):
            result = again(check, context, result, looked)
        tell(result)
        results.append(result)
    return VerifyReport(tuple(results))


def remedies(context: LiveContext) -> dict[str, Any]:
    """When the watch over the graphics card last tried a remedy, once it is not looking; empty without a watch."""
    from roles.ollama import watch

    if not watch.wanted(context.plan):
        return {}
    try:
        return context.session.step("gpu.settled", {"state": watch.state_file(context.plan), "seconds": SETTLE_S})
    except OwnstackError:  # nothing answers there: the checks say so
        return {}


def again(check: Check, context: LiveContext, result: CheckResult, looked: dict[str, Any]) -> CheckResult:
    """The check once more, where the watch restarted the engine under it; what it said then counts."""
    now = remedies(context)
    if not now or now["remedied"] <= looked["remedied"]:
        return result
    looked["remedied"] = now["remedied"]
    context.forget()
    return run_check(check, context)
