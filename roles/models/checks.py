"""What `verify` looks at in the models: there, right, answering, where they should lie."""

from __future__ import annotations

from typing import Any

from ownstack.data import load_floors
from ownstack.plan import ModelChoice, Plan
from ownstack.verify.check import Check, Context, Outcome
from roles.models import NAME, ensure_spec, in_background
from roles.ollama import adopt
from roles.ollama.checks import engine

MIB = 2**20
# how far measured memory may lie from predicted: the larger of a share and a floor
TOLERANCE_GPU = (0.05, 64 * MIB)
TOLERANCE_HOST = (0.10, 128 * MIB)


def _url(plan: Plan) -> dict[str, Any]:
    return {"url": plan.engine_url}


def pending(context: Context) -> list[str]:
    """Planned models whose pull goes on by itself and that are not there yet."""
    missing = context.step("ollama.ensure", **ensure_spec(context.plan))["missing"]
    return [
        m.tag
        for m in context.plan.models
        if m.tag in missing and m.source == "registry" and in_background(context.plan, m)
    ]


def serving(context: Context) -> ModelChoice | None:
    """The chat model that answers now."""
    chat, bootstrap = context.plan.model("chat"), context.plan.model("bootstrap")
    if chat is not None and chat.tag not in pending(context):
        return chat
    return bootstrap or chat


def planned(context: Context) -> Outcome:
    data = context.step("ollama.ensure", **ensure_spec(context.plan))
    waiting = pending(context)
    missing = [tag for tag in data["missing"] if tag not in waiting]
    wrong = [f"{tag}: {reason}" for tag, reason in data["wrong"].items()]
    values = {"present": data["present"], "missing": data["missing"], "wrong": data["wrong"]}
    if missing or wrong:
        return Outcome.failed("; ".join([*(f"{tag} is missing" for tag in missing), *wrong]), **values)
    rest = f"; {', '.join(waiting)} still to come" if waiting else ""
    return Outcome.ok(f"{', '.join(data['present'])}: weights and context as planned{rest}", **values)


def bootstrap_only(context: Context) -> Outcome:
    """Amber while the planned chat model is still on its way. Green, and said, where the plan knows it cannot come."""
    plan = context.plan
    chat = plan.model("chat")
    if plan.deferred_model is not None:
        return Outcome.ok(
            f"as planned for this network: {chat.tag if chat else 'the small model'} answers; "
            f"with a model registry this machine would run {plan.deferred_model.tag}",
            deferred=plan.deferred_model.tag,
        )
    if chat is None or chat.tag not in pending(context):
        return Outcome.ok(f"{chat.tag if chat else 'no chat model is planned and none'} serves")
    states = context.step("ollama.pulls", run_dir=f"{plan.layout.var}/run")["pulls"]
    state = next((s for s in states if s["model"] == chat.tag), None)
    if state is None:
        return Outcome.amber(
            f"only the small model serves: the pull of {chat.tag} has not begun", "`ownstack up` starts it"
        )
    values = {key: state.get(key) for key in ("status", "done", "total", "rate", "eta_s", "error")}
    if state["status"] in ("failed", "interrupted", "stopped"):
        error = state.get("error") or {}
        reason = error.get("message") or state["status"]
        hint = error.get("hint") or "`ownstack up` goes on where it stopped"
        return Outcome.amber(f"only the small model serves: the pull of {chat.tag} ended ({reason})", hint, **values)
    return Outcome.amber(
        f"only the small model serves: {progress_words(state)}", "it switches by itself when it is there", **values
    )


def progress_words(state: dict[str, Any]) -> str:
    """How far a pull is, in words."""
    words = f"{state['model']} {state['status']}"
    if state.get("total"):
        words += f", {state['done'] / 1e9:.2f} of {state['total'] / 1e9:.2f} GB"
    if state.get("rate"):
        words += f", {state['rate'] / 1e6:.1f} MB/s"
    if state.get("eta_s") is not None:
        words += f", {state['eta_s'] // 60} min {state['eta_s'] % 60} s left"
    return words


def chat(context: Context) -> Outcome:
    model = serving(context)
    if model is None:
        return Outcome.skipped("no chat model is planned")
    data = context.step("ollama.chat_check", **_url(context.plan), model=model.tag)
    measured = (
        f"{model.tag}: {data['tokens']} tokens at {data['tps']:.1f}/s, "
        f"prompt {data['prompt_tokens']} at {data['prompt_tps']:.0f}/s, loaded in {data['load_s']:.1f} s"
    )
    right = data["answered"] and data["tokens"] > 0 and data["prompt_tokens"] > 0
    return (Outcome.ok if right else Outcome.failed)(measured, **data)


