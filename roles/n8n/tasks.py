"""Installing and running n8n."""

from __future__ import annotations

import io
from typing import Any

from pyinfra.api.command import FileUploadCommand, QuoteString, StringCommand
from pyinfra.api.operation import operation
from pyinfra.context import host

from ownstack.data import lock_hash
from ownstack.engine import role_tasks, units
from ownstack.engine.ahead import ask
from ownstack.engine.facts import StepState
from ownstack.engine.operations import Commands, Directory, directories, outliving, release, release_spec, step
from ownstack.kit import data_path
from ownstack.plan import Plan
from roles import n8n
from roles.n8n import NAME, ROLE, maintain

ADDON = "build/Release/node_sqlite3.node"


def install_spec(plan: Plan) -> dict[str, Any]:
    """The specification of `npm.install`."""
    part = plan.role(NAME)
    work = f"{plan.layout.var}/work"
    wanted = n8n.release(plan)
    stem = f"{work}/n8n-{wanted.rsplit('-', 1)[1]}"
    node, addon = (release_spec(plan, part.artifact(name), name)["release"] for name in ("node", "sqlite3-addon"))
    return {
        "name": NAME,
        "version": part.artifact(NAME).version,
        "release": wanted,
        "current": plan.layout.current(NAME),
        "work": work,
        "node": node,
        "package_json": f"{stem}-package.json",
        "package_lock": f"{stem}-package-lock.json",
        "addons": [{"path": f"{addon}/{ADDON}", "to": f"node_modules/sqlite3/{ADDON}"}],
        "prune": n8n.prune_rule(),
        "mirror": plan.mirror,
    }


@operation()
def npm_tree(plan: Plan) -> Commands:
    """n8n's packages as one release; package.json and lock are uploaded only where it is not there yet."""
    run = units.runner_python(plan)
    spec = install_spec(plan)
    now = ask(StepState, runner=run, step="npm.install", spec=spec)
    if not now["changed"]:
        host.noop(f"n8n {spec['version']} is there")
        return
    paths = {spec["package_json"]: "package.json", spec["package_lock"]: "package-lock.json"}
    for path, name in paths.items():
        content = io.BytesIO(n8n.kit_file(name).encode())
        yield FileUploadCommand(content, path, remote_temp_filename=host.get_temp_filename(path))
    yield outliving(plan, "npm.install", spec)
    yield StringCommand("rm", "-f", *[QuoteString(path) for path in paths])


def install(plan: Plan) -> None:
    part = plan.role(NAME)
    release(name="n8n: Node", plan=plan, artifact=part.artifact("node"))
    release(name="n8n: database driver", plan=plan, artifact=part.artifact("sqlite3-addon"))
    lock = part.artifact(NAME)
    if lock_hash(lock.details, data_path(f"roles/{NAME}")) != lock.sha256:
        # The box was installed from an earlier lock, and what is installed moves only with `ownstack upgrade`.
        return
    npm_tree(name="n8n: program", plan=plan)


def configure(plan: Plan) -> None:
    role_tasks.configure(plan, ROLE)
    account = plan.account(NAME)
    exchange = Directory(f"{plan.layout.data(NAME)}/files", "0700", account, account)
    directories(name="n8n: folder for files", wanted=[exchange])
    maintain.configure(plan)


def activate(plan: Plan) -> None:
    step(name="n8n: encryption key", plan=plan, step_name="n8n.preflight", spec=n8n.preflight_spec(plan))
    role_tasks.activate(plan, ROLE)
    step(name="n8n: owner and the kit's key", plan=plan, step_name="n8n.setup", spec=n8n.setup_spec(plan))
    step(name="n8n: credentials and demo", plan=plan, step_name="n8n.content", spec=n8n.content_spec(plan))
    maintain.activate(plan)


def remove(plan: Plan, purge: bool) -> None:
    maintain.remove(plan)
    role_tasks.remove(plan, ROLE, purge)
    if purge:
        step(
            name="n8n: record",
            plan=plan,
            step_name="artifacts.remove",
            spec={"paths": [n8n.record_path(plan), maintain.state_file(plan)]},
        )


def reset_spec(plan: Plan) -> dict[str, Any]:
    """The specification of `n8n.password_reset`."""
    return n8n.password_spec(plan)
