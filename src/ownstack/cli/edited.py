"""Files of the box that somebody edited: shown before a run, kept by it, or given up with `--overwrite`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .site import Site

if TYPE_CHECKING:
    from ..plan import Plan


def look(site: Site, plan: Plan) -> list[dict[str, Any]]:
    """Path and diff (from their version to the planned one) of each edited file; of one with secrets the name alone."""
    from ..engine import units
    from ..engine.role_tasks import written_files
    from ..kit import activate

    if not site.state.edited:
        return []
    activate()
    planned = {file.path: file for file in written_files(plan)}
    files = [{"path": path, "content": planned[path].content} for path in site.state.edited if path in planned]
    site.session.layout_runner = units.runner_python(plan)
    spec = {"secrets_dir": plan.layout.secrets, "files": files}
    told: list[dict[str, Any]] = site.session.step("files.differences", spec)["files"] if files else []
    return told + [{"path": path, "diff": ""} for path in site.state.edited if path not in planned]


def lines(rows: list[dict[str, Any]], overwrite: bool = False) -> list[str]:
    """What was edited and what will become of it, for people."""
    if not rows:
        return []
    kept = "is kept, the planned version lies beside it as FILE.ownstack-new; `ownstack up --overwrite` takes it"
    given = "is replaced, and kept as FILE.ownstack-old"
    found = ["", f"Edited by hand: each {given if overwrite else kept}"]
    for row in rows:
        found.append(f"  {row['path']}")
        found += [f"    {line}" for line in row["diff"].splitlines()[2:]]
    return found


def give_up(site: Site, plan: Plan, rows: list[dict[str, Any]]) -> None:
    """Let the run overwrite them. Each is kept beside."""
    if rows:
        spec = {"record": plan.layout.written, "paths": [row["path"] for row in rows]}
        site.session.step("files.give_up", spec)
