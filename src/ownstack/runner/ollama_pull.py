"""Pulling a model with the real engine, beside the serving one, in a way that outlives the connection.

A second `ollama serve` runs for the length of the pull under an account of its own, on a free loopback port, with a
store of its own: it alone may reach the network, and it can write nothing that the serving engine reads. When the
registry's manifest is the planned one, the fetched files are moved (not copied) into the serving engine's store, the
context length is written in, one real chat is had, and only then the steps that make it the default are run.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Callable
from typing import Any, BinaryIO

from . import core
from . import ollama_api as api
from .core import Emit, Result, Spec, StepError, ids, progress, read_json, sync_folder, write_file, write_json
from .detached import alive, born, launch, stop_unit
from .http import wait_ready
from .ollama_engine import PullEngine, ended_in_order
from .served import resolve

State = dict[str, Any]
Engine = Callable[[], "contextlib.AbstractContextManager[str]"]
ACTIVE = ("starting", "pulling", "checking", "switching", "waiting")
# after these errors what was fetched is of no use; after others the next pull goes on where this one stopped
USELESS = ("fetch-hash", "model-digest", "model-name", "model-unknown")
# and these may pass by themselves
AGAIN = ("registry-unreachable", "engine-refused", "engine-down")
MANIFEST_BYTES = 1 << 20
TRIES = 5
SPARE = 1 << 30  # bytes of disk left free beside the model
RATE_WINDOW = 30.0  # seconds over which the rate is taken


def slug(tag: str) -> str:
    """A model's name as part of a file's or unit's name."""
    return re.sub(r"[^a-z0-9]+", "-", tag.lower()).strip("-")


def state_path(run_dir: str, tag: str) -> str:
    return os.path.join(run_dir, f"pull-{slug(tag)}.json")


class Journal:
    """The state file that `status` reads: written whole, at most twice a second, and at every change of status."""

    def __init__(self, path: str, tag: str, total: int | None) -> None:
        self.path = path
        self.last = 0.0
        self.seen: list[tuple[float, int]] = []
        self.value: State = {
            "kind": "pull", "model": tag, "pid": os.getpid(), "born": born(os.getpid()), "status": "starting",
            "what": "", "done": 0, "total": total, "rate": None, "eta_s": None, "started": int(time.time()),
            "error": None, "then": [],
        }  # fmt: skip
        os.makedirs(os.path.dirname(path), exist_ok=True)
        self.write()

    def set(self, **values: Any) -> None:
        changed = any(values.get(key) not in (None, self.value[key]) for key in ("status", "what"))
        self.value.update(values)
        if changed or time.monotonic() - self.last > 0.5:
            self.write()

    def write(self) -> None:
        self.last = time.monotonic()
        write_json(self.path, {**self.value, "updated": int(time.time())})

    def bytes(self, done: int, total: int | None) -> None:
        """Note progress; rate in bytes per second over the last half minute, and the seconds left."""
        now = time.monotonic()
        self.seen = [(at, n) for at, n in self.seen if now - at < RATE_WINDOW and n <= done] + [(now, done)]
        span = now - self.seen[0][0]
        rate = (done - self.seen[0][1]) / span if span > 1 else None
        left = int((total - done) / rate) if rate and total and total >= done else None
        self.set(done=done, total=total, rate=rate, eta_s=left)


def pull(spec: Spec, emit: Emit) -> Result:
    """Pull one model, serve it, and run the steps that switch to it.

    spec: model (its name in the registry), tag (the name clients see), url (of the serving engine), run_dir, record,
      num_ctx (0: none written in), digest (of the planned manifest, or empty), download_bytes, registry (mirror, or
      empty), insecure, accept_moved, yours (a person asked for it), check (default true: one real chat),
      then: [{step, spec}],
      and for the second engine: program, models, account, manager, unit, environment;
      or `via_api` true: the serving engine itself pulls (one that the kit did not install).
    """
    if present(spec):
        return {"changed": False, "data": {"model": spec["tag"]}}
    if spec.get("via_api"):
        api.permitted({**spec, "may_replace": True}, api.state(spec["url"], spec["tag"]))
    if spec.get("dry"):
        return {"changed": True}
    journal = Journal(state_path(spec["run_dir"], spec["tag"]), spec["tag"], spec.get("download_bytes"))
    try:
        spec = {**spec, "yours": theirs(spec)}
        with ended_in_order():
            found = held(spec) or _bring(spec, journal, emit)
        _serve(spec, found, journal, emit)
        _switch(spec, journal, emit)
    except StepError as error:
        journal.set(status="failed", error={"code": error.code, "message": error.message, "hint": error.hint})
        raise
    except Exception as error:
        told = core.refused(f"the pull of {spec['tag']}", error) or StepError(
            f"{type(error).__name__}: {error}", code="bug"
        )
        journal.set(status="failed", error={"code": told.code, "message": told.message, "hint": told.hint})
        raise
    journal.set(status="done", what="", eta_s=0)
    return {"changed": True, "data": {"model": spec["tag"], "digest": found["digest"], "blob": found["blob"]}}


