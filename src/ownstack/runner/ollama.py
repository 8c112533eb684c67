"""Steps on Ollama: its models, what it has loaded, real answers. Pulls are in `ollama_pull`."""

from __future__ import annotations

import os
import re
import time
from typing import Any

from . import ollama_adopt, ollama_move, ollama_prune, ollama_pull, ollama_registry
from . import ollama_api as api
from .core import Emit, Result, Spec, StepError, heartbeat, progress, read_json
from .detached import journal_option
from .fetch import sha256_of
from .managers import call

LOG_BYTES = 8 << 20
LOG_LINES = "40000"


def create(spec: Spec, emit: Emit) -> Result:
    """Make a model from a GGUF file, with its context length written into it.

    spec: url, tag, file, sha256, num_ctx (0: none written in), longest (tokens of an answer; 0 or left out: no limit),
      template and system (optional), may_add and may_replace (both true unless the engine is not ours).
    """
    wanted = f"sha256:{spec['sha256']}"
    context = int(spec.get("num_ctx", 0))
    try:
        now = api.state(spec["url"], spec["tag"])
    except StepError:
        if spec.get("dry"):
            return {"changed": True, "data": {"needs_file": True}}
        raise
    if now is not None and now["blob"] == wanted and context in (0, now["num_ctx"]):
        return {"changed": False, "data": {"needs_file": False, **now}}
    api.permitted(spec, now)
    if spec.get("dry"):
        return {"changed": True, "data": {"needs_file": True}}
    _whole(spec["file"], spec["sha256"])
    progress(emit, f"giving {spec['tag']} to Ollama")
    with heartbeat(emit, f"giving {spec['tag']} to Ollama"):
        api.upload(spec["url"], spec["file"], wanted)
        files = {os.path.basename(spec["file"]): wanted}
        body: dict[str, Any] = {"model": spec["tag"], "files": files, "stream": False}
        written = {"num_ctx": context, "num_predict": int(spec.get("longest", 0))}
        body["parameters"] = {name: value for name, value in written.items() if value}
        body.update({key: spec[key] for key in ("template", "system") if spec.get(key)})
        api.ask(spec["url"], "/api/create", body, f"making the model {spec['tag']}", timeout=1800)
    made = api.state(spec["url"], spec["tag"])
    if made is not None and made["blob"] != wanted and made["blob"] != (now or {}).get("blob"):
        # Ollama before 0.34 writes the weights of a file anew (llama-quantize COPY): same numbers, another hash
        api.tell_source(spec["url"], spec["tag"], spec["sha256"])
        made = api.state(spec["url"], spec["tag"])
    if made is None or made["blob"] != wanted:
        raise StepError(f"Ollama made {spec['tag']} from other weights than the file given", code="model-digest")
    return {"changed": True, "data": {"needs_file": False, **made}}


def _whole(path: str, sha256: str) -> None:
    """Refuse a file that is not the one planned: absent, no GGUF, or damaged."""
    try:
        with open(path, "rb") as stream:
            magic = stream.read(4)
    except OSError as error:
        why = f"{path} cannot be read: {error.strerror}"
        raise StepError(why, hint="run `ownstack up` again", code="gguf-missing") from error
    if magic != b"GGUF":
        raise StepError(f"{path} is not a GGUF file", hint="fetch it again", code="gguf-broken")
    got = sha256_of(path)
    if got != sha256:
        raise StepError(
            f"{path} has sha256 {got}, planned was {sha256}",
            hint="the file is cut short or changed: fetch it again",
            code="fetch-hash",
        )


def bake(spec: Spec, emit: Emit) -> Result:
    """Write a context length into a model that is there. spec: url, source, tag, num_ctx."""
    source = api.state(spec["url"], spec["source"])
    now = api.state(spec["url"], spec["tag"])
    same = source and now and now["blob"] == source["blob"] and now["num_ctx"] == spec["num_ctx"]
    if not same and not spec.get("dry"):
        api.bake(spec["url"], spec["source"], spec["tag"], spec["num_ctx"])
    return {"changed": not same}


def listed(spec: Spec, emit: Emit) -> Result:
    """All models of the engine, with context and weights. spec: url. data: models: [{name, digest, size, ...}]."""
    names = api.listed(spec["url"])
    rows = [{"name": name, **(api.state(spec["url"], name, names) or {})} for name in sorted(names)]
    return {"changed": False, "data": {"models": rows}}


def ensure(spec: Spec, emit: Emit) -> Result:
    """Compare the planned models with what the engine has; changes nothing.

    spec: url, record, models: [{tag, use, num_ctx, digest, sha256}]. `digest` is the registry's manifest, compared with
    what was recorded when it was pulled; `sha256` the weights of a model made from a file.
    data: present, missing, and wrong: {tag: reason}.
    """
    names = api.listed(spec["url"])
    record = read_json(spec.get("record", ""), {})
    data: dict[str, Any] = {"present": [], "missing": [], "wrong": {}, "models": {}}
    for model in spec["models"]:
        now = api.state(spec["url"], model["tag"], names)
        if now is None:
            data["missing"].append(model["tag"])
            continue
        data["models"][model["tag"]] = now
        reason = differs(model, now, record.get(model["tag"], {}))
        if reason:
            data["wrong"][model["tag"]] = reason
        else:
            data["present"].append(model["tag"])
    return {"changed": False, "data": data}


