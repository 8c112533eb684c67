"""Open WebUI: the web page, with its own account for the kit and a short list of keys that the kit owns."""

from __future__ import annotations

from typing import Any

from ownstack.engine.render import render
from ownstack.engine.served import chat_model
from ownstack.plan import ConfigFile, Plan, SecretRef, Service
from roles import Keep, Role

from . import owned

NAME = "open_webui"
# names under which a browser on this machine, or at the other end of an SSH tunnel, asks
LOOPBACK = ("127.0.0.1", "localhost", "::1")

# What the page itself may load. On a closed box nothing foreign: not even a picture that an answer names, by which a
# manipulated document could send a chat away.
PAGE = (
    "default-src 'self'",
    "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
    "style-src 'self' 'unsafe-inline'",
    "img-src 'self' data: blob:{open}",
    "font-src 'self' data:",
    "connect-src 'self' data: blob:{open}",
    "media-src 'self' data: blob:{open}",
    "worker-src 'self' blob:",
    "frame-src 'self' data: blob:{open}",
    "object-src 'none'",
    "base-uri 'self'",
    "form-action 'self'",
)
# pages that a model wrote, shown in a frame: they run, and reach nothing
FRAME = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval' blob: data:; style-src 'unsafe-inline' data:; "
    "img-src data: blob:; font-src data:; media-src data: blob:"
)


def page_policy(network: str) -> str:
    return "; ".join(PAGE).replace("{open}", "" if network == "closed" else " http: https: ws: wss:")


def url(plan: Plan) -> str:
    return f"http://127.0.0.1:{plan.role(NAME).ports['port']}"


def qdrant_url(plan: Plan) -> str:
    return f"http://127.0.0.1:{plan.role('qdrant').ports['port']}"


def env_path(plan: Plan) -> str:
    return f"{plan.layout.config(NAME)}/env"


def serve_path(plan: Plan) -> str:
    return f"{plan.layout.config(NAME)}/serve.py"


def python(plan: Plan) -> str:
    return f"{plan.layout.current(NAME)}/bin/python"


def env_text(value: Any) -> str:
    """A value as Open WebUI reads it from the environment."""
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, list):
        return ";".join(value)
    return str(value)


def files(plan: Plan) -> list[ConfigFile]:
    part = plan.role(NAME)
    port = part.ports["port"]
    environment = render(
        "open_webui/env.j2",
        owned={key: env_text(value) for key, value in owned.planned(plan).items()},
        settings=part.settings,
        data=plan.layout.data(NAME),
        page_policy=page_policy(part.network),
        frame_policy=FRAME,
        url=url(plan),
        origins=";".join(f"http://{name}:{port}" for name in ("127.0.0.1", "localhost")),
        qdrant_url=qdrant_url(plan),
        vectors=plan.vectors,
        secrets={secret.name: secret.mark for secret in ROLE.secrets} | {"qdrant_api_key": "@@secret:qdrant_api_key@@"},
    )
    serve = render("open_webui/serve.py.j2", port=port, hosts=[*LOOPBACK, *part.settings.get("hosts", ())])
    return [
        ConfigFile(path=env_path(plan), content=environment, mode="0600"),
        ConfigFile(path=serve_path(plan), content=serve),
    ]


def services(plan: Plan) -> list[Service]:
    data = plan.layout.data(NAME)
    part = plan.role(NAME)
    return [
        Service(
            name=NAME,
            description="Open WebUI, the web page (ownstack)",
            command=(python(plan), "-P", serve_path(plan)),
            environment_files=(env_path(plan),),
            working_directory=data,
            requires=(env_path(plan), serve_path(plan)),
            ports=(part.ports["port"],),
            state_directory=data,
            writable=plan.bound(NAME, True),
            readable=plan.bound(NAME, False),
            network=part.network,
            # the full set's libraries want executable stacks; the box's own set runs without
            jit=bool(part.settings.get("full")),
            ready_path="/ready",
            start_timeout_s=240,
            stop_timeout_s=15,
        )
    ]


