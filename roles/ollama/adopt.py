"""An Ollama that was there before: our drop-in and its variables, brought and taken away again."""

from __future__ import annotations

import urllib.parse
from typing import Any

from ownstack.engine import operations, units
from ownstack.engine.render import render
from ownstack.plan import Adopted, ConfigFile, Plan
from ownstack.verify.check import Check, Context, Outcome
from ownstack.verify.common import listens

NAME = "models"  # the role that works with an engine which the box did not install


def record(plan: Plan) -> str:
    """What there was before, so that it can be given back as it was."""
    return f"{plan.layout.var}/adopted.json"


def told(plan: Plan, held: Adopted) -> str:
    """The file of variables, also of a box that was made before there was one."""
    return held.variables or plan.layout.adopted


def content(path: str) -> str:
    """Our drop-in. The unit does not start without the file that it names: rather not at all than open to others."""
    units.unit_filters()
    return render("ollama/adopted.conf.j2", path=path)


def variables(held: Adopted) -> str:
    """The file that our drop-in names."""
    return render("ollama/adopted.env.j2", environment=held.environment)


def spec(plan: Plan, held: Adopted) -> dict[str, Any]:
    """The specification of `ollama.adopt`."""
    return {
        **units.process(plan),
        "unit": held.unit,
        "path": held.dropin,
        "content": content(told(plan, held)),
        "variables": {"path": told(plan, held), "content": variables(held)},
        "environment": dict(held.environment),
        "url": plan.engine_url,
        "record": record(plan),
        "written": plan.layout.written,
    }


def files(plan: Plan) -> list[ConfigFile]:
    """Our files, where the owner may have edited them."""
    held = plan.adopted
    if held is None:
        return []
    return [
        ConfigFile(path=held.dropin, content=content(told(plan, held))),
        ConfigFile(path=told(plan, held), content=variables(held)),
    ]


def back_spec(plan: Plan) -> dict[str, Any]:
    """The specification of `ollama.give_back`."""
    process = units.process(plan)
    return {**process, "record": record(plan), "url": plan.engine_url, "written": plan.layout.written}


def retire(plan: Plan) -> None:
    """One that is no longer the engine is given back, while the record still names it."""
    if plan.given_back is not None:
        operations.step(
            name=f"Ollama: give {plan.given_back.unit} back", plan=plan, step_name="ollama.give_back",
            spec=back_spec(plan),
        )  # fmt: skip


def activate(plan: Plan) -> None:
    if plan.adopted is not None:
        operations.step(
            name=f"Ollama: adopt {plan.adopted.unit}", plan=plan, step_name="ollama.adopt",
            spec=spec(plan, plan.adopted),
        )  # fmt: skip


def remove(plan: Plan) -> None:
    held = plan.adopted or plan.given_back
    if held is not None:
        operations.step(
            name=f"Ollama: give {held.unit} back", plan=plan, step_name="ollama.give_back",
            spec=back_spec(plan),
        )  # fmt: skip


def in_force(context: Context) -> Outcome:
    """Our files are as planned, and the engine runs with what they say."""
    held = context.plan.adopted
    if held is None:
        return Outcome.skipped("no engine is adopted")
    data = context.step("ollama.adopted", **spec(context.plan, held))
    values = {"unit": held.unit, "dropins": data["dropins"]}
    edited = " and ".join(data["edited"])
    if not (data["same"] or edited) or not data["active"]:
        what = f"has not the planned {held.dropin}" if data["active"] else "does not run"
        return Outcome.failed(f"{held.unit} {what}", **values)
    if edited:
        hint = "leave it: it is yours; or `ownstack up --overwrite` takes the planned one"
        return Outcome.amber(f"{held.unit} runs with {edited} as you edited it", hint, **values)
    if data["overruled"]:
        names = ", ".join(f"{name} ({path})" for name, path in data["overruled"].items())
        hint = "take the variable out of that file, or leave it: it is yours"
        return Outcome.amber(f"{held.unit} runs with settings of yours that win: {names}", hint, **values)
    return Outcome.ok(f"{held.unit} runs with {held.dropin}, {len(held.environment)} variables", **values)


def loopback(plan: Plan) -> Check:
    """Whatever its owner's files say: where it listens in truth."""
    port = urllib.parse.urlsplit(plan.engine_url).port or 11434
    hint = '`models-adopted` names the file of yours that opens it; `[ollama] use = "existing"` takes it as it is'
    return Check("models-loopback", "The adopted engine listens on loopback only", listens((port,)), hint, NAME)


def checks(plan: Plan) -> list[Check]:
    if plan.adopted is None:
        return []
    hint = "`ownstack up` brings it again"
    settled = Check("models-adopted", "The adopted engine runs with the box's settings", in_force, hint, NAME)
    return [settled, loopback(plan)]
