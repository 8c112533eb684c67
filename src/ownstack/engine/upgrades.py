"""Upgrades and ways back as specifications of runner steps. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import Any

from ..kit import activate
from ..plan import Layout, Plan
from ..upgrading import home
from . import units
from .backups import common, qdrant_url

# how long a migration may take, seconds, before the upgrade is put back
PATIENCE_S = 1800
# how often a new program may end by itself before it is put back
GIVE_UP = 3
# whose data goes with a role's: Open WebUI's documents are found by vectors that Qdrant keeps
WITH = {"open_webui": ("open_webui", "qdrant")}
# which roles' checks an upgraded role has to pass
GATE = {
    "base": ("base",),
    "qdrant": ("qdrant", "open_webui", "n8n"),
    "ollama": ("ollama", "models", "open_webui", "n8n"),
    "open_webui": ("open_webui",),
    "n8n": ("n8n",),
}
FIXED = ("base", "supervisor")


class Staged(Layout):
    """A layout whose releases are the real ones, and whose links are not: what serves goes on with its own."""

    def current(self, component: str) -> str:
        return super().current(component) if component in FIXED else f"{self.opt}/{component}/staged"


def staged(plan: Plan) -> Plan:
    """The plan as its programs are laid ready beside those that serve."""
    return plan.model_copy(update={"layout": Staged(**plan.layout.model_dump())})


def staged_links(plan: Plan) -> list[str]:
    return [f"{plan.layout.opt}/{name}/staged" for name in components(plan, [part.name for part in plan.roles])]


def state_file(plan: Plan) -> str:
    return f"{units.run_dir(plan)}/upgrade.json"


def place(plan: Plan) -> dict[str, Any]:
    """What every step has to know of the box."""
    shared = common(plan)
    return {
        **{key: shared[key] for key in ("lock", "secrets_dir", "var")},
        **units.process(plan),
        "opt": plan.layout.opt,
        "state": state_file(plan),
        "manifest": plan.layout.manifest,
    }


def components(plan: Plan, roles: Iterable[str]) -> list[str]:
    """Folders below `opt` that may change with these roles."""
    wanted = set(roles)
    found = {name for name in wanted if name != "base"}
    for part in plan.roles:
        for item in part.artifacts:
            if home(plan, part.name, item.name) in wanted:
                found.add(item.name)
    return sorted(found)


def covered(plan: Plan, role: str) -> list[str]:
    """The roles whose data a snapshot of this role holds."""
    return [name for name in WITH.get(role, (role,)) if plan.has(name) and name != "base"]


def _items(plan: Plan, role: str) -> list[dict[str, Any]]:
    """The folders of a role's data. Of models only what names them: their files are kept by their hash."""
    activate()
    from roles import role as find
    from roles.ollama import models_dir

    found = []
    for name in covered(plan, role):
        keep = find(name).keep
        databases = list(keep.databases) if keep else []
        found.append({"name": name, "place": plan.layout.data(name), "databases": databases})
        if name == "ollama":
            found.append({"name": "manifests", "place": f"{models_dir(plan)}/manifests", "databases": []})
    return found


def _records(plan: Plan, role: str) -> list[str]:
    activate()
    from roles import role as find

    keeps = [find(name).keep for name in covered(plan, role)]
    records = [name for keep in keeps if keep is not None for name in keep.records]
    return [*records, "models.json"] if role == "ollama" else records


def _written(plan: Plan, role: str) -> list[str]:
    """The files that tell the services how to run."""
    activate()
    from roles import role as find

    found = []
    for one in [find(name) for name in covered(plan, role)]:
        found += [file.path for file in one.files(plan)]
        found += [file.path for service in one.services(plan) for file in units.unit_files(plan, service)]
    return found


def space_spec(plan: Plan, role: str) -> dict[str, Any]:
    return {"var": plan.layout.var, "items": _items(plan, role)}


