"""Installing and running Ollama. Its models are the role `models`."""

from __future__ import annotations

from ownstack.engine import operations, role_tasks
from ownstack.engine.operations import Directory
from ownstack.plan import ChosenArtifact, Plan
from roles.ollama import NAME, ROLE, models_dir, unpack_rule, watch


def program(plan: Plan) -> ChosenArtifact:
    """The engine's artefact, with the parts of the archive that this hardware uses."""
    artifact = plan.role(NAME).artifact(NAME)
    details = {**artifact.details, "unpack": unpack_rule(artifact.details, plan.engine)}
    return artifact.model_copy(update={"details": details})


def install(plan: Plan) -> None:
    operations.release(name="Ollama: program", plan=plan, artifact=program(plan))


def configure(plan: Plan) -> None:
    account = plan.account(NAME)
    data = plan.layout.data(NAME)
    # 0711: the account that pulls reaches its own folder in the store, and sees nothing else of it
    wanted = [
        Directory(data, "0700", account, account, deep=True),
        Directory(f"{data}/.ollama", "0700", account, account),
        Directory(models_dir(plan), "0711", account, account, deep=models_dir(plan).startswith(f"{plan.layout.var}/")),
    ]
    operations.directories(name="Ollama: store", wanted=wanted)
    role_tasks.configure(plan, ROLE)
    watch.configure(plan)


def activate(plan: Plan) -> None:
    role_tasks.activate(plan, ROLE)
    watch.activate(plan)


def remove(plan: Plan, purge: bool) -> None:
    watch.remove(plan)
    role_tasks.remove(plan, ROLE, purge)
