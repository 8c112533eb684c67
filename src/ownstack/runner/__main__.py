"""Entry point of the zipapp: dispatches one step."""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from typing import Any

from .core import Emit, Event, StepError, refused
from .served import resolve

MODULES = (
    "artifacts", "backup", "box", "drill", "dry", "fetch", "files", "gpu", "imports", "journal", "n8n", "npm", "ollama",
    "open_webui", "python_env", "qdrant", "recover", "restore", "secrets", "snapshots", "unpack",
)  # fmt: skip
# a pull resolves the steps that it runs at its end when it runs them
UNRESOLVED = ("ollama.pull", "ollama.pull_start")


def emit(event: Event) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def find(name: str) -> Any:
    module, _, function = name.partition(".")
    if module not in MODULES:
        raise StepError(f"there is no step {name!r}")
    steps = importlib.import_module(f".{module}", __package__).STEPS
    if function not in steps:
        raise StepError(f"there is no step {name!r}")
    return steps[function]


def run(step: str, spec: dict[str, Any], out: Emit) -> int:
    """Work on one step; its last event says how it ended."""
    try:
        if step not in UNRESOLVED:
            spec = resolve(spec)
        result = find(step)(spec, out)
        out({"event": "result", "changed": bool(result.get("changed")), "data": result.get("data", {})})
        return 0
    except StepError as error:
        told = error
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        told = refused(step, error) or StepError(
            f"{step}: {type(error).__name__}: {error} ({last.name}:{last.lineno})",
            hint="this is a fault of ownstack: please report it",
            code="bug",
        )
    out({"event": "error", "code": told.code, "message": told.message, "hint": told.hint})
    return 1


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["exec"]:
        from .box import supervise

        supervise(arguments[1])
    if arguments[1:2] == ["--journal"]:
        from .journal import attached

        return attached(arguments, run)
    text = arguments[2] if arguments[1:2] == ["--json"] else sys.stdin.read()
    return run(arguments[0], json.loads(text), emit)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
