"""Entry point of the zipapp: dispatches one step."""

from __future__ import annotations

import errno
import importlib
import json
import sys
import traceback
from typing import Any

from .core import Emit, Event, StepError
from .served import resolve

MODULES = (
    "artifacts", "backup", "box", "drill", "dry", "fetch", "files", "gpu", "imports", "journal", "n8n", "npm", "ollama",
    "open_webui", "python_env", "qdrant", "recover", "restore", "secrets", "snapshots", "unpack",
)  # fmt: skip
# a pull resolves the steps that it runs at its end when it runs them
UNRESOLVED = ("ollama.pull", "ollama.pull_start")
AGAIN = "then run again: it goes on where it stopped"
FORBIDDEN = "let this account write there (`ls -ld`, `lsattr -d` and `mount` show what forbids it)"
# what the machine refuses, wherever in a step: no fault of ours. Error number -> code, and what its owner has to do
REFUSED = {
    errno.ENOSPC: ("disk-full", "free disk space"),
    errno.EDQUOT: ("disk-full", "free disk space, or raise the quota"),
    errno.EROFS: ("read-only", "make the folder writable"),
    errno.EACCES: ("not-permitted", FORBIDDEN),
    errno.EPERM: ("not-permitted", FORBIDDEN),
    errno.EIO: ("disk-error", "the disk may be failing: `journalctl -k` says more"),
}


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
        out({"event": "error", "code": error.code, "message": error.message, "hint": error.hint})
    except Exception as error:
        refused = REFUSED.get(error.errno or 0) if isinstance(error, OSError) else None
        if refused is not None:
            out({"event": "error", "code": refused[0], "message": f"{step}: {error}", "hint": f"{refused[1]}, {AGAIN}"})
            return 1
        last = traceback.extract_tb(error.__traceback__)[-1]
        out(
            {
                "event": "error",
                "code": "bug",
                "message": f"{step}: {type(error).__name__}: {error} ({last.name}:{last.lineno})",
                "hint": "this is a fault of ownstack: please report it",
            }
        )
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