def embedding(context: Context) -> Outcome:
    model = context.plan.model("embedding")
    if model is None:
        return Outcome.skipped("no embedding model is planned")
    data = context.step("ollama.embed_check", **_url(context.plan), model=model.tag)
    measured = f"{model.tag}: {data['dimension']} dimensions, norm {data['norm']}, {data['seconds']:.2f} s"
    right = data["dimension"] > 0 and data["norm"] > 0 and model.dimension in (None, data["dimension"])
    if not right and model.dimension:
        measured += f"; planned {model.dimension} dimensions"
    return (Outcome.ok if right else Outcome.failed)(measured, **data)


def loaded(context: Context, model: ModelChoice) -> dict[str, Any]:
    """The model as it lies in memory, with its buffers from the engine's own log."""
    return context.step("ollama.measure", **engine(context.plan), model=model.tag)


def on_host(device: str) -> bool:
    return device.startswith(("CPU", "BLAS")) or device.endswith("_Host")


def split(buffers: dict[str, dict[str, int]]) -> tuple[int, int]:
    """Bytes on the GPU and in the host's memory, from the engine's own account."""
    gpu = sum(sum(kinds.values()) for device, kinds in buffers.items() if not on_host(device))
    host = sum(sum(kinds.values()) for device, kinds in buffers.items() if on_host(device))
    return gpu, host


def on_gpu(context: Context) -> Outcome:
    """The model lies on the GPU as far as planned: by the engine's list, and by its own account of buffers."""
    model = serving(context)
    if model is None:
        return Outcome.skipped("no chat model is planned")
    now = loaded(context, model)
    gpu, host = split(now.get("buffers", {}))
    layers: list[int] | None = now.get("offloaded")
    cache_on_host = sum(kinds.get("kv", 0) for device, kinds in now.get("buffers", {}).items() if on_host(device))
    values = {
        "size": now.get("size", 0),
        "size_vram": now.get("size_vram", 0),
        "gpu": gpu,
        "host": host,
        "layers": layers,
    }
    measured = (
        f"{model.tag}: {values['size_vram'] / MIB:.0f} of {values['size'] / MIB:.0f} MiB on the GPU by /api/ps; "
        f"buffers {gpu / MIB:.0f} MiB there, {host / MIB:.0f} MiB in memory; "
        f"layers {f'{layers[0]} of {layers[1]}' if layers else 'not logged'}"
    )
    if not now.get("buffers"):
        return Outcome.failed(measured + "; the engine's log has no account of it", **values)
    partly = model.gpu_layers is not None and model.layers is not None and model.gpu_layers < model.layers
    if partly:
        right = layers is not None and layers[0] >= (model.gpu_layers or 0)
        return (Outcome.ok if right else Outcome.failed)(
            measured + f"; planned {model.gpu_layers} layers there", **values
        )
    whole = layers is not None and layers[0] == layers[1]
    right = 0 < values["size"] == values["size_vram"] and not cache_on_host and whole
    return (Outcome.ok if right else Outcome.failed)(measured, **values)


def gpu_used(context: Context) -> Outcome:
    """The engine did not fall back to the CPU: weights lie on the GPU, not just room to compute in."""
    model = serving(context)
    if model is None:
        return Outcome.skipped("no chat model is planned")
    now = loaded(context, model)
    buffers: dict[str, dict[str, int]] = now.get("buffers", {})
    weights = sum(kinds.get("model", 0) for device, kinds in buffers.items() if not on_host(device))
    values = {"size": now.get("size", 0), "size_vram": now.get("size_vram", 0), "weights": weights}
    measured = (
        f"{model.tag}: {values['size_vram'] / MIB:.0f} of {values['size'] / MIB:.0f} MiB on the GPU, "
        f"{weights / MIB:.0f} MiB of them weights"
    )
    return (Outcome.ok if weights and values["size_vram"] else Outcome.failed)(measured, **values)


