"""Python environments from a hash-locked file, made as releases: complete or not there."""

from __future__ import annotations

import configparser
import hashlib
import os
import re
import shutil
import subprocess
from typing import Any

from .artifacts import complete, making, switch
from .core import Emit, Result, Spec, StepError, heartbeat, progress

# Read by nobody but a browser's developer tools; Open WebUI's alone are 82 MB.
SOURCE_MAPS = (".js.map", ".css.map")
BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem")
PIP_FILES = ("/etc/pip.conf", "~/.pip/pip.conf", "~/.config/pip/pip.conf")


def install(spec: Spec, emit: Emit) -> Result:
    """Make one environment and point `current` at it.

    spec: name, version, release, current, lock (path of the file, or its text as lock_text), python, uv, and optionally
    mirror (URL or folder whose `pypi` folder replaces the package index), cache (folder for uv's cache, kept only
    until the environment is complete: a run that was cut off goes on where it was).
    An environment whose interpreter is gone (Python was replaced) is made again.
    """
    release = spec["release"]
    held = complete(release) and os.path.exists(os.path.join(release, "bin", "python"))
    linked = os.path.realpath(spec["current"]) == os.path.realpath(release) and os.path.islink(spec["current"])
    if (held and linked) or spec.get("dry"):
        return {"changed": not (held and linked), "data": {"needs_files": not held}}
    if not held:
        os.umask(0o022)  # services of other users run what is made here
        lock = _lock(spec)
        about = {"name": spec["name"], "version": spec["version"], "sha256": [hashlib.sha256(lock).hexdigest()]}
        with making(release, about) as folder:
            _fill(spec, folder, lock, emit)
        if spec.get("cache"):
            shutil.rmtree(spec["cache"], ignore_errors=True)
    switch(spec["current"], release)
    return {"changed": True, "data": {"release": release}}


def _lock(spec: Spec) -> bytes:
    if "lock_text" in spec:
        return str(spec["lock_text"]).encode()
    with open(spec["lock"], "rb") as stream:
        return stream.read()


def _fill(spec: Spec, folder: str, lock: bytes, emit: Emit) -> None:
    count = len(re.findall(rb"(?m)^[A-Za-z0-9][A-Za-z0-9._-]*(\[[^\]]*\])?==", lock))
    # relocatable: no script in it knows the temporary name that it is made under
    _uv(
        spec,
        ["venv", "--quiet", "--relocatable", "--allow-existing", "--no-project", "--python", spec["python"], folder],
    )
    python = os.path.join(folder, "bin", "python")
    path = os.path.join(folder, "requirements.lock")
    with open(path, "wb") as stream:
        stream.write(lock)
    os.chmod(path, 0o644)
    rule = ["--require-hashes", "--no-build", "--python", python]
    with heartbeat(emit, f"installing {count} Python packages of {spec['name']}"):
        _uv(spec, ["pip", "sync", "--quiet", *rule, *_source(spec), path])
    _drop_maps(folder)
    progress(emit, f"compiling {spec['name']}")
    # the service may not write here; uncompiled, each of its starts would take 10 s more. The path that is compiled in
    # is the final one. Some packages carry files of Python 2: those fail, and nobody imports them.
    _run([python, "-m", "compileall", "-q", "-j", "0", "-s", folder, "-p", spec["release"], folder], check=False)


def _source(spec: Spec) -> list[str]:
    mirror = spec.get("mirror")
    return ["--no-index", "--find-links", f"{mirror.rstrip('/')}/pypi"] if mirror else []


def _uv(spec: Spec, arguments: list[str]) -> None:
    cache = ["--cache-dir", spec["cache"]] if spec.get("cache") else ["--no-cache"]
    _run([spec["uv"], *arguments, *cache], env={"UV_PYTHON_DOWNLOADS": "never", **_index(), **_trust()})


def _index() -> dict[str, str]:
    """The package index that this machine's pip is set up for; uv does not read pip's files."""
    if any(name in os.environ for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL")):
        return {}
    named = os.environ.get("PIP_INDEX_URL", "")
    for path in PIP_FILES:
        reader = configparser.RawConfigParser()
        try:
            reader.read(os.path.expanduser(path))
        except configparser.Error:
            continue
        named = named or reader.get("global", "index-url", fallback="")
    return {"UV_DEFAULT_INDEX": named} if named else {}


def _trust() -> dict[str, str]:
    """This machine's certificates, where it has any: a company's index is signed by a company's authority."""
    return {"UV_SYSTEM_CERTS": "1"} if any(os.path.exists(path) for path in BUNDLES) else {}


def _run(command: list[str], env: dict[str, str] | None = None, check: bool = True) -> None:
    """Run a program; its last words are the error. Its folder is `/`, where no project's configuration is found."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, **(env or {})},
        cwd="/",
        check=False,
    )
    if check and done.returncode != 0:
        tail = "\n".join(done.stdout.strip().splitlines()[-8:])
        full = "No space left" in done.stdout
        raise StepError(
            f"{os.path.basename(command[0])} {command[1]} ended with {done.returncode}: {tail}",
            hint="free disk space and run again" if full else "check that this machine reaches its package index",
            code="disk-full" if full else "python-env",
        )


def _drop_maps(folder: str) -> None:
    for place, _, names in os.walk(folder):
        for name in names:
            if name.endswith(SOURCE_MAPS):
                os.unlink(os.path.join(place, name))


STEPS: dict[str, Any] = {"install": install}
