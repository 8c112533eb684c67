"""The roles, in the order in which they are installed. Every role has the same files.

`settings.py`     `Settings`: a frozen pydantic model, every field described
`artifacts.toml`  every download with its variants, in order of preference
`tasks.py`        `install`, `configure`, `activate`, `remove`: pyinfra operations
`checks.py`       `checks(plan)`: what `verify` looks at
`__init__.py`     `ROLE`: what the role is, and the pure functions of the plan
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from ownstack.plan import ConfigFile, Plan, SecretRef, Service

ORDER = ("base", "qdrant", "ollama", "models", "open_webui", "n8n")


def no_services(plan: Plan) -> list[Service]:
    return []


def no_files(plan: Plan) -> list[ConfigFile]:
    return []


@dataclass(frozen=True)
class ExtraAccount:
    """An account beside those of the services (the one that pulls models, say)."""

    name: str
    home: str
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class Keep:
    """What a backup holds of a service's data folder. All names are below that folder."""

    databases: tuple[str, ...] = ()  # SQLite, copied whole by its own means while they are written to
    skip: tuple[str, ...] = ()  # patterns of what is made anew by itself
    sealed: tuple[str, ...] = ()  # files that hold a key: encrypted
    records: tuple[str, ...] = ()  # what the kit remembers of it, below the box's own data folder


@dataclass(frozen=True)
class Sealed:
    """Data that only one secret opens: while it is there, no other secret is made in the place of a lost one."""

    secret: str
    data: tuple[str, ...]  # names below the role's data folder
    held_in: tuple[str, str]  # the JSON file there, and its key, in which the service keeps the secret too
    code: str  # of the error


def no_steps(plan: Plan, tag: str) -> list[dict[str, Any]]:
    return []


def no_accounts(plan: Plan) -> list[ExtraAccount]:
    return []


@dataclass(frozen=True)
class Role:
    """What the rest of the house knows of a role. All functions are pure."""

    name: str
    title: str
    # settings key -> default port
    ports: tuple[tuple[str, int], ...] = ()
    secrets: tuple[SecretRef, ...] = ()
    services: Callable[[Plan], list[Service]] = no_services
    files: Callable[[Plan], list[ConfigFile]] = no_files
    accounts: Callable[[Plan], list[ExtraAccount]] = no_accounts
    # runner steps [{step, spec}] that make the model served as `tag` the default; a pull runs them when it is done
    model_steps: Callable[[Plan, str], list[dict[str, Any]]] = no_steps
    # what a backup holds of its data folder; None: nothing, or (Qdrant, models) by means of their own
    keep: Keep | None = None
    sealed: Sealed | None = None
    # resident memory beside models, idle, and disk taken by programs; measured, for the plan
    memory_bytes: int = 0
    disk_bytes: int = 0

    @property
    def tasks(self) -> ModuleType:
        return importlib.import_module(f"roles.{self.name}.tasks")

    @property
    def checks(self) -> ModuleType:
        return importlib.import_module(f"roles.{self.name}.checks")


def role(name: str) -> Role:
    found: Role = importlib.import_module(f"roles.{name}").ROLE
    return found


def roles_of(plan: Plan) -> list[Role]:
    """The plan's roles in the order of installation."""
    return [role(name) for name in ORDER if plan.has(name)]