def present(spec: Spec) -> bool:
    """Whether the planned model is served already, from the planned manifest and with the planned context."""
    try:
        now = api.state(spec["url"], spec["tag"])
    except StepError:
        return False
    noted = read_json(spec["record"], {}).get(spec["tag"])
    if now is None or int(spec.get("num_ctx", 0)) not in (0, now["num_ctx"]):
        return False
    if spec.get("via_api"):  # what is there is its owner's choice
        return True
    if noted is None:
        return not spec.get("digest") or now["digest"] == spec["digest"]
    return bool(noted["blob"] == now["blob"] and spec.get("digest", "") in ("", noted["digest"]))


def theirs(spec: Spec) -> bool:
    """Whether a person brought the model: asked for it now or earlier, or it was there before the kit pulled it.

    A plan that wants it later writes its context into it and notes it; it stays theirs all the same.
    """
    noted = read_json(spec["record"], {}).get(spec["tag"])
    if spec.get("yours") or noted:
        return bool(spec.get("yours") or noted.get("yours"))
    if spec.get("via_api"):
        return api.state(spec["url"], spec["tag"]) is not None
    return os.path.exists(os.path.join(spec["models"], "manifests", api.parse(spec["tag"]).path))


def held(spec: Spec) -> dict[str, str] | None:
    """The planned model as it was pulled earlier, where only the context written into it differs; else None."""
    noted = read_json(spec["record"], {}).get(spec["tag"])
    now = api.state(spec["url"], spec["tag"]) if noted and not spec.get("via_api") else None
    if now is None or now["blob"] != noted["blob"] or spec.get("digest", "") not in ("", noted["digest"]):
        return None
    return {"digest": noted["digest"], "blob": noted["blob"]}


def _bring(spec: Spec, journal: Journal, emit: Emit) -> dict[str, str]:
    """Fetch the model and put it into the serving engine's store; digest of its manifest, and of its weights."""
    name = api.parse(spec["model"])
    source = api.mirrored(name, spec.get("registry", ""))
    if spec.get("via_api"):
        had = api.state(spec["url"], name.short)
        _fetch(lambda: contextlib.nullcontext(spec["url"]), source, spec, journal, emit)
        found = api.state(spec["url"], source.short) or {"digest": "", "blob": ""}
        problem = _moved(spec, found["digest"])
        if problem and not had:
            api.delete(spec["url"], source.short)
        if problem:
            raise problem
        return {"digest": found["digest"], "blob": found["blob"]}
    _space(spec)
    staging = os.path.join(spec["models"], f".pull-{slug(spec['tag'])}")
    try:
        _fetch(lambda: PullEngine(spec, staging, source.host), source, spec, journal, emit)
        with open_plain(os.path.join(staging, "models", "manifests", source.path)) as stream:
            manifest = stream.read(MANIFEST_BYTES)
        problem = _moved(spec, hashlib.sha256(manifest).hexdigest())
        if problem:
            raise problem
        journal.set(status="checking", what="comparing what was fetched with its hashes")
        found = adopt(os.path.join(staging, "models"), manifest, spec["models"], name)
    except StepError as error:
        if error.code in USELESS:
            shutil.rmtree(staging, ignore_errors=True)
        raise
    shutil.rmtree(staging, ignore_errors=True)
    return found


def _fetch(engine: Engine, source: api.Name, spec: Spec, journal: Journal, emit: Emit) -> None:
    """POST /api/pull with retries: a registry or an engine that is away for a moment does not end a pull of hours."""
    for attempt in range(TRIES):
        try:
            with engine() as url:
                _fetch_once(url, source, spec, journal, emit)
            return
        except StepError as error:
            if error.code not in AGAIN or attempt == TRIES - 1:
                raise
            journal.set(status="waiting", what=f"{error.message}; trying again")
            time.sleep(float(spec.get("retry_s", 10)) * 2**attempt)


