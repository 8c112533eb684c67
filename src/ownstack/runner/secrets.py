"""Secrets live on the target only, each a file 0600 in one folder 0700."""

from __future__ import annotations

import contextlib
import os
import re
import secrets as random
import string
from collections.abc import Iterable

from .core import Emit, Result, Spec, StepError, read_json, write_file

NAME = re.compile(r"^[a-z][a-z0-9_]*$")
MARK = re.compile(r"@@secret:([a-z0-9_]+)@@")


def secret_path(secrets_dir: str, name: str) -> str:
    if not NAME.fullmatch(name):
        raise StepError(f"{name!r} is not a secret's name")
    return os.path.join(secrets_dir, name)


def has_secret(secrets_dir: str, name: str) -> bool:
    return os.path.exists(secret_path(secrets_dir, name))


def read_secret(secrets_dir: str, name: str) -> str:
    """The secret's value. Raises StepError when it was never made."""
    try:
        with open(secret_path(secrets_dir, name), encoding="utf-8") as stream:
            return stream.read().strip()
    except OSError as error:
        raise StepError(
            f"the secret {name} cannot be read: {error.strerror}", hint="run `ownstack up` again", code="secret-missing"
        ) from error


def write_secret(secrets_dir: str, name: str, value: str) -> None:
    path = secret_path(secrets_dir, name)
    owner = os.stat(secrets_dir)
    write_file(path, value.encode() + b"\n", 0o600, owner.st_uid, owner.st_gid)


def make(kind: str, length: int) -> str:
    """A new random value of letters, digits, `_` and `-` only: safe in every configuration format."""
    if kind == "hex":
        return random.token_hex((length + 1) // 2)[:length]
    alphabet = string.ascii_letters + string.digits
    if kind != "password":
        return "".join(random.choice(alphabet) for _ in range(length))
    while True:  # passwords must hold a small letter, a capital and a digit
        value = "".join(random.choice(alphabet) for _ in range(length))
        if any(map(str.islower, value)) and any(map(str.isupper, value)) and any(map(str.isdigit, value)):
            return value


def ensure(spec: Spec, emit: Emit) -> Result:
    """Make the secrets that do not exist yet; never touch one that does.

    spec: secrets_dir, secrets: [{name, kind, length, services, opens}], and active_dir: services that run with a secret
    that was lost are to start anew. opens: {data (paths), held_in (a JSON file, its key), code}: data that no other
    secret opens. Raises StepError where that is there and the secret is not; none is made then.
    """
    folder = spec["secrets_dir"]
    made = []
    missing = [s for s in spec["secrets"] if not has_secret(folder, s["name"])]
    for secret in missing:
        if secret.get("opens"):
            _still_needed(folder, secret["name"], **secret["opens"])
    if missing and not spec.get("dry"):
        _start_anew(spec, {name for secret in missing for name in secret.get("services", ())})
        for secret in missing:
            write_secret(folder, secret["name"], make(secret["kind"], secret["length"]))
            made.append(secret["name"])
    return {"changed": bool(missing), "data": {"made": made}}


def _still_needed(folder: str, name: str, data: list[str], held_in: list[str], code: str) -> None:
    """Raises StepError where data is there that was made with a secret which is gone."""
    there = next((path for path in data if os.path.lexists(path)), None)
    if there is None:
        return
    file, key = held_in
    held = read_json(file)
    own = isinstance(held, dict) and bool(held.get(key))
    raise StepError(
        f"{there} was made with the secret {name}, which is gone: no other one is made, because it could decrypt "
        "nothing of what is stored",
        hint=f"put the right key back into {secret_path(folder, name)} "
        f"({f'the data has it too, as `{key}` in {file}' if own else 'from a backup'}), then run `ownstack up`",
        code=code,
    )


def filled(secrets_dir: str, content: str) -> bytes:
    return MARK.sub(lambda match: read_secret(secrets_dir, match.group(1)), content).encode()


def fill(spec: Spec, emit: Emit) -> Result:
    """Write files whose content carries secret marks. Nothing but their names is ever reported.

    spec: secrets_dir, files: [{path, content, mode, owner, group}], and record (see `files`): with it a file that
    somebody edited is kept, and the new one lies beside it. services, active_dir: those that read the files, which
    start anew where one gets another content: another secret was put in its place, which is no change of the plan.
    """
    from .files import put, replaces

    os.umask(0o077)
    record = spec.get("record", "")
    changed = []
    for item in spec["files"]:
        try:
            data = filled(spec["secrets_dir"], item["content"])
        except StepError:
            if not spec.get("dry"):
                raise
            changed.append(item["path"])
            continue
        if not spec.get("dry") and replaces(item, data, record):
            _start_anew(spec, spec.get("services", ()))  # before: it may be cut off between the two
        if put(item, data, record, bool(spec.get("dry"))):
            changed.append(item["path"])
    return {"changed": bool(changed), "data": {"files": changed}}


def _start_anew(spec: Spec, services: Iterable[str]) -> None:
    """Have the next `box.activate` restart services."""
    for name in services:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(spec.get("active_dir", ""), name))


STEPS = {"ensure": ensure, "fill": fill}
