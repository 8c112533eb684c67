"""The keys of Open WebUI's configuration that the kit owns. All others are the owner's and survive everything.

Open WebUI keeps its configuration in its database, one row a key, and reads the environment only for keys that have no
row yet. So the environment shapes the first start, and these keys are brought to their planned values afterwards.
An import of configuration writes the rows it names and leaves the others alone.
"""

from __future__ import annotations

from typing import Any

from ownstack.plan import Plan

# key -> why the box cannot leave it to chance
KEYS: dict[str, str] = {
    "auth.enable_api_keys": "the kit's own account works with an API key",
    "code_execution.enable": "programs that a model wrote are not run",
    "code_interpreter.enable": "programs that a model wrote are not run",
    "direct.enable": "no connections from the browser to servers of strangers",
    "ollama.base_urls": "the engine of this box",
    "ollama.enable": "the engine of this box",
    "openai.enable": "nothing is sent to a cloud",
    "rag.embedding_engine": "Ollama embeds documents",
    "rag.embedding_model": "the planned embedding model, whose dimension the stored vectors have",
    "rag.ollama.base_url": "the engine of this box",
    "task.follow_up.enable": "an answer must not wait behind follow-up questions",
    "task.model.default": "the small model that the plan accounts for",
    "task.query.retrieval.enable": "a small model makes empty search queries, and finds nothing then",
    "task.tags.enable": "an answer must not wait behind tags",
    "task.title.enable": "an answer must not wait behind titles",
    "ui.default_models": "the planned chat model, or the one that serves until it is there",
    "ui.enable_community_sharing": "no chat leaves for a public site",
    "ui.enable_signup": "no stranger makes an account",
}


def tag(name: str) -> str:
    """A model's name as Ollama lists it: with its tag."""
    return name if ":" in name.rsplit("/", 1)[-1] else f"{name}:latest"


def serving(plan: Plan) -> str:
    """The model that people chat with: the planned one, or where there is none the bootstrap one."""
    model = plan.model("chat") or plan.model("bootstrap")
    return tag(model.tag) if model else ""


def background(plan: Plan) -> bool:
    """Whether models make titles, tags, follow-up questions and search queries."""
    wish = plan.role("open_webui").settings.get("background_tasks", "auto")
    if wish != "auto":
        return bool(wish == "on")
    # on a CPU alone these would stand in the queue before the answer that the user waits for
    return plan.model("task") is not None or (plan.engine != "cpu" and plan.model("chat") is not None)


def planned(plan: Plan, model: str = "") -> dict[str, Any]:
    """Every owned key with its planned value. `model` is the one that serves now, where it is not the planned one."""
    tasks = background(plan)
    task = plan.model("task")
    embedding = plan.model("embedding")
    return {
        "auth.enable_api_keys": True,
        "code_execution.enable": False,
        "code_interpreter.enable": False,
        "direct.enable": False,
        "ollama.base_urls": [plan.engine_url],
        "ollama.enable": True,
        "openai.enable": False,
        "rag.embedding_engine": "ollama",
        "rag.embedding_model": tag(embedding.tag) if embedding else "",
        "rag.ollama.base_url": plan.engine_url,
        "task.follow_up.enable": tasks,
        "task.model.default": tag(task.tag) if task else "",
        "task.query.retrieval.enable": tasks,
        "task.tags.enable": tasks,
        "task.title.enable": tasks,
        "ui.default_models": tag(model) if model else serving(plan),
        "ui.enable_community_sharing": False,
        "ui.enable_signup": False,
    }


def values(plan: Plan, model: str = "") -> dict[str, Any]:
    """What the kit sets: the planned values without those that the user took over."""
    mine = plan.role("open_webui").settings.get("user_owned", ())
    return {key: value for key, value in planned(plan, model).items() if key not in mine}
