"""Qdrant: the vector database that keeps the user's notes findable."""

from __future__ import annotations

from ownstack.engine.render import render
from ownstack.plan import ConfigFile, Plan, SecretRef, Service
from roles import Role

NAME = "qdrant"


def config_path(plan: Plan) -> str:
    return f"{plan.layout.config(NAME)}/config.yaml"


def files(plan: Plan) -> list[ConfigFile]:
    content = render("qdrant/config.yaml.j2", port=plan.role(NAME).ports["port"], data=plan.layout.data(NAME))
    group = plan.account(NAME)
    return [ConfigFile(path=config_path(plan), content=content, mode="0640", group=group)]


def services(plan: Plan) -> list[Service]:
    data = plan.layout.data(NAME)
    return [
        Service(
            name=NAME,
            description="Qdrant vector database (ownstack)",
            command=(f"{plan.layout.current(NAME)}/bin/qdrant", "--config-path", config_path(plan)),
            # Qdrant goes on without its configuration and would then listen openly: these hold even so
            environment=(("QDRANT__SERVICE__HOST", "127.0.0.1"), ("QDRANT__TELEMETRY_DISABLED", "true")),
            working_directory=data,
            requires=(config_path(plan),),
            ports=(plan.role(NAME).ports["port"],),
            state_directory=data,
            writable=plan.bound(NAME, True),
            readable=plan.bound(NAME, False),
            network=plan.role(NAME).network,
            ready_path="/readyz",
            start_timeout_s=120,
        )
    ]


ROLE = Role(
    name=NAME,
    title="Qdrant",
    ports=(("port", 6333),),
    secrets=(SecretRef(name="qdrant_api_key"), SecretRef(name="qdrant_read_only_key")),
    services=services,
    files=files,
    memory_bytes=60 * 2**20,
    disk_bytes=110 * 10**6,
)
