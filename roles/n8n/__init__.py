"""n8n: workflows that use the box's own model and notes, sealed off from everything else unless opened."""

from __future__ import annotations

import hashlib
import ipaddress
import urllib.parse
from typing import Any

from ownstack.engine.render import render
from ownstack.engine.served import chat_model
from ownstack.kit import data_path, load_toml
from ownstack.plan import ConfigFile, Plan, SecretRef, Service
from roles import Keep, Role, Sealed

NAME = "n8n"
# Parts of n8n that call its vendor, need a licence, or need services that the box does not have.
DISABLED_MODULES = (
    "mcp-registry", "community-packages", "source-control", "external-secrets", "sso-oidc", "sso-saml", "ldap",
    "log-streaming", "instance-ai", "agents", "otel", "token-exchange", "dynamic-credentials",
)  # fmt: skip
# n8n's own default, said aloud: they run programs and watch files of the host
EXCLUDED_NODES = ("n8n-nodes-base.executeCommand", "n8n-nodes-base.localFileTrigger")
# n8n's own policy (its first three parts), and for the rest nothing but itself. `<nonce>` is filled in by n8n.
CONTENT_POLICY = "; ".join(
    (
        "script-src <nonce> 'strict-dynamic' 'unsafe-eval'",
        "object-src 'none'",
        "base-uri 'none'",
        "connect-src 'self' data: blob:",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "media-src 'self' data: blob:",
        "frame-src 'self' blob:",
    )
)
LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")
LOOPBACK = ("127.0.0.1/32", "::1/128")
PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7", "fe80::/10")


def url(plan: Plan) -> str:
    return f"http://127.0.0.1:{plan.role(NAME).ports['port']}"


def env_path(plan: Plan) -> str:
    return f"{plan.layout.config(NAME)}/env"


def gate_path(plan: Plan) -> str:
    """The script that refuses foreign Host headers, loaded before n8n."""
    return f"{plan.layout.config(NAME)}/gate.cjs"


def entry(plan: Plan) -> str:
    return f"{plan.layout.current(NAME)}/node_modules/n8n/bin/n8n"


def kit_file(name: str) -> str:
    return data_path(f"roles/{NAME}/{name}").read_text(encoding="utf-8")


def prune_rule() -> dict[str, Any]:
    return load_toml(data_path(f"roles/{NAME}/prune.toml"))


def release(plan: Plan) -> str:
    """n8n's release, named by all that went into it: lock, what is left out, and add-on, as recorded."""
    part = plan.role(NAME)
    lock = part.artifact(NAME)
    text = f"{lock.digest}\0{part.artifact('sqlite3-addon').digest}"
    return plan.layout.release(NAME, lock.version, hashlib.sha256(text.encode()).hexdigest())


def reachable(plan: Plan) -> tuple[list[str], list[str]]:
    """Address ranges and host names that workflows may reach although they are private."""
    part = plan.role(NAME)
    ranges = [*LOOPBACK, *(PRIVATE if part.network == "lan" else ())]
    names: list[str] = []
    engine = urllib.parse.urlsplit(plan.engine_url).hostname or ""
    for item in (engine, *part.settings.get("allow_addresses", ())):
        try:
            text = str(ipaddress.ip_network(item, strict=False))
            known = ranges
        except ValueError:
            text, known = item, names
        if text and text not in known:
            known.append(text)
    return ranges, names


def files(plan: Plan) -> list[ConfigFile]:
    part = plan.role(NAME)
    data = plan.layout.data(NAME)
    ranges, names = reachable(plan)
    content = render(
        "n8n/env.j2",
        version=part.artifact(NAME).version,
        release=release(plan),
        port=part.ports["port"],
        broker_port=part.ports["broker_port"],
        url=f"{url(plan)}/",
        node=plan.layout.current("node"),
        data=data,
        key=ENCRYPTION_KEY.mark,
        settings=part.settings,
        timezone=plan.timezone,
        disabled_modules=DISABLED_MODULES,
        allowed_ranges=ranges,
        allowed_names=names,
        file_folders=[f"{data}/files", *plan.bound(NAME, True), *plan.bound(NAME, False)],
        excluded_nodes=EXCLUDED_NODES,
        open_network=part.network == "internet",
        content_policy=CONTENT_POLICY,
    )
    gate = render("n8n/gate.cjs.j2", hosts=[*LOCAL_NAMES, *part.settings.get("hosts", ())])
    return [
        ConfigFile(path=env_path(plan), content=content, mode="0600"),
        ConfigFile(path=gate_path(plan), content=gate),
    ]