def _fetch_once(url: str, source: api.Name, spec: Spec, journal: Journal, emit: Emit) -> None:
    parts: dict[str, tuple[int, int]] = {}
    body = {"model": source.short, "insecure": bool(spec.get("insecure")), "stream": True}
    journal.set(status="pulling", what="reading the manifest")
    last = ""
    for event in api.stream(url, "/api/pull", body, f"pulling {spec['model']}"):
        last = event.get("status", "")
        if event.get("total"):
            parts[event.get("digest", "")] = (event.get("completed", 0), event["total"])
            done = sum(part for part, _ in parts.values())
            total = max(sum(whole for _, whole in parts.values()), spec.get("download_bytes") or 0)
            journal.bytes(done, total)
            progress(emit, spec["tag"], done, total)
        else:
            journal.set(what=last)
    if last != "success":  # an engine that is stopped, as at a shutdown, ends its answer without an error
        raise StepError(f"pulling {spec['model']}: Ollama stopped before the end", hint=api.LOGS, code="engine-down")
    whole = sum(size for _, size in parts.values())
    journal.set(done=whole, total=whole, rate=None, eta_s=None)


def _moved(spec: Spec, digest: str) -> StepError | None:
    if not spec.get("digest") or digest == spec["digest"] or spec.get("accept_moved"):
        return None
    return StepError(
        f"the registry's {spec['model']} is {digest[:12]}, the plan says {spec['digest'][:12]}: it was not taken",
        hint="the registry's tag has moved: bring the catalogue up to date, or set accept_moved = true in [models]",
        code="model-digest",
    )


def _space(spec: Spec) -> None:
    needed = (spec.get("download_bytes") or 0) + SPARE
    free = shutil.disk_usage(spec["models"]).free
    if free < needed:
        raise StepError(
            f"{spec['models']} has {free / 1e9:.1f} GB free, {spec['model']} needs {needed / 1e9:.1f} GB",
            hint="free disk space, or bind a models folder on another disk in [folders]",
            code="disk-full",
        )


def adopt(staging: str, manifest: bytes, models: str, name: api.Name) -> dict[str, str]:
    """Move a fetched model into a store under its plain name, its manifest last: it is whole or not there."""
    owner = os.stat(models)
    try:
        content = json.loads(manifest)
        layers = [*content["layers"], content["config"]]
        weights = next(x["digest"] for x in content["layers"] if x["mediaType"] == "application/vnd.ollama.image.model")
    except (ValueError, KeyError, TypeError, StopIteration) as error:
        raise StepError(f"the manifest of {name.short} is of no known kind", code="model-digest") from error
    blobs = os.path.join(models, "blobs")
    _folder(blobs, owner)
    for layer in layers:
        file = str(layer["digest"]).replace(":", "-")
        if not re.fullmatch(r"sha256-[0-9a-f]{64}", file):
            raise StepError(f"the manifest of {name.short} names a layer {file!r}", code="model-digest")
        if os.path.exists(os.path.join(blobs, file)):
            continue
        source = os.path.join(staging, "blobs", file)
        with open_plain(source) as stream:
            if digest_of(stream) != file[7:]:
                raise StepError(f"{file} of {name.short} has other bytes than its name says", code="fetch-hash")
            os.fchmod(stream.fileno(), 0o644)
            os.fchown(stream.fileno(), owner.st_uid, owner.st_gid)
            os.rename(source, os.path.join(blobs, file))
    sync_folder(blobs)
    path = os.path.join(models, "manifests", name.path)
    _folder(os.path.dirname(path), owner)
    write_file(path, manifest, 0o644, owner.st_uid, owner.st_gid)
    return {"digest": hashlib.sha256(manifest).hexdigest(), "blob": weights}


