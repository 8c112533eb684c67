"""Open WebUI: the kit's own account in it, the keys that the kit owns, the owner's password when it is lost.

The owner's password is used at most once, right after the first start, and only as the box itself made it. From then on
the kit works with the API key of its own account. When that account is gone, it is made again by Open WebUI's own code
run beside the service (`open_webui_inside.py`): nothing of the owner's is read or changed.
"""

from __future__ import annotations

import json
import pkgutil
import subprocess
from typing import Any

from .box import read_environment
from .core import Emit, Result, Spec, StepError, ids, progress
from .http import request, wait_ready
from .open_webui_again import STEPS as AGAIN
from .open_webui_probe import STEPS as PROBES
from .open_webui_reindex import STEPS as REINDEX
from .open_webui_site import KIT_KEY, Site, kit
from .open_webui_vectors import STEPS as VECTORS
from .secrets import fill, has_secret, make, read_secret, write_secret

KIT_NAME = "ownstack"
KIT_EMAIL = "ownstack@localhost"
KIT_PASSWORD = "open_webui_kit_password"  # noqa: S105 - the name of a secret
ADMIN_PASSWORD = "open_webui_admin_password"  # noqa: S105
# These live in memory too, so they are set through the address that also rebuilds the embedding function.
EMBEDDING = {
    "rag.embedding_engine": "RAG_EMBEDDING_ENGINE",
    "rag.embedding_model": "RAG_EMBEDDING_MODEL",
    "rag.ollama.base_url": "url",
}


def _works(spec: Spec) -> bool:
    if not has_secret(spec["secrets_dir"], KIT_KEY):
        return False
    status, _ = kit(spec).call("GET", "/api/v1/configs/connections")
    if status == 0 or status >= 500:
        raise StepError(f"Open WebUI does not answer at {spec['url']}", hint="`ownstack logs open_webui` shows why")
    return status == 200


def setup(spec: Spec, emit: Emit) -> Result:
    """Make the kit's own account and its API key, once.

    spec: url, secrets_dir, admin_email, inside {python, user, environment, environment_files}, timeout (s).
    data: way = "held", "kit", "first-password" or "recovered".
    """
    if spec.get("dry"):
        status, _ = request("GET", spec["url"] + "/health", timeout=5)
        return {"changed": status != 200 or not _works(spec), "data": {}}
    wait_ready(spec["url"] + "/ready", spec.get("timeout", 180), "open_webui")
    if _works(spec):
        return {"changed": False, "data": {"way": "held"}}
    progress(emit, "making the kit's own account in Open WebUI")
    for way, token in (("kit", _sign_in_kit), ("first-password", _add_kit)):
        found = token(spec)
        if found:
            write_secret(spec["secrets_dir"], KIT_KEY, _new_key(Site(spec["url"], found)))
            return {"changed": True, "data": {"way": way}}
    answer = inside(spec, "kit", email=KIT_EMAIL, name=KIT_NAME, password=_kit_password(spec))
    write_secret(spec["secrets_dir"], KIT_KEY, answer["api_key"])
    if not _works(spec):
        raise StepError(
            "Open WebUI refuses the kit's own account, although it was made again",
            hint="API keys may be switched off for it: Admin Panel, Settings, General, `API Keys`",
            code="open-webui-identity",
        )
    return {"changed": True, "data": {"way": "recovered"}}


def _kit_password(spec: Spec) -> str:
    if not has_secret(spec["secrets_dir"], KIT_PASSWORD):
        write_secret(spec["secrets_dir"], KIT_PASSWORD, make("password", 32))
    return read_secret(spec["secrets_dir"], KIT_PASSWORD)


def _ask_in(spec: Spec, email: str, password: str) -> tuple[int, Any]:
    return Site(spec["url"]).call("POST", "/api/v1/auths/signin", {"email": email, "password": password})


def _sign_in(spec: Spec, email: str, password: str) -> dict[str, Any]:
    status, answer = _ask_in(spec, email, password)
    return answer if status == 200 and isinstance(answer, dict) and answer.get("token") else {}


def sign_in(spec: Spec, emit: Emit) -> Result:
    """Sign the kit's own account in, as a person signs in. spec: url, secrets_dir.

    data: status (of HTTP; None where no password of it is kept). A key of the interface works without signing in: what
    keeps people out may leave a key alone.
    """
    if not has_secret(spec["secrets_dir"], KIT_PASSWORD):
        return {"changed": False, "data": {"status": None}}
    status, _ = _ask_in(spec, KIT_EMAIL, _kit_password(spec))
    return {"changed": False, "data": {"status": status}}


def _sign_in_kit(spec: Spec) -> str:
    """A session of the kit's account, where it is there and still an administrator."""
    if not has_secret(spec["secrets_dir"], KIT_PASSWORD):
        return ""
    answer = _sign_in(spec, KIT_EMAIL, _kit_password(spec))
    return str(answer["token"]) if answer.get("role") == "admin" else ""


def _add_kit(spec: Spec) -> str:
    """A session of the kit's account, made with the password that the box gave to the owner."""
    owner = _sign_in(spec, spec["admin_email"], read_secret(spec["secrets_dir"], ADMIN_PASSWORD))
    if not owner:
        return ""
    account = {"email": KIT_EMAIL, "name": KIT_NAME, "password": _kit_password(spec), "role": "admin"}
    status, answer = Site(spec["url"], owner["token"]).call("POST", "/api/v1/auths/add", account)
    return str(answer["token"]) if status == 200 and answer.get("token") else ""