def services(plan: Plan) -> list[Service]:
    data = plan.layout.data(NAME)
    part = plan.role(NAME)
    return [
        Service(
            name=NAME,
            description="n8n, workflow automation (ownstack)",
            command=(f"{plan.layout.current('node')}/bin/node", "--require", gate_path(plan), entry(plan), "start"),
            environment_files=(env_path(plan),),
            # n8n would read a file .env from here; the folder is its own
            working_directory=data,
            requires=(env_path(plan), gate_path(plan), entry(plan)),
            ports=(part.ports["port"], part.ports["broker_port"]),
            state_directory=data,
            writable=plan.bound(NAME, True),
            readable=plan.bound(NAME, False),
            network=part.network,
            jit=True,
            netlink=True,
            ready_path="/healthz/readiness",
            start_timeout_s=240,
        )
    ]


def identity(plan: Plan) -> dict[str, Any]:
    return {"url": url(plan), "secrets_dir": plan.layout.secrets}


def preflight_spec(plan: Plan) -> dict[str, Any]:
    return {"secrets_dir": plan.layout.secrets, "data": plan.layout.data(NAME), "state": record_path(plan)}


def setup_spec(plan: Plan) -> dict[str, Any]:
    settings = plan.role(NAME).settings
    return {
        **identity(plan),
        "state": record_path(plan),
        "email": settings["owner_email"],
        "first_name": settings["owner_first_name"],
        "last_name": settings["owner_last_name"],
        "timeout": 240,
    }


def content_spec(plan: Plan, serving: str = "") -> dict[str, Any]:
    """`serving`: the model that answers now, where it is not the planned one."""
    qdrant = f"http://127.0.0.1:{plan.role('qdrant').ports['port']}" if plan.has("qdrant") else ""
    return {
        **identity(plan),
        "state": record_path(plan),
        "engine_url": plan.engine_url,
        "qdrant_url": qdrant,
        "model": serving or chat_model(plan),  # found on the box: the planned one may still be on its way
    }


def model_steps(plan: Plan, tag: str) -> list[dict[str, Any]]:
    """What makes the demo workflow ask a newly pulled model."""
    return [{"step": "n8n.content", "spec": content_spec(plan)}]


def password_spec(plan: Plan) -> dict[str, Any]:
    current = plan.layout.current
    user = plan.account(NAME)
    return {
        **identity(plan),
        "node": current("node"),
        "n8n": current(NAME),
        "data": plan.layout.data(NAME),
        "user": user,
    }


def record_path(plan: Plan) -> str:
    """Where the kit remembers what it put into n8n, so that nothing the owner changed is ever put back."""
    return f"{plan.layout.var}/n8n-content.json"


ENCRYPTION_KEY = SecretRef(name="n8n_encryption_key")
ROLE = Role(
    name=NAME,
    title="n8n",
    ports=(("port", 5678), ("broker_port", 5679)),
    secrets=(ENCRYPTION_KEY, SecretRef(name="n8n_owner_password", length=24, kind="password")),
    services=services,
    files=files,
    model_steps=model_steps,
    keep=Keep(
        databases=(".n8n/database.sqlite",),
        skip=(".cache", "*.log"),
        sealed=(".n8n/config",),
        records=("n8n-content.json",),
    ),
    sealed=Sealed(
        secret=ENCRYPTION_KEY.name,
        data=(".n8n/config", ".n8n/database.sqlite"),
        held_in=(".n8n/config", "encryptionKey"),
        code="n8n-key",
    ),
    # idle after some use, shared memory counted once: n8n 430 MiB, its task runner 90 MiB (365 MiB after the start)
    memory_bytes=520 * 2**20,
    # n8n 1.07 GB and Node 0.15 GB; for the time of the installation 1.6 GB more
    disk_bytes=1_230_000_000,
)
