"""What a new version does to a service's data, seen on a copy: a second instance migrates it and has to answer."""

from __future__ import annotations

import os
from typing import Any

from . import backup_parts as parts
from . import scratch
from .core import Emit, Result, Spec, StepError, progress
from .restore import _remove
from .secrets import has_secret, read_secret, write_secret
from .snapshots_counts import database_counts, key_of
from .snapshots_data import copy_folder


def rehearsal(spec: Spec, emit: Emit) -> Result:
    """Start a second instance of a service on a copy of its data, and count before and after. The box is not touched.

    spec: second (as `scratch` has it, with this service alone), item: {name, place, databases}, secrets_dir, secrets
    (names), since (see `counts`). data: before, after, each as `counts` gives them.
    """
    os.umask(0o077)
    second, name = spec["second"], spec["item"]["name"]
    with scratch.place(second):
        for secret in spec["secrets"]:
            if has_secret(spec["secrets_dir"], secret):
                write_secret(second["secrets_dir"], secret, read_secret(spec["secrets_dir"], secret))
        folder = scratch.service(second, name)["folder"]
        progress(emit, f"copying what {name} keeps, for a rehearsal")
        copy_live(spec["item"], folder)
        before = _counted(spec, folder, still=True)
        scratch.at_rest(second, name)
        scratch.own(second, name)
        scratch.start(second, name, emit)
        after = _counted(spec, folder)
        scratch.stop(second, name)
    return {"changed": False, "data": {"before": before, "after": after}}


def copy_live(item: Spec, folder: str) -> None:
    """Copy the data of a service that writes to it; databases by SQLite's own means."""
    for last in (False, False, True):
        _remove(folder)
        try:
            copy_folder(item["place"], folder)
            break
        except StepError:  # a file went, as SQLite's journals do, between being listed and being read
            if last:
                raise
    for name in item["databases"]:
        source, target = parts.own(item["place"], name), os.path.join(folder, name)
        if os.path.exists(source):
            for end in ("", *parts.SIDE):
                _remove(f"{target}{end}")
            parts.copy_database(source, target)
            os.chmod(target, os.stat(source).st_mode & 0o777)


def _counted(spec: Spec, folder: str, still: bool = False) -> dict[str, Any]:
    name = spec["item"]["name"]
    tables: dict[str, Any] = {}
    for database in spec["item"]["databases"]:
        if os.path.exists(os.path.join(folder, database)):
            tables[name] = database_counts(name, os.path.join(folder, database), spec["since"], still)
    return {"tables": tables, "vectors": {}, "models": {}, "key": key_of(folder) if name == "n8n" else ""}