def foreign_engine(context: Context) -> Outcome:
    """An engine that the kit did not install: which version answers, and whether it is a safe one."""
    found = context.step("ollama.inspect", **_url(context.plan))["version"]
    floors = load_floors()
    if floors.below("ollama", found):
        return Outcome.amber(
            f"Ollama {found} at {context.plan.engine_url} is below the security floor {floors.floor['ollama']}",
            f"its owner should update it: {floors.why['ollama']}",
            version=found,
        )
    held = context.plan.adopted
    kept = f"adopted: {held.unit}" if held is not None else "nothing of it was changed"
    return Outcome.ok(f"Ollama {found} answers at {context.plan.engine_url}; {kept}", version=found)


def foreign_context(context: Context) -> Outcome:
    """With which context an engine that is not ours answers: a shorter one than planned cuts conversations silently."""
    model = serving(context)
    if model is None:
        return Outcome.skipped("no chat model is planned")
    context.step("ollama.chat_check", **_url(context.plan), model=model.tag)
    rows = context.step("ollama.ps", **_url(context.plan))["models"]
    found = rows.get(model.tag if ":" in model.tag else f"{model.tag}:latest", {}).get("context_length", 0)
    measured = f"{model.tag} is loaded there with context {found or 'not told'}, planned {model.context}"
    if found and found < model.context:
        hint = f"set OLLAMA_CONTEXT_LENGTH={model.context} there, or models.context = {found} here"
        return Outcome.amber(measured, hint, context=found)
    return Outcome.ok(measured, context=found)


def memory(context: Context) -> Outcome:
    """Predicted against measured memory of the model that serves, as numbers."""
    model = serving(context)
    if model is None or not (model.predicted_gpu_bytes or model.predicted_host_bytes):
        return Outcome.skipped("nothing was predicted for the model that serves")
    now = loaded(context, model)
    if not now.get("buffers"):
        return Outcome.failed(f"the engine's log has no account of {model.tag}", "`ownstack logs ollama`")
    gpu, host = split(now["buffers"])
    if context.plan.engine == "cpu":
        found = compare("memory", model.predicted_host_bytes - model.projector_bytes, gpu + host, TOLERANCE_HOST)
    else:
        # the projector is on the GPU with the whole model, else in RAM
        beside = model.projector_bytes if model.gpu_layers == model.layers else 0
        found = compare("GPU", model.predicted_gpu_bytes - beside, gpu, TOLERANCE_GPU)
    right, words, values = found
    context_length = now.get("context_length", 0)
    if model.context and context_length and context_length != model.context:
        return Outcome.failed(f"{words}; loaded with context {context_length}, planned {model.context}", **values)
    return (Outcome.ok if right else Outcome.failed)(f"{model.tag} at context {context_length}: {words}", **values)


def compare(
    where: str, predicted: int, measured: int, tolerance: tuple[float, int]
) -> tuple[bool, str, dict[str, Any]]:
    """Whether measured bytes lie within the tolerance of predicted ones, with words and numbers."""
    allowed = max(int(predicted * tolerance[0]), tolerance[1])
    off = measured - predicted
    words = f"{where} predicted {predicted / MIB:.1f} MiB, measured {measured / MIB:.1f} MiB ({off / MIB:+.1f})"
    values = {"predicted": predicted, "found": measured, "allowed": allowed}
    return abs(off) <= allowed, words, values


def checks(plan: Plan) -> list[Check]:
    up = "run `ownstack up`: it brings what is missing"
    fit = "`ownstack fit` shows what this machine holds; other programs may hold its memory"
    found = [
        Check("models-planned", "The planned models are there, with their weights and context", planned, up, NAME),
        Check("models-bootstrap-only", "The planned chat model serves", bootstrap_only, up, NAME),
        Check("models-chat", "The engine answers", chat, "`ownstack logs ollama` shows why", NAME),
        Check("models-embedding", "The engine embeds", embedding, "`ownstack logs ollama` shows why", NAME),
    ]
    if plan.engine_existing:
        its = "what is there is its owner's: nothing is changed from here"
        found.append(Check("models-engine", "The engine in use answers, in a safe version", foreign_engine, its, NAME))
        found += adopt.checks(plan)
        found.append(Check("models-context", "The engine in use keeps the planned context", foreign_context, its, NAME))
        return found
    if plan.engine != "cpu":
        driver = "look at the driver with `ownstack detect`, then `ownstack restart ollama`"
        found.append(Check("models-gpu-used", "The model uses the GPU", gpu_used, driver, NAME))
        found.append(Check("models-gpu-whole", "The model lies on the GPU as planned", on_gpu, fit, NAME))
    found.append(Check("models-memory", "The model takes the predicted memory", memory, fit, NAME))
    return found