def open_plain(path: str) -> BinaryIO:
    """Open a file that another account wrote: it must be one, not a link to something of ours."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        raise StepError(f"{path} was not fetched: {error.strerror}", hint="run `ownstack up` again") from error
    held = os.fstat(handle)
    if not stat.S_ISREG(held.st_mode) or held.st_nlink != 1:
        os.close(handle)
        raise StepError(f"{path} is not a plain file: it was not taken", code="fetch-hash")
    return os.fdopen(handle, "rb")


def digest_of(stream: BinaryIO) -> str:
    digest = hashlib.sha256()
    for block in iter(lambda: stream.read(1 << 20), b""):
        digest.update(block)
    return digest.hexdigest()


def _folder(path: str, owner: os.stat_result) -> None:
    """Make a folder and its parents, owned like the store."""
    if not os.path.isdir(path):
        _folder(os.path.dirname(path), owner)
        os.mkdir(path, 0o755)
        os.chown(path, owner.st_uid, owner.st_gid)


def _serve(spec: Spec, found: dict[str, str], journal: Journal, emit: Emit) -> None:
    """Note where it came from, write the context in, and have one real chat with it."""
    # first: the next run would take what lies there unnoted for its owner's
    remember(spec["record"], spec["tag"], found["digest"], found["blob"], bool(spec.get("yours")))
    journal.set(status="checking", what="first answer")
    wait_ready(spec["url"].rstrip("/") + "/api/version", 120, "ollama")
    name = api.parse(spec["model"])
    source = api.mirrored(name, spec.get("registry", "")).short if spec.get("via_api") else name.short
    if spec.get("num_ctx"):
        api.bake(spec["url"], source, spec["tag"], spec["num_ctx"])
    elif api.parse(spec["tag"]) != api.parse(source):
        api.copy(spec["url"], source, spec["tag"])
    if spec.get("check", True):
        from .ollama import chat_check

        answer = chat_check({"url": spec["url"], "model": spec["tag"], "timeout": 1800}, emit)["data"]
        if not answer["answered"]:
            raise StepError(f"{spec['tag']} gives no answer", hint=api.LOGS, code="model-silent")
        journal.set(answer=answer)


def remember(record: str, tag: str, digest: str, blob: str, yours: bool = False) -> None:
    """Note a pulled model's registry manifest and weights: the context written in changes its own manifest.

    `yours`: a person asked for it by name, and no pruning takes it.
    """
    notes = read_json(record, {})
    notes[tag] = {"digest": digest, "blob": blob, "date": time.strftime("%Y-%m-%d")}
    if yours:
        notes[tag]["yours"] = True
    write_json(record, notes)


def _switch(spec: Spec, journal: Journal, emit: Emit) -> None:
    """Run the steps that make the model the default. Each is tried again while its service is still starting."""
    for call in spec.get("then", []):
        journal.set(status="switching", what=call["step"])
        module, _, function = call["step"].partition(".")
        step = importlib.import_module(f".{module}", __package__).STEPS[function]
        for attempt in range(TRIES):
            try:
                result = step(resolve(call["spec"]), emit)
                journal.value["then"].append({"step": call["step"], "changed": bool(result.get("changed"))})
                break
            except StepError as error:
                if attempt == TRIES - 1:
                    why = f"switching to {spec['tag']}: {error.message}"
                    raise StepError(why, hint=error.hint, code=error.code) from error
                time.sleep(float(spec.get("retry_s", 10)) * 2**attempt)


def start(spec: Spec, emit: Emit) -> Result:
    """Start a pull that goes on when this connection ends. spec: runner, and `pull`: the specification of the pull.

    Nothing to do where the model is served already or its pull is running.
    """
    job = spec["pull"]
    running = next((p for p in _states(job["run_dir"]) if p["model"] == job["tag"] and p["alive"]), None)
    if running or present(job) or spec.get("dry"):
        return {"changed": not running and not present(job), "data": {"running": bool(running)}}
    ids(job.get("account", ""))  # a missing account is said here, not in a log
    command = [spec["runner"], "ollama.pull", "--json", json.dumps(job, sort_keys=True)]
    path = state_path(job["run_dir"], job["tag"])
    with contextlib.suppress(OSError):
        os.unlink(path)
    log = os.path.join(job["run_dir"], f"pull-{slug(job['tag'])}.log")
    # the pull ends its engine itself, which has to write down first what it has
    launch(job["manager"], job["unit"], command, log, ("KillMode=mixed",))
    for _ in range(100):
        if os.path.exists(path):
            return {"changed": True, "data": {"running": True}}
        time.sleep(0.1)
    raise StepError(f"the pull of {job['tag']} did not start", hint=f"`ownstack logs {job['unit']}`", code="pull-start")


def stop(spec: Spec, emit: Emit) -> Result:
    """End pulls; what was fetched is kept for the next one. spec: manager, run_dir, tags (default all)."""
    chosen = [p for p in _states(spec["run_dir"]) if p["alive"] and p["model"] in spec.get("tags", [p["model"]])]
    if not spec.get("dry"):
        for one in chosen:
            stop_unit(spec["manager"], one.get("unit", ""), one["pid"])
            path = state_path(spec["run_dir"], one["model"])
            write_json(path, {**read_json(path, {}), "status": "stopped"})
    return {"changed": bool(chosen), "data": {"stopped": [one["model"] for one in chosen]}}


def pulls(spec: Spec, emit: Emit) -> Result:
    """All pulls on record, with `alive`: whether one is going on. spec: run_dir."""
    return {"changed": False, "data": {"pulls": _states(spec["run_dir"])}}


def _states(run_dir: str) -> list[State]:
    found = []
    for file in sorted(os.listdir(run_dir)) if os.path.isdir(run_dir) else []:
        if file.startswith("pull-") and file.endswith(".json"):
            state = read_json(os.path.join(run_dir, file), {})
            if state.get("kind") == "pull":
                found.append(seen(state))
    return found


def seen(state: State) -> State:
    """A state file's content with `alive`, and `interrupted` where the pull has died without a word."""
    active = state["status"] in ACTIVE
    living = active and alive(state["pid"], state.get("born", ""))
    return {**state, "alive": living, "status": "interrupted" if active and not living else state["status"]}