def differs(model: dict[str, Any], now: dict[str, Any], pulled: dict[str, Any]) -> str:
    """In words, how a model that is there differs from the planned one; empty where it does not."""
    if model.get("sha256") and now["blob"] != f"sha256:{model['sha256']}":
        return f"weights {now['blob'][7:19]}, planned {model['sha256'][:12]}"
    digest = model.get("digest", "")
    if digest and now["digest"] != digest:  # with the context written in, the manifest differs from the registry's
        if not pulled:
            return f"manifest {now['digest'][:12]}, planned {digest[:12]}, and no record of its pull"
        if pulled["digest"] != digest:
            return f"pulled as {pulled['digest'][:12]}, planned {digest[:12]}"
    if pulled and pulled["blob"] != now["blob"]:
        return f"weights {now['blob'][7:19]}, pulled were {pulled['blob'][7:19]}"
    if model.get("num_ctx") and now["num_ctx"] != model["num_ctx"]:
        return f"context {now['num_ctx'] or 'not set'}, planned {model['num_ctx']}"
    return ""


def inspect(spec: Spec, emit: Emit) -> Result:
    """What engine answers there, for one that the kit did not install. Reads only. spec: url."""
    about = api.ask(spec["url"], "/api/version", what=f"asking {spec['url']}", timeout=10)
    names = api.listed(spec["url"])
    return {"changed": False, "data": {"version": about.get("version", ""), "models": names}}


def delete(spec: Spec, emit: Emit) -> Result:
    """Take models off the engine's list. spec: url, tags."""
    there = [tag for tag in spec["tags"] if api.parse(tag).short in api.listed(spec["url"])]
    for tag in [] if spec.get("dry") else there:
        api.delete(spec["url"], tag)
    return {"changed": bool(there), "data": {"removed": there}}


def chat_check(spec: Spec, emit: Emit) -> Result:
    """One real, short chat. spec: url, model, tokens (32), timeout (600), prompt.

    data: tokens, prompt_tokens, tps, prompt_tps (tokens per second), load_s, seconds, answered (whether text came).
    """
    body = {
        "model": spec["model"],
        "messages": [{"role": "user", "content": spec.get("prompt", "Name the capital of France in one sentence.")}],
        "stream": False,
        "options": {"num_predict": spec.get("tokens", 32), "temperature": 0},
    }
    began = time.monotonic()
    with heartbeat(emit, f"asking {spec['model']}"):
        answer = api.ask(spec["url"], "/api/chat", body, f"asking {spec['model']}", spec.get("timeout", 600))
    message = answer.get("message", {})
    data = {
        "answered": bool(str(message.get("content", "") or message.get("thinking", "")).strip()),
        "model": answer.get("model", ""),
        "tokens": answer.get("eval_count", 0),
        "prompt_tokens": answer.get("prompt_eval_count", 0),
        "tps": _rate(answer, "eval_count", "eval_duration"),
        "prompt_tps": _rate(answer, "prompt_eval_count", "prompt_eval_duration"),
        "load_s": round(answer.get("load_duration", 0) / 1e9, 3),
        "seconds": round(time.monotonic() - began, 3),
    }
    return {"changed": False, "data": data}


def _rate(answer: dict[str, Any], count: str, duration: str) -> float:
    seconds = answer.get(duration, 0) / 1e9
    return round(answer.get(count, 0) / seconds, 2) if seconds else 0.0


def embed_check(spec: Spec, emit: Emit) -> Result:
    """One real embedding. spec: url, model, timeout. data: dimension, first (the first four values), norm, seconds."""
    began = time.monotonic()
    body = {"model": spec["model"], "input": "hello world"}
    answer = api.ask(spec["url"], "/api/embed", body, f"embedding with {spec['model']}", spec.get("timeout", 600))
    vector = (answer.get("embeddings") or [[]])[0]
    norm = sum(value * value for value in vector) ** 0.5
    seconds = round(time.monotonic() - began, 3)
    data = {"dimension": len(vector), "first": vector[:4], "norm": round(norm, 4), "seconds": seconds}
    return {"changed": False, "data": data}


def unload(spec: Spec, emit: Emit) -> Result:
    """Take a model out of memory; it is loaded again at its next use. spec: url, model."""
    api.ask(spec["url"], "/api/generate", {"model": spec["model"], "keep_alive": 0}, f"unloading {spec['model']}")
    for _ in range(100):
        if api.parse(spec["model"]).short not in _loaded(spec["url"]):
            return {"changed": True}
        time.sleep(0.1)
    raise StepError(f"{spec['model']} does not leave the memory", hint="`ownstack restart ollama`")


def _loaded(url: str) -> dict[str, dict[str, Any]]:
    models = api.ask(url, "/api/ps", what="asking what is loaded").get("models") or []
    keys = ("size", "size_vram", "digest", "context_length", "expires_at")
    return {m["name"]: {key: m.get(key, 0) for key in keys} for m in models}