def count_spec(plan: Plan, role: str, since: str = "") -> dict[str, Any]:
    """The specification of `snapshots.counts` for what a role's upgrade may touch."""
    names = covered(plan, role)
    places = {"open_webui": "webui.db", "n8n": ".n8n/database.sqlite"}
    return {
        "databases": [
            {"service": name, "path": f"{plan.layout.data(name)}/{path}"}
            for name, path in places.items()
            if name in names
        ],
        "since": since,
        "qdrant": {"url": qdrant_url(plan), "secrets_dir": plan.layout.secrets} if "qdrant" in names else None,
        "engine": plan.engine_url if "ollama" in names else "",
        "n8n_data": plan.layout.data("n8n") if "n8n" in names else "",
    }


def young(plan: Plan, now: datetime.datetime) -> str:
    """From when on finished runs of n8n are surely still there, as its database writes times."""
    if not plan.has("n8n"):
        return ""
    hours = int(plan.role("n8n").settings.get("keep_executions_hours", 168))
    return (now.astimezone(datetime.UTC) - datetime.timedelta(hours=hours / 2)).strftime("%Y-%m-%d %H:%M:%S.000")


def stopped(plan: Plan, role: str) -> list[str]:
    """Units that stand still while a role's data is copied and its version changes; who asks others goes first."""
    activate()
    from roles import roles_of

    names = covered(plan, role)
    return [
        plan.layout.unit(service.name)
        for one in reversed(roles_of(plan))
        if one.name in names
        for service in one.services(plan)
    ]


def take_spec(
    plan: Plan, role: str, identity: str, run: str, kind: str, about: dict[str, dict[str, str]], since: str
) -> dict[str, Any]:
    """The specification of `snapshots.take`. about: from and to, component -> version."""
    kept = [part.model_dump(mode="json") for part in plan.roles if part.name in (*covered(plan, role), "base")]
    return {
        **place(plan),
        "id": identity,
        "run": run,
        "kind": kind,
        "role": role,
        "about": about,
        "plan": {
            "kit_version": plan.kit_version, "roles": kept, "versions": versions(plan), "vectors": plan.vectors,
        },
        "secrets": [f"{name}_" for name in covered(plan, role)],
        "units": stopped(plan, role),
        "configuration": _written(plan, role),
        "items": _items(plan, role),
        "records": _records(plan, role),
        "components": components(plan, [role]),
        "count": count_spec(plan, role, since),
    }  # fmt: skip


def versions(plan: Plan) -> dict[str, str]:
    return {item.name: item.version for part in plan.roles for item in part.artifacts}


def start_spec(plan: Plan, role: str, patience_s: int) -> dict[str, Any]:
    """The specification of `box.activate` for services that may first have to change their data."""
    from .operations import service_list

    activate()
    from roles import roles_of

    services: list[dict[str, Any]] = []
    found: dict[str, Any] = {**units.process(plan), "active_dir": units.active_dir(plan)}
    for one in roles_of(plan):
        if one.name in covered(plan, role):
            services += service_list(plan, one.services(plan), one.files(plan))["services"]
    found["services"] = [{**item, "timeout": patience_s, "give_up": GIVE_UP} for item in services]
    return found


def rehearsal_spec(plan: Plan, role: str, patience_s: int, since: str) -> dict[str, Any]:
    """The specification of `snapshots.rehearsal`: a second instance of one role, with the programs that lie ready."""
    from . import scratch

    programs = {name: f"{plan.layout.opt}/{name}/staged" for name in components(plan, [role])}
    second = scratch.spec(plan, "rehearsal", programs)
    mine = [one for one in second["services"] if one["name"] == role]
    second["services"] = [{**one, "timeout": patience_s} for one in mine]
    return {
        "second": second,
        "item": next(one for one in _items(plan, role) if one["name"] == role),
        "secrets_dir": plan.layout.secrets,
        "secrets": [secret.name for secret in plan.secrets],
        "since": since,
    }