def _new_key(site: Site) -> str:
    status, answer = site.call("POST", "/api/v1/auths/api_key")
    if status == 403:  # somebody switched API keys off
        site.need("POST", "/api/v1/configs/import", {"config": {"auth.enable_api_keys": True}})
        answer = site.need("POST", "/api/v1/auths/api_key")
    elif status != 200:
        raise StepError(f"Open WebUI answered {status} to the request for an API key", code="open-webui-refused")
    return str(answer["api_key"])


def inside(spec: Spec, action: str, **values: str) -> dict[str, Any]:
    """Run Open WebUI's own account code as its service user, beside the service. Secrets travel on standard input."""
    about = spec["inside"]
    env = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", **about["environment"]}
    for name in about["environment_files"]:
        env.update(read_environment(name))
    # the service has brought the database up to date itself; here nothing may be migrated
    env.update(FROM_INIT_PY="true", ENABLE_DB_MIGRATIONS="False", GLOBAL_LOG_LEVEL="ERROR")
    code = (pkgutil.get_data(__package__, "open_webui_inside.py") or b"").decode()
    uid, gid = ids(about["user"], about["user"]) if about["user"] else (-1, -1)
    drop: dict[str, Any] = {"user": uid, "group": gid, "extra_groups": []} if uid >= 0 else {}
    done = subprocess.run(
        [about["python"], "-c", code],
        input=json.dumps({"action": action, **values}),
        env=env,
        cwd=env["DATA_DIR"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        umask=0o077,
        **drop,
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise StepError(
            f"Open WebUI's own account code failed: {last[:300]}",
            hint="this happens when its version is not the one that the kit was tested with: `ownstack status`",
            code="open-webui-identity",
        )
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def password_reset(spec: Spec, emit: Emit) -> Result:
    """Give the owner's account (the first administrator) a new password and record it as the secret.

    spec: inside, secrets_dir, record and files (as for `secrets.fill`: those that carry the secret). data: email.
    All of the owner's sessions end.
    """
    if spec.get("dry"):
        return {"changed": True, "data": {}}
    new = make("password", 20)
    answer = inside(spec, "password", kit=KIT_EMAIL, password=new)
    write_secret(spec["secrets_dir"], ADMIN_PASSWORD, new)
    fill({key: spec[key] for key in ("secrets_dir", "record", "files")}, emit)
    return {"changed": True, "data": {"email": answer["email"]}}


def _differences(site: Site, planned: dict[str, Any]) -> list[dict[str, Any]]:
    held = site.need("GET", "/api/v1/configs/export")
    return [
        {"key": key, "planned": value, "found": held.get(key)}
        for key, value in sorted(planned.items())
        if held.get(key) != value
    ]


def drift(spec: Spec, emit: Emit) -> Result:
    """Owned keys whose value is not the planned one. spec: url, secrets_dir, values. Reads only."""
    return {"changed": False, "data": {"drift": _differences(kit(spec), spec["values"])}}


def configure(spec: Spec, emit: Emit) -> Result:
    """Bring the owned keys, and no others, to their planned values.

    spec: url, secrets_dir, values {key: value}. data: keys = [{key, planned, found}] that were changed; said.
    """
    if spec.get("dry"):
        status, _ = request("GET", spec["url"] + "/health", timeout=5)
        if status != 200 or not _works(spec):
            return {"changed": True, "data": {"keys": []}}
    site = kit(spec)
    wrong = _differences(site, spec["values"])
    if not wrong or spec.get("dry"):
        return {"changed": bool(wrong), "data": {"keys": wrong}}
    plain = {item["key"]: item["planned"] for item in wrong if item["key"] not in EMBEDDING}
    if plain:
        # an import writes the rows that it names and leaves all others as they are
        site.need("POST", "/api/v1/configs/import", {"config": plain})
    if len(plain) < len(wrong):
        _set_embedding(site, spec["values"])
    if any(item["key"].startswith("ollama.") for item in wrong):
        site.call("GET", "/api/models?refresh=true")
    left = [item["key"] for item in _differences(site, spec["values"])]
    if left:
        raise StepError(
            f"Open WebUI did not take the planned value of {', '.join(left)}",
            hint="take the key over with `[open_webui] user_owned`, or see `ownstack logs open_webui`",
            code="open-webui-config",
        )
    # what was found is not said: it may be an address with somebody's key in it
    said = [f"Open WebUI: {item['key']} is as planned again: {json.dumps(item['planned'])}" for item in wrong]
    return {"changed": True, "data": {"keys": wrong, "said": said}}


def _set_embedding(site: Site, values: dict[str, Any]) -> None:
    now = site.need("GET", "/api/v1/retrieval/embedding")
    form = {key: value for key, value in now.items() if key != "status"}
    for key, name in EMBEDDING.items():
        if key not in values:
            continue
        if name == "url":
            form["ollama_config"] = {**form["ollama_config"], "url": values[key]}
        else:
            form[name] = values[key]
    site.need("POST", "/api/v1/retrieval/embedding/update", form, timeout=120)


STEPS = {
    "configure": configure,
    "drift": drift,
    "password_reset": password_reset,
    "setup": setup,
    "sign_in": sign_in,
    **AGAIN,
    **PROBES,
    **REINDEX,
    **VECTORS,
}
