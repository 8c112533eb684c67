"""The deploy: a Plan carried out in three passes over all roles.

Used by `ownstack up`, and by pyinfra itself: `pyinfra inventory/local.py deploy.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pyinfra

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent / "src")]

from pyinfra.api.deploy import deploy

from ownstack.engine import operations
from ownstack.engine.backups import PASSPHRASE
from ownstack.engine.role_tasks import manifest_values
from ownstack.plan import Plan
from roles import role as role_named
from roles import roles_of


@deploy("ownstack")
def apply(plan: Plan, **_: Any) -> None:
    """Install everything, then configure everything, then start: no service runs half configured."""
    role_named("base").tasks.install(plan)
    for role in roles_of(plan)[1:]:
        role.tasks.install(plan)
    for role in roles_of(plan):
        role.tasks.configure(plan)
    for role in roles_of(plan):
        role.tasks.activate(plan)
    if plan.has("models"):
        role_named("models").tasks.finish(plan)
    operations.step(
        name="Base: record that it is done",
        plan=plan,
        step_name="box.write_manifest",
        spec={"path": plan.layout.manifest, "values": {"complete": True, "installed": True}},
    )


@deploy("ownstack releases")
def stage(plan: Plan, names: list[str], **_: Any) -> None:
    """Fetch, verify and unpack programs beside those that serve: the links of `plan`'s layout are not the real ones."""
    base = role_named("base").tasks
    base.bring_runner(plan)
    base.programs(plan)
    for name in names:
        if name != "base":
            role_named(name).tasks.install(plan)


@deploy("ownstack switch")
def switch(plan: Plan, names: list[str], **_: Any) -> None:
    """Point some roles at their planned programs and write their configuration; nothing is started."""
    role_named("base").tasks.install(plan)
    for name in names:
        if name != "base":
            role_named(name).tasks.install(plan)
    for name in names:
        role_named(name).tasks.configure(plan)


@deploy("ownstack models")
def bring(plan: Plan, old: Plan, **_: Any) -> None:
    """Start the pulls of the models that `plan` has and `old` has not; the box goes on with `old`'s."""
    role_named("base").tasks.bring_runner(plan)
    role_named("models").tasks.bring(plan, old)


@deploy("ownstack manifest")
def remember(plan: Plan, values: dict[str, Any], **_: Any) -> None:
    """Note something in the manifest; null takes a key away."""
    operations.step(
        name="Base: record",
        plan=plan,
        step_name="box.write_manifest",
        spec={"path": plan.layout.manifest, "values": values},
    )


@deploy("ownstack runner")
def runner(plan: Plan, **_: Any) -> None:
    """Today's runner alone."""
    role_named("base").tasks.bring_runner(plan)


@deploy("ownstack backup tools")
def ready(plan: Plan, **_: Any) -> None:
    """What works on backups: today's runner, and what encrypts their secrets."""
    base = role_named("base").tasks
    base.bring_runner(plan)
    base.bring_age(plan)


@deploy("ownstack backup schedule")
def schedule(plan: Plan, old: Plan, **_: Any) -> None:
    """Backups by themselves as `plan` has them, or none; recorded, so that `up` keeps them."""
    from roles.base import schedule as timer

    if plan.backup is None:
        timer.remove(old)
        secret = f"{plan.layout.secrets}/{PASSPHRASE}"
        operations.step(name="Base: passphrase", plan=plan, step_name="artifacts.remove", spec={"paths": [secret]})
    timer.configure(plan)
    timer.activate(plan)
    made = manifest_values(plan)
    remember(plan=plan, values={key: made[key] for key in ("plan", "plan_digest")})


@deploy("ownstack down")
def remove(plan: Plan, purge: bool = False, packages: list[str] | None = None, **_: Any) -> None:
    """Take services and programs away, in the reverse order; the base goes last."""
    role_named("base").tasks.bring_runner(plan)
    for role in reversed(roles_of(plan)[1:]):
        role.tasks.remove(plan, purge)
    role_named("base").tasks.remove(plan, purge, packages or [])


if pyinfra.is_cli:
    from ownstack.engine.plain import plan_for_current_host

    apply(plan=plan_for_current_host())
