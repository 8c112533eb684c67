"""Backups as specifications of runner steps. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..data import version_key
from ..kit import activate
from ..plan import Plan
from ..settings import Settings
from ..upgrading import opens
from . import scratch, units

# they belong to where a box stands or who works on it, not to what it is
PLACE = ("host", "root", "prefix", "scope", "sources.", "hardware.")
# the passphrase of backups that make themselves: it would be of no use in what it opens
PASSPHRASE = "backup_passphrase"  # noqa: S105 - the name of a secret


def folder(plan: Plan) -> str:
    """Where backups go when no folder is named: beside the box's data, so that `down --purge` leaves them."""
    return f"{plan.layout.var}-backups"


def state_file(plan: Plan) -> str:
    return f"{plan.layout.var}/backups.json"


def mark(plan: Plan) -> str:
    """What tells this box's backups from those of another one of the same name; "" where its machine has no id."""
    machine = plan.host.machine_id_hash
    return hashlib.sha256(f"{machine}:{plan.layout.var}".encode()).hexdigest()[:12] if machine else ""


def key_spec(plan: Plan, **keys: Any) -> dict[str, Any]:
    """What encrypts and decrypts: recipients, passphrase_file, identity_file."""
    return {"age": plan.layout.current("age"), **{name: value for name, value in keys.items() if value}}


def common(plan: Plan) -> dict[str, Any]:
    return {
        "work": f"{plan.layout.var}/work",
        "lock": f"{units.run_dir(plan)}/backup.lock",
        "secrets_dir": plan.layout.secrets,
        "var": plan.layout.var,
    }


def kept(plan: Plan) -> list[dict[str, Any]]:
    """The data folders that are backed up."""
    activate()
    from roles import roles_of

    return [
        {
            "name": role.name, "folder": plan.layout.data(role.name), "databases": list(role.keep.databases),
            "skip": list(role.keep.skip), "sealed": list(role.keep.sealed),
        }
        for role in roles_of(plan)
        if role.keep is not None
    ]  # fmt: skip


def records(plan: Plan, without: Iterable[str] = ()) -> list[str]:
    activate()
    from roles import roles_of

    keeps = [role.keep for role in roles_of(plan) if role.name not in without]
    return [name for keep in keeps if keep is not None for name in keep.records]


def versions(plan: Plan) -> dict[str, str]:
    return {item.name: item.version for part in plan.roles for item in part.artifacts}


def chosen_settings(settings: Settings) -> dict[str, Any]:
    """What the owner of the box set, without what belongs to the place; it has no secrets."""
    return {
        key: value
        for key, value, origin in settings.flat()
        if origin != "default" and not key.startswith(PLACE) and not isinstance(value, Path)
    }


def make_spec(
    plan: Plan, settings: dict[str, Any], to: str, keep: int, with_models: bool, keys: dict[str, Any]
) -> dict[str, Any]:
    """The specification of `backup.make`."""
    return {
        **common(plan),
        **key_spec(plan, **keys),
        "to": to,
        "keep": keep,
        "hostname": plan.host.hostname,
        "mark": mark(plan),
        "kit_version": plan.kit_version,
        "versions": versions(plan),
        "services": kept(plan),
        "records": records(plan),
        "manifest": plan.layout.manifest,
        "qdrant": {"url": qdrant_url(plan)} if plan.has("qdrant") else None,
        "models": models_spec(plan, with_models) if plan.has("models") else None,
        "settings": settings,
        "unsaved": [PASSPHRASE],
        "state": state_file(plan),
    }


def outliving(plan: Plan, spec: dict[str, Any], unit: str = "backup") -> dict[str, Any]:
    return {
        **spec,
        "run_dir": units.run_dir(plan),
        "manager": plan.manager,
        "unit": plan.layout.unit(unit),
        "runner": units.runner_python(plan),
    }


def qdrant_url(plan: Plan) -> str:
    return f"http://127.0.0.1:{plan.role('qdrant').ports['port']}"


def models_spec(plan: Plan, with_models: bool) -> dict[str, Any]:
    activate()
    from roles.models import record

    return {
        "url": plan.engine_url,
        "folder": store(plan),
        "record": record(plan),
        "planned": [model.tag for model in plan.models if model.source == "artifact"],
        "with_models": with_models,
    }


def store(plan: Plan) -> str:
    """The engine's store of models; empty for an engine that is not ours."""
    activate()
    from roles.ollama import models_dir

    return "" if plan.engine_existing or not plan.has("ollama") else models_dir(plan)


def verify_spec(plan: Plan, file: str, keys: dict[str, Any]) -> dict[str, Any]:
    return {"file": file, "work": f"{plan.layout.var}/work", **key_spec(plan, **keys)}


def drill_spec(plan: Plan) -> dict[str, Any]:
    """The specification of `drill.run`, but for the file and what opens it."""
    activate()
    place, other = scratch.spec(plan, "drill"), scratch.second(plan, "drill")
    n8n = {}
    if plan.has("n8n"):
        from roles.n8n import entry, env_path, gate_path

        n8n = {
            "node": f"{plan.layout.current('node')}/bin/node", "entry": entry(plan), "gate": gate_path(other),
            "env": env_path(other), "user": plan.account("n8n"),
        }  # fmt: skip
    return {
        **common(plan),
        **key_spec(plan),
        "state": state_file(plan),
        "services": kept(plan),
        "place": place,
        "secrets": [secret.model_dump() for secret in plan.secrets],
        "n8n": n8n,
    }


def absent(about: dict[str, Any], plan: Plan) -> list[str]:
    """Services of the box of which a backup holds nothing: their data stays as it is."""
    held = {*about["services"], *({"qdrant"} & about["versions"].keys())}
    names = [*(one["name"] for one in kept(plan)), *(["qdrant"] if plan.has("qdrant") else [])]
    return [name for name in names if name not in held]


def restore_spec(plan: Plan, file: str, keys: dict[str, Any], without: Iterable[str] = ()) -> dict[str, Any]:
    """The specification that the steps of a restore share. without: services whose data is not exchanged."""
    activate()
    from roles import roles_of

    services = [{"name": one["name"], "folder": one["folder"]} for one in kept(plan)]
    if plan.has("qdrant"):
        services.append({"name": "qdrant", "folder": plan.layout.data("qdrant")})
    services = [one for one in services if one["name"] not in without]
    stopped = [service.name for role in reversed(roles_of(plan)) for service in role.services(plan)]
    written = [file.path for role in roles_of(plan) for file in role.files(plan)]
    return {
        **common(plan),
        **key_spec(plan, **keys),
        **units.process(plan),
        "file": file,
        "services": services,
        "records": records(plan, without),
        "state": f"{units.run_dir(plan)}/restore.json",
        "manifest": plan.layout.manifest,
        "configuration": written,
        "units": [plan.layout.unit(name) for name in stopped if name != "ollama"],
    }


def newer(about: dict[str, str], plan: Plan) -> list[str]:
    """Services whose data was written by a newer version than the one here, which may not read it."""
    here = versions(plan)
    return [
        f"{name} {version} wrote it, here is {here[name]}"
        for name, version in sorted(about.items())
        if name in ("open-webui", "n8n", "qdrant") and name in here and version_key(version) > version_key(here[name])
    ]


def apart(about: dict[str, str], plan: Plan) -> str:
    """The Qdrant that made the vectors of a backup, where minor versions lie between it and the one here; else ""."""
    then, here = about.get("qdrant"), versions(plan).get("qdrant")
    return then if then and here and not opens(then, here) else ""
