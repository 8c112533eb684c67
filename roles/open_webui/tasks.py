"""Installing and running Open WebUI."""

from __future__ import annotations

import hashlib
from typing import Any

from ownstack.engine import role_tasks
from ownstack.engine.operations import python_env, step
from ownstack.kit import data_path
from ownstack.plan import Plan
from roles.open_webui import NAME, ROLE, configure_spec, password_spec, setup_spec


def install(plan: Plan) -> None:
    part = plan.role(NAME)
    details = part.artifact("open-webui").details
    which = "full_" if part.settings.get("full") else ""
    lock = data_path(f"roles/{NAME}/{details[f'{which}lock']}").read_text()
    if hashlib.sha256(lock.encode()).hexdigest() != details[f"{which}sha256"]:
        # The box was installed from an earlier lock, and what is installed moves only with `ownstack upgrade`.
        return
    version = part.artifact("open-webui").version
    python_env(name="Open WebUI: program", plan=plan, component=NAME, lock=lock, version=version)


def configure(plan: Plan) -> None:
    role_tasks.configure(plan, ROLE)


def activate(plan: Plan) -> None:
    role_tasks.activate(plan, ROLE)
    step(name="Open WebUI: the kit's account", plan=plan, step_name="open_webui.setup", spec=setup_spec(plan))
    step(name="Open WebUI: owned settings", plan=plan, step_name="open_webui.configure", spec=configure_spec(plan))


def reset_spec(plan: Plan) -> dict[str, Any]:
    """The specification of `open_webui.password_reset`."""
    return password_spec(plan)


def remove(plan: Plan, purge: bool) -> None:
    role_tasks.remove(plan, ROLE, purge)
