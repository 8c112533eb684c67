"""Documents under another embedding model: their texts get new vectors first, as they lie; then what is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import RunError
from .output import note

if TYPE_CHECKING:
    from ..plan import Plan

    Step = Callable[[str, dict[str, Any]], dict[str, Any]]


def carry(step: Step, plan: Plan, old: str, live: bool = False) -> bool:
    """New vectors for what lies in the collections that begin with `old`. Whether that was done.

    `live`: the plan's collections are searched already, so that nothing of them may go. Not where the owner has
    Open WebUI embed with a model of his own: only it knows which one. Raises RunError where some of it stays half-done,
    which would be taken for whole.
    """
    from roles.open_webui import vectors_spec

    spec = vectors_spec(plan, old)
    if not spec["model"]:
        return False
    try:
        step("open_webui.vectors", {**spec, "live": live})
    except RunError as error:
        if error.code == "vectors-half":
            raise
        note(f"documents are indexed by Open WebUI, and found bit by bit: {error.message}")
        return False
    return True


def anew(step: Step, plan: Plan, old: str) -> None:
    """All of it, where the service that searches has just started. Raises RunError where a document does not arrive."""
    rest(step, plan, old, carry(step, plan, old, live=True))


def rest(step: Step, plan: Plan, old: str, carried: bool) -> None:
    """What is not carried over: what came since, or where nothing was, all documents."""
    from roles.open_webui import reindex_spec

    step("open_webui.reindex", reindex_spec(plan, old, carried))