def ps(spec: Spec, emit: Emit) -> Result:
    """What is loaded, and the engine's own account of its buffers in bytes.

    spec: url; for the buffers: manager, unit, log_dir. data: models: {name: {size, size_vram, context_length,
    buffers: {device: {model, kv, compute, output, rs}}, offloaded: [n, of] or null}}.
    """
    models = _loaded(spec["url"])
    text = log_text(spec) if spec.get("unit") else ""
    for name, model in models.items():
        blob = (api.state(spec["url"], name) or {}).get("blob", "")
        model.update(buffers_of(text, blob.replace(":", "-")))
    return {"changed": False, "data": {"models": models}}


def measure(spec: Spec, emit: Emit) -> Result:
    """Load a model and say where it lies. Where its load is no longer in the log, it is loaded again.

    spec: url, model, manager, unit, log_dir. data: as one model of `ps`.
    """
    name = api.parse(spec["model"]).short
    found: dict[str, Any] = {}
    for attempt in range(2):
        chat_check({"url": spec["url"], "model": spec["model"], "tokens": 1}, emit)
        found = ps(spec, emit)["data"]["models"].get(name, {})
        if found.get("buffers") or attempt:
            break
        unload(spec, emit)
    return {"changed": False, "data": found}


def log_text(spec: Spec) -> str:
    """The end of the engine's log."""
    if spec["manager"] == "supervisord":
        path = os.path.join(spec["log_dir"], f"{spec['unit']}.log")
        try:
            with open(path, "rb") as stream:
                stream.seek(max(0, os.path.getsize(path) - LOG_BYTES))
                return stream.read().decode("utf-8", "replace")
        except OSError:
            return ""
    unit = f"{spec['unit']}.service"
    return call(
        ["journalctl", journal_option(spec["manager"]), unit, "-b", "-o", "cat", "--no-pager", "-n", LOG_LINES],
        check=False,
    )


# `alloc_compute_meta` is the projector's own graph: it is not part of the language model's account
_BUFFER = re.compile(r"(?<!alloc_compute_meta):\s+(\S+)\s+(model|KV|compute|output|RS) buffer size\s*=\s*([\d.]+) MiB")
_OFFLOADED = re.compile(r"offloaded (\d+)/(\d+) layers")


def buffers_of(text: str, blob: str) -> dict[str, Any]:
    """Buffers of the last load of the weights `blob` (sha256-...), from the engine's log. Sizes in bytes."""
    blocks = text.split('msg="starting llama-server"')
    block = next((part for part in reversed(blocks[1:]) if blob and blob in part.split("\n", 1)[0]), "")
    buffers: dict[str, dict[str, int]] = {}
    for device, kind, size in _BUFFER.findall(block):
        held = buffers.setdefault(device, {})
        held[kind.lower()] = held.get(kind.lower(), 0) + round(float(size) * 2**20)
    offloaded = _OFFLOADED.search(block)
    return {"buffers": buffers, "offloaded": [int(offloaded[1]), int(offloaded[2])] if offloaded else None}


def evidence(spec: Spec, emit: Emit) -> Result:
    """What the engine itself logged at its start: version, whether the cloud is off, the devices it uses.

    spec: url, manager, unit, log_dir. data: version, cloud_off (true, false, or null where the log is gone), devices.
    """
    about = api.ask(spec["url"], "/api/version", what="asking Ollama")
    text = log_text(spec)
    clouds = re.findall(r"Ollama cloud disabled: (true|false)", text)
    start = text[text.rfind('msg="server config"') :] if 'msg="server config"' in text else text
    devices = re.findall(r'msg="inference compute".*? library=(\S+).*? description="?([^"]*?)"? libdirs', start)
    requests = re.search(r"OLLAMA_DEBUG_LOG_REQUESTS:(\S+)", start)
    data = {
        "version": about.get("version", ""),
        "cloud_off": clouds[-1] == "true" if clouds else None,
        "requests_logged": requests[1] == "true" if requests else None,
        "devices": [{"library": library, "name": name} for library, name in devices],
    }
    return {"changed": False, "data": data}


STEPS = {
    "bake": bake,
    "chat_check": chat_check,
    "create": create,
    "delete": delete,
    "embed_check": embed_check,
    "ensure": ensure,
    "evidence": evidence,
    "inspect": inspect,
    "leftovers": ollama_prune.leftovers,
    "list": listed,
    "manifests": ollama_registry.manifests,
    "measure": measure,
    "move": ollama_move.copy,
    "move_drop": ollama_move.drop,
    "outdated": ollama_registry.outdated,
    "prune": ollama_prune.prune,
    "ps": ps,
    "pull": ollama_pull.pull,
    "pull_start": ollama_pull.start,
    "pull_stop": ollama_pull.stop,
    "pull_wait": ollama_prune.wait,
    "pulls": ollama_pull.pulls,
    "unload": unload,
    **ollama_adopt.STEPS,
}
