"""Models that the kit pulled and that no plan names any more. What a user pulled is never among them."""

from __future__ import annotations

import time
from typing import Any

from . import ollama_api as api
from .core import Emit, Result, Spec, StepError, progress, read_json, write_json
from .ollama_pull import _states


def _left(spec: Spec) -> list[dict[str, Any]]:
    """Recorded pulls whose weights are still the ones that were pulled, without those in `keep`."""
    keep = {api.parse(tag).short for tag in spec["keep"]}
    names = api.listed(spec["url"])
    found = []
    for tag, noted in sorted(read_json(spec["record"], {}).items()):
        if noted.get("yours") or api.parse(tag).short in keep:
            continue
        now = api.state(spec["url"], tag, names)
        if now is None or now["blob"] != noted["blob"]:
            continue
        found.append({"model": tag, "bytes": now.get("size", 0)})
    return found


def leftovers(spec: Spec, emit: Emit) -> Result:
    """What `prune` would take. spec: url, record, keep (tags). data: models: [{model, bytes}]."""
    return {"changed": False, "data": {"models": _left(spec)}}


def prune(spec: Spec, emit: Emit) -> Result:
    """Take leftovers off the engine; the engine frees what no other model shares.

    spec: url, record, keep, farewell (the box goes: an engine that is not ours may be stopped or gone by then).
    """
    try:
        found = _left(spec)
    except StepError as error:
        if not spec.get("farewell") or error.code != "engine-down":
            raise
        said = f"models that the box pulled were not removed: {error.message}"
        return {"changed": False, "data": {"models": [], "said": [said]}}
    if not spec.get("dry"):
        for one in found:
            progress(emit, f"removing {one['model']}")
            api.delete(spec["url"], one["model"])
            noted = read_json(spec["record"], {})
            noted.pop(one["model"], None)
            write_json(spec["record"], noted)
    return {"changed": bool(found), "data": {"models": found}}


def wait(spec: Spec, emit: Emit) -> Result:
    """Wait until no pull of some models goes on. spec: run_dir, tags.

    data: ended: {tag: {code, message, hint}} of those whose last pull did not end well.
    """
    while True:
        mine = [state for state in _states(spec["run_dir"]) if state["model"] in spec["tags"]]
        going = [state for state in mine if state["alive"]]
        if not going:
            break
        for state in going:
            progress(emit, f"{state['model']}: {state['status']}", state.get("done") or 0, state.get("total"))
        time.sleep(0.5)
    ended = {}
    for state in mine:
        if state["status"] != "done":
            again = "run `ownstack up` again: it goes on where it stopped"
            ended[state["model"]] = state.get("error") or {"code": "", "message": state["status"], "hint": again}
    return {"changed": False, "data": {"ended": ended}}