def inside(plan: Plan) -> dict[str, Any]:
    """How the runner runs Open WebUI's own account code."""
    return {
        "python": python(plan),
        "user": plan.account(NAME),
        "environment": {},
        "environment_files": [env_path(plan)],
    }


def identity(plan: Plan) -> dict[str, Any]:
    """The part of a step's specification that says where Open WebUI is and who asks."""
    return {"url": url(plan), "secrets_dir": plan.layout.secrets}


def again_spec(plan: Plan, point: dict[str, Any] | None = None) -> dict[str, Any]:
    """The specification of `open_webui.again`. `point`: what an earlier look has chosen."""
    store = {"url": qdrant_url(plan), "secret": "qdrant_api_key", "prefix": plan.vectors}
    return {**identity(plan), "qdrant": store, **({"point": point} if point else {})}


def setup_spec(plan: Plan) -> dict[str, Any]:
    email = plan.role(NAME).settings["admin_email"]
    return {**identity(plan), "admin_email": email, "inside": inside(plan), "timeout": 240}


def configure_spec(plan: Plan, model: str = "") -> dict[str, Any]:
    """`model`: the one that serves now, where it is not the planned one."""
    values = owned.values(plan, model)
    if "ui.default_models" in values and not model:
        values["ui.default_models"] = chat_model(plan)  # found on the box: the planned one may still be on its way
    return {**identity(plan), "values": values}


def model_steps(plan: Plan, tag: str) -> list[dict[str, Any]]:
    """What makes a newly pulled model the default."""
    return [{"step": "open_webui.configure", "spec": configure_spec(plan)}]


def reindex_spec(plan: Plan, old: str, carried: bool = False) -> dict[str, Any]:
    """The specification of `open_webui.reindex`. `old`: the beginning of the earlier collections' names.

    `carried`: `open_webui.vectors` has filled the new ones.
    """
    return {**identity(plan), **embedding(plan), "qdrant": _collections(plan, old), "carried": carried}


def embedding(plan: Plan) -> dict[str, str]:
    """With what texts get their vectors, and where memories are; no model where the owner took that over."""
    model, mine = plan.model("embedding"), plan.role(NAME).settings.get("user_owned", ())
    name = "" if model is None or {"rag.embedding_engine", "rag.embedding_model"} & set(mine) else owned.tag(model.tag)
    return {"engine": plan.engine_url, "model": name, "database": f"{plan.layout.data(NAME)}/webui.db"}


def vectors_spec(plan: Plan, old: str) -> dict[str, Any]:
    """The specification of `open_webui.vectors`: the plan's embedding model, for what lies in earlier collections."""
    return {"secrets_dir": plan.layout.secrets, **embedding(plan), "qdrant": _collections(plan, old)}


def _collections(plan: Plan, old: str) -> dict[str, str]:
    return {"url": qdrant_url(plan), "secret": "qdrant_api_key", "old": old, "new": plan.vectors}


def password_spec(plan: Plan) -> dict[str, Any]:
    """The files that carry the first password are filled again, so that the next `up` finds nothing to do."""
    filled = [file.model_dump() for file in files(plan) if file.secret]
    where = {"secrets_dir": plan.layout.secrets, "record": plan.layout.written}
    return {**where, "inside": inside(plan), "files": filled}


ROLE = Role(
    name=NAME,
    title="Open WebUI",
    ports=(("port", 8080),),
    secrets=(
        SecretRef(name="open_webui_secret_key"),
        SecretRef(name="open_webui_admin_password", length=20, kind="password"),
        SecretRef(name="open_webui_kit_password", length=32, kind="password"),
    ),
    services=services,
    files=files,
    model_steps=model_steps,
    keep=Keep(databases=("webui.db",), skip=("cache", "*.log")),
    memory_bytes=400 * 2**20,
    disk_bytes=760 * 10**6,
)
