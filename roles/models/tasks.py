"""Bringing the planned models to the engine."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from pyinfra.api.command import FileUploadCommand, QuoteString, StringCommand
from pyinfra.api.operation import operation
from pyinfra.context import host, state

from ownstack.engine import carry, operations, units
from ownstack.engine.ahead import ask
from ownstack.engine.facts import StepState
from ownstack.engine.session import step_command
from ownstack.plan import ModelChoice, Plan
from roles import roles_of
from roles.models import NAME, create_spec, in_background, pull_spec, pulled, record
from roles.ollama import adopt


@operation()
def model_file(plan: Plan, model: ModelChoice) -> Generator[StringCommand | FileUploadCommand, None, None]:
    """A model made from a file that the controller obtained; the file is uploaded only where the model is not there."""
    runner = units.runner_python(plan)
    artifact = plan.role(NAME).artifact(model.artifact)
    path = f"{plan.layout.var}/work/{artifact.name}.gguf"
    spec = create_spec(plan, model, path)
    now = ask(StepState, runner=runner, step="ollama.create", spec=spec)
    if not now["changed"]:
        host.noop(f"{model.tag} is there")
        return
    if not state.is_executing:  # a preview obtains nothing
        yield step_command(runner, "ollama.create", spec)
        return
    yield FileUploadCommand(str(carry.held(artifact).path), path, remote_temp_filename=host.get_temp_filename(path))
    yield step_command(runner, "ollama.create", spec)
    yield StringCommand("rm", "-f", QuoteString(path))


def install(plan: Plan) -> None:
    """Models need a running engine: see `activate`."""


def configure(plan: Plan) -> None:
    """The engine has its configuration from its own role, or is told at its adoption: see `activate`."""


def activate(plan: Plan) -> None:
    """The small models now, so that all else can start with them; what is not pulled in the background too."""
    adopt.activate(plan)
    for model in plan.models:
        if model.source == "artifact":
            model_file(name=f"Models: {model.tag}", plan=plan, model=model)
        elif model.source == "registry" and not in_background(plan, model):
            operations.step(
                name=f"Models: pull {model.tag}", plan=plan, step_name="ollama.pull", spec=pull_spec(plan, model)
            )


def finish(plan: Plan) -> None:
    """After everything runs: start the pulls that go on by themselves."""
    for model in pulled(plan):
        if in_background(plan, model):
            then = switching(plan, model.tag) if model.use == "chat" else []
            operations.step(
                name=f"Models: pull {model.tag} in the background",
                plan=plan,
                step_name="ollama.pull_start",
                spec={"runner": units.runner_python(plan), "pull": pull_spec(plan, model, then)},
            )


def bring(plan: Plan, old: Plan) -> None:
    """Start the pulls of models that an earlier plan has not, while its own serve. Who waits for them asks them."""
    had = {model.tag for model in old.models}
    for model in pulled(plan):
        if model.tag not in had:
            operations.step(
                name=f"Models: fetch {model.tag}",
                plan=plan,
                step_name="ollama.pull_start",
                spec={"runner": units.runner_python(plan), "pull": {**pull_spec(plan, model), "check": False}},
            )


def switching(plan: Plan, tag: str) -> list[dict[str, Any]]:
    """The steps by which the other roles take a new chat model as their default."""
    return [call for role in roles_of(plan) for call in role.model_steps(plan, tag)]


def remove(plan: Plan, purge: bool) -> None:
    """Pulls end; models stay with the engine's data, and with an engine that is not ours in any case."""
    operations.step(
        name="Models: end pulls",
        plan=plan,
        step_name="ollama.pull_stop",
        spec={"manager": plan.manager, "run_dir": units.run_dir(plan)},
    )
    if plan.adopted is not None and purge:  # what this box pulled into it, and nobody changed since
        spec = {"url": plan.engine_url, "record": record(plan), "keep": [], "farewell": True}
        operations.step(name="Models: remove what was added", plan=plan, step_name="ollama.prune", spec=spec)
    adopt.remove(plan)
    if purge:
        paths = [record(plan), *[f"{plan.layout.opt}/{artifact.name}" for artifact in plan.role(NAME).artifacts]]
        if plan.has("ollama") and not any(name == "ollama:models" for name, _, _ in plan.folders):
            paths.append(f"{plan.layout.var}/models")
        operations.step(name="Models: remove", plan=plan, step_name="artifacts.remove", spec={"paths": paths})
