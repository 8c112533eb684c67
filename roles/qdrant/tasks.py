"""Installing and running Qdrant."""

from __future__ import annotations

from ownstack.engine import role_tasks
from ownstack.engine.operations import release
from ownstack.plan import Plan
from roles.qdrant import NAME, ROLE


def install(plan: Plan) -> None:
    release(name="Qdrant: program", plan=plan, artifact=plan.role(NAME).artifact("qdrant"))


def configure(plan: Plan) -> None:
    role_tasks.configure(plan, ROLE)


def activate(plan: Plan) -> None:
    role_tasks.activate(plan, ROLE)


def remove(plan: Plan, purge: bool) -> None:
    role_tasks.remove(plan, ROLE, purge)
