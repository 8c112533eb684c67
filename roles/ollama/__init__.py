"""Ollama: the engine that runs the models."""

from __future__ import annotations

from typing import Any

from ownstack.engine.render import render
from ownstack.errors import ConfigError
from ownstack.plan import ConfigFile, ModelChoice, Plan, Service
from roles import Role

NAME = "ollama"
# the engine's parts in the vendor's archive, by what the hardware uses
BASE_PARTS = ("bin/ollama", "lib/ollama/llama-*", "lib/ollama/lib*")
PARTS = {
    "cpu": (),
    "cuda": ("lib/ollama/cuda_v12/", "lib/ollama/cuda_v13/"),
    "rocm": ("lib/ollama/rocm*",),
    "vulkan": ("lib/ollama/vulkan/",),
}


def models_dir(plan: Plan) -> str:
    """The engine's store: in the box's own data, or the folder that is bound under the name `models`."""
    bound = next((path for name, path, _ in plan.folders if name == "ollama:models"), "")
    return bound or f"{plan.layout.var}/models"


def resident(plan: Plan) -> list[ModelChoice]:
    """The models that are meant to be in memory together."""
    chat = plan.model("chat") or plan.model("bootstrap")
    others = [m for m in plan.models if m.use not in ("chat", "bootstrap")]
    return [*([chat] if chat else []), *others]


def environment(plan: Plan) -> dict[str, str]:
    """The engine's variables. What users may add comes last, from a fixed list of names (see `EXTRA_ENV`)."""
    settings = plan.role(NAME).settings
    data = plan.layout.data(NAME)
    models = resident(plan)
    lead = models[0] if models else None
    kv_type = lead.kv_type if lead else "f16"
    flash = settings["flash_attention"]
    if kv_type != "f16" and flash == "off":
        raise ConfigError(
            f"the plan's {kv_type} cache needs flash attention", hint="set ollama.flash_attention to auto, or take f16"
        )
    found = {
        "HOME": data,
        "OLLAMA_HOST": f"127.0.0.1:{plan.role(NAME).ports['port']}",
        "OLLAMA_MODELS": models_dir(plan),
        "OLLAMA_ORIGINS": "",
        "OLLAMA_NO_CLOUD": "1",
        "OLLAMA_NOPRUNE": "1",
        "OLLAMA_NOHISTORY": "1",
        "OLLAMA_DEBUG_LOG_REQUESTS": "0",
        "OLLAMA_KEEP_ALIVE": settings["keep_alive"],
        "OLLAMA_KV_CACHE_TYPE": kv_type,
        "OLLAMA_NUM_PARALLEL": str(lead.parallel if lead else 1),
        "OLLAMA_MAX_LOADED_MODELS": str(settings["max_loaded_models"] or max(2, len(models))),
    }
    # for models that people add themselves; the plan's own have theirs written in
    context = settings["context"] or (lead.context if lead else 0)
    if context:
        found["OLLAMA_CONTEXT_LENGTH"] = str(context)
    if flash != "auto" or kv_type != "f16":
        found["OLLAMA_FLASH_ATTENTION"] = "0" if flash == "off" else "1"
    if plan.engine == "cpu":
        found["OLLAMA_VULKAN"] = "0"
    return {**found, **settings["extra_env"]}


def services(plan: Plan) -> list[Service]:
    data = plan.layout.data(NAME)
    gpu = plan.engine != "cpu"
    models = models_dir(plan)
    return [
        Service(
            name=NAME,
            description="Ollama model engine (ownstack)",
            command=(f"{plan.layout.current(NAME)}/bin/ollama", "serve"),
            environment=tuple(environment(plan).items()),
            working_directory=data,
            ports=(plan.role(NAME).ports["port"],),
            child_ports=True,
            state_directory=data,
            writable=(models, *[path for path in plan.bound(NAME, True) if path != models]),
            readable=tuple(path for path in plan.bound(NAME, False) if path != models),
            groups=("render", "video") if gpu else (),
            network=plan.role(NAME).network,
            gpu=gpu,
            # GPU drivers compile at run time; the CPU engine does not
            jit=gpu,
            ready_path="/api/version",
            start_timeout_s=120,
        )
    ]


def files(plan: Plan) -> list[ConfigFile]:
    """`server.json`: the cloud stays off even when the engine is started by hand with other variables."""
    path = f"{plan.layout.data(NAME)}/.ollama/server.json"
    account = plan.account(NAME)
    return [ConfigFile(path=path, content=render("ollama/server.json.j2"), mode="0644", owner=account, group=account)]


def unpack_rule(details: dict[str, Any], engine: str) -> dict[str, Any]:
    """The variant's `unpack` table, with the parts of the archive that this hardware uses."""
    rule: dict[str, Any] = dict(details["unpack"])
    if details.get("parts"):
        rule["include"] = [*BASE_PARTS, *PARTS[engine]]
    return rule


ROLE = Role(
    name=NAME,
    title="Ollama",
    ports=(("port", 11434),),
    services=services,
    files=files,
    memory_bytes=40 * 2**20,
    disk_bytes=90 * 10**6,
)
