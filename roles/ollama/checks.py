"""What `verify` looks at in the engine itself."""

from __future__ import annotations

from typing import Any

from ownstack.engine import units
from ownstack.plan import Plan
from ownstack.verify.check import Check, Context, Outcome
from roles.ollama import NAME, watch


def engine(plan: Plan) -> dict[str, Any]:
    """Where the runner asks the engine, and finds its log."""
    return {
        "url": plan.engine_url,
        "manager": plan.manager,
        "unit": plan.layout.unit(NAME),
        "log_dir": units.log_dir(plan),
    }


def version(context: Context) -> Outcome:
    wanted = context.plan.role(NAME).artifact(NAME).version
    found = context.step("ollama.evidence", **engine(context.plan))["version"]
    measured = f"Ollama {found} answers, {wanted} is recorded"
    return (Outcome.ok if found == wanted else Outcome.failed)(measured, version=found)


def cloud(context: Context) -> Outcome:
    """Ollama says at its start whether its cloud is off; its own file holds the same switch."""
    data = context.step("ollama.evidence", **engine(context.plan))
    path = f"{context.plan.layout.data(NAME)}/.ollama/server.json"
    file = context.host.file(path)
    switched = file.exists and '"disable_ollama_cloud": true' in file.content_string
    logged = {True: "the engine logged that its cloud is off", False: "the engine logged that its cloud is ON"}
    measured = logged.get(data["cloud_off"], "the log of the engine's start is gone")
    measured += f"; {path} switches it off" if switched else f"; {path} does not switch it off"
    values = {"cloud_off": data["cloud_off"], "requests_logged": data["requests_logged"]}
    if data["requests_logged"]:
        return Outcome.failed("the engine writes what users ask to disk", **values)
    right = switched and data["cloud_off"] is not False
    return (Outcome.ok if right else Outcome.failed)(measured, **values)


def device(context: Context) -> Outcome:
    """The engine found the kind of device that the plan counts on."""
    wanted = context.plan.engine
    found = context.step("ollama.evidence", **engine(context.plan))["devices"]
    names = ", ".join(f"{d['library']} ({d['name']})" for d in found) or "none in the log"
    if not found:
        return Outcome.amber("the log of the engine's start is gone", "`ownstack restart ollama` writes it again")
    right = any(d["library"].lower().startswith(wanted) for d in found)
    return (Outcome.ok if right else Outcome.failed)(f"planned {wanted}, found {names}", devices=found)


def checks(plan: Plan) -> list[Check]:
    again = "run `ownstack up`, it writes the configuration again and restarts Ollama"
    driver = "look at the driver: `ownstack detect`, then `ownstack restart ollama`"
    found = [
        Check("ollama-version", "Ollama runs in the recorded version", version, "`ownstack restart ollama`", NAME),
        Check("ollama-cloud-off", "Ollama's cloud is off and requests are not written down", cloud, again, NAME),
    ]
    if plan.engine != "cpu":
        found.append(Check("ollama-device", "Ollama found the planned device", device, driver, NAME))
    return [*found, *watch.checks(plan)]
