"""A VerifyReport for people."""

from __future__ import annotations

from ..errors import RunError
from ..verify.runner import CheckResult, VerifyReport
from .output import say, style

MARKS = {"ok": ("ok", "green"), "amber": ("amber", "yellow"), "failed": ("FAILED", "red"), "skipped": ("skipped", "")}


def tell(result: CheckResult) -> None:
    word, colour = MARKS[result.outcome.status]
    say(f"  {style(f'{word:<8}', colour)}{result.check.id:<26} {result.outcome.measured}")
    if result.hint:
        say(f"  {'':<8}{'':<26} hint: {result.hint}")


def summary(report: VerifyReport) -> str:
    counts = {status: sum(r.outcome.status == status for r in report.results) for status in MARKS}
    parts = [f"{number} {status}" for status, number in counts.items() if number]
    return f"{len(report.results)} checks: {', '.join(parts)}"


def failure(report: VerifyReport) -> RunError | None:
    """What the envelope says of checks that do not hold; None when all do."""
    bad = report.failed()
    if not bad:
        return None
    names = ", ".join(result.check.id for result in bad)
    message = f"{len(bad)} of {len(report.results)} checks do not hold: {names}"
    return RunError(message, hint=bad[0].hint, code="checks-failed")
