"""The base: accounts, folders, secrets, the runner, and the programs that other roles are made with."""

from __future__ import annotations

from ownstack.engine import units
from ownstack.plan import ConfigFile, Plan
from roles import Role

NAME = "base"


def files(plan: Plan) -> list[ConfigFile]:
    return units.supervisor_files(plan) if plan.manager == "supervisord" else []


ROLE = Role(name=NAME, title="Base", files=files, memory_bytes=0, disk_bytes=150 * 10**6)
