"""The models that the engine serves: from files that come with the kit, or pulled from a registry."""

from __future__ import annotations

import re
from typing import Any

from ownstack.engine import units
from ownstack.plan import ChosenArtifact, ModelChoice, Plan
from roles import ExtraAccount, Role

NAME = "models"
# what people wait for is pulled while a small model answers; all else is there before `up` ends
BACKGROUND = ("chat", "code", "vision", "task")
# tokens of an answer of a small model that came with the kit: it does not always find an end by itself
LONGEST = 512


def record(plan: Plan) -> str:
    """The file that notes where pulled models came from. What is pulled into an adopted engine has one of its own."""
    return f"{plan.layout.var}/{'adopted-models' if plan.adopted is not None else 'models'}.json"


def account(plan: Plan) -> str:
    """The account that pulls; empty where all runs as one user."""
    return plan.account("pull")


def accounts(plan: Plan) -> list[ExtraAccount]:
    return [] if plan.engine_existing or not plan.system else [ExtraAccount(account(plan), f"{plan.layout.var}/models")]


def pulled(plan: Plan) -> list[ModelChoice]:
    return [model for model in plan.models if model.source == "registry"]


def in_background(plan: Plan, model: ModelChoice) -> bool:
    """Whether the pull goes on after `up`, while the bootstrap model answers."""
    return plan.model("bootstrap") is not None and model.use in BACKGROUND


def sha256(artifact: ChosenArtifact) -> str:
    """The hash of the model file that an artefact gives: the download's own, or a build's reproducible result."""
    return artifact.sha256 or str(artifact.details["result"])


def create_spec(plan: Plan, model: ModelChoice, file: str) -> dict[str, Any]:
    """The specification of `ollama.create`."""
    artifact = plan.role(NAME).artifact(model.artifact)
    return {
        "url": plan.engine_url,
        "tag": model.tag,
        "file": file,
        "sha256": sha256(artifact),
        **({"longest": LONGEST} if model.use != "embedding" and not plan.engine_existing else {}),
        **_written(plan, model),
    }


def _written(plan: Plan, model: ModelChoice) -> dict[str, Any]:
    """What may be written into the engine. One that is not ours gets models only by consent.

    What it has keeps the context that its owner gave it.
    """
    if not plan.engine_existing:
        return {"num_ctx": model.context}
    return {"num_ctx": 0, "may_add": bool(plan.role(NAME).settings.get("may_add_models")), "may_replace": False}


def pull_spec(plan: Plan, model: ModelChoice, then: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """The specification of `ollama.pull`. `then`: steps that make the model the default."""
    from roles.ollama import models_dir

    spec: dict[str, Any] = {
        "model": model.tag,
        "tag": model.tag,
        "url": plan.engine_url,
        "run_dir": units.run_dir(plan),
        "record": record(plan),
        **_written(plan, model),
        "digest": model.digest,
        "download_bytes": model.download_bytes,
        "accept_moved": bool(plan.role(NAME).settings.get("accept_moved")),
        "check": model.use != "embedding",
        "then": then or [],
        "manager": plan.manager,
        "unit": plan.layout.unit("pull-" + re.sub(r"[^a-z0-9]+", "-", model.tag.lower()).strip("-")),
    }
    if plan.engine_existing:
        return {**spec, "via_api": True}
    engine = plan.role("ollama").settings
    proxy = engine.get("pull_proxy", "")
    return {
        **spec,
        "registry": engine.get("registry", ""),
        "insecure": bool(engine.get("registry_insecure")),
        "program": f"{plan.layout.current('ollama')}/bin/ollama",
        "models": models_dir(plan),
        "account": account(plan),
        "environment": {"HTTPS_PROXY": proxy} if proxy else {},
    }


def ensure_spec(plan: Plan) -> dict[str, Any]:
    """The specification of `ollama.ensure`: the planned models."""
    wanted = []
    for model in plan.models:
        held = plan.role(NAME).artifact(model.artifact) if model.source == "artifact" else None
        wanted.append(
            {
                "tag": model.tag,
                "use": model.use,
                "num_ctx": _written(plan, model)["num_ctx"],
                "digest": model.digest if model.source == "registry" else "",
                "sha256": sha256(held) if held and not plan.engine_existing else "",
            }
        )
    return {"url": plan.engine_url, "record": record(plan), "models": wanted}


ROLE = Role(name=NAME, title="Models", accounts=accounts)
