"""n8n on the target: its key, its owner, the kit's own API key, passwords, and what runs."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import subprocess
import urllib.error
import urllib.request
from typing import Any

from . import n8n_content, n8n_maintain
from .core import Emit, Result, Spec, StepError, progress, read_json, write_json
from .http import request, wait_ready
from .n8n_api import LABEL, api, key_works
from .secrets import has_secret, make, read_secret, write_secret

KEY = "n8n_encryption_key"
PASSWORD = "n8n_owner_password"  # noqa: S105 - the name of a secret
API_KEY = "n8n_api_key"
SCOPES = [
    "workflow:list", "workflow:read", "workflow:create", "workflow:update", "workflow:delete", "workflow:activate",
    "workflow:deactivate", "credential:list", "credential:read", "credential:create", "credential:update",
    "credential:delete", "execution:list", "execution:read", "execution:delete",
]  # fmt: skip
RESET_HINT = (
    "`ownstack password --reset n8n` gives the owner a new password and the kit its key; workflows stay as they are"
)


def fingerprint(key: str) -> str:
    """What the manifest may hold of the encryption key: enough to tell two keys apart, nothing to decrypt with."""
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def recorded(spec: Spec) -> str:
    """The fingerprint of the key that n8n was set up with; empty before that."""
    return str((read_json(spec["state"]) or {}).get("key_fingerprint", ""))


def record_key(spec: Spec) -> bool:
    """Note the key's fingerprint, once."""
    if recorded(spec):
        return False
    state = read_json(spec["state"]) or {}
    write_json(spec["state"], {**state, "key_fingerprint": fingerprint(read_secret(spec["secrets_dir"], KEY))}, 0o600)
    return True


def preflight(spec: Spec, emit: Emit) -> Result:
    """Refuse to start n8n with a key that its data was not made with.

    spec: secrets_dir, data (n8n's data folder), state (the kit's record, which holds the first key's fingerprint).
    """
    mine = fingerprint(read_secret(spec["secrets_dir"], KEY)) if has_secret(spec["secrets_dir"], KEY) else ""
    config = os.path.join(spec["data"], ".n8n", "config")
    database = os.path.join(spec["data"], ".n8n", "database.sqlite")
    used = (read_json(config) or {}).get("encryptionKey") if os.path.exists(config) else None
    theirs = fingerprint(used) if used else (recorded(spec) if os.path.exists(database) else None)
    if os.path.exists(config) and not used:
        raise StepError(
            f"{config} cannot be read as n8n's settings",
            hint="restore it from a backup, or move it away if the secret n8n_encryption_key is the right one",
            code="n8n-key",
        )
    if theirs and theirs != mine:
        raise StepError(
            f"n8n's data was made with the encryption key {theirs}, but the secret {KEY} is {mine or 'gone'}: n8n was "
            "not started, because no stored credential could be decrypted",
            hint=f"put the right key back into {os.path.join(spec['secrets_dir'], KEY)} (from a backup; the data "
            f"folder's own copy is in {config}), then run `ownstack up`",
            code="n8n-key",
        )
    mine = mine or fingerprint(read_secret(spec["secrets_dir"], KEY))  # says that it is missing
    return {"changed": False, "data": {"key_fingerprint": mine, "data": bool(theirs)}}


class Site:
    """n8n's own web interface, signed in as a person is: by cookie."""

    def __init__(self, url: str) -> None:
        import http.cookiejar  # takes longer than the dry run of a step, which signs nobody in

        self.url = url.rstrip("/")
        jar = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), jar)

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        address = self.url + path  # http on loopback, from the plan
        asked = urllib.request.Request(address, data=data, method=method, headers=headers)  # noqa: S310
        try:
            with self.opener.open(asked, timeout=30) as answer:
                status, raw = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                status, raw = error.code, error.read()
        except OSError as error:
            return 0, str(error)
        try:
            return status, json.loads(raw)
        except ValueError:
            return status, raw.decode("utf-8", "replace")


def unclaimed(url: str) -> bool:
    """Whether n8n would still give itself to the first visitor. Raises StepError when it does not say."""
    status, answer = request("GET", f"{url}/rest/settings")
    try:
        return bool(answer["data"]["userManagement"]["showSetupOnFirstLoad"])
    except (KeyError, TypeError) as error:
        raise StepError(f"n8n does not answer as expected ({status})", hint="`ownstack logs n8n` shows why") from error


def setup(spec: Spec, emit: Emit) -> Result:
    """Make the owner and the kit's API key, once. Neither is ever put back or replaced while it works.

    spec: url, secrets_dir, state, email, first_name, last_name, timeout. The password secret is only the first
    password.
    """
    url, folder = spec["url"].rstrip("/"), spec["secrets_dir"]
    if spec.get("dry"):
        done = has_secret(folder, API_KEY) and key_works(url, read_secret(folder, API_KEY)) and recorded(spec)
        return {"changed": not done}
    wait_ready(f"{url}/healthz/readiness", float(spec.get("timeout", 180)), "n8n")
    made, noted = False, record_key(spec)
    if unclaimed(url):
        progress(emit, "making n8n's owner")
        _claim(url, spec)
        made = True
    elif has_secret(folder, API_KEY) and key_works(url, read_secret(folder, API_KEY)):
        return {"changed": noted, "data": {"owner_made": False, "key_made": False}}
    _make_key(_signed_in(url, spec["email"], read_secret(folder, PASSWORD)), folder)
    return {"changed": True, "data": {"owner_made": made, "key_made": True}}


def _claim(url: str, spec: Spec) -> None:
    owner = {
        "email": spec["email"],
        "firstName": spec["first_name"],
        "lastName": spec["last_name"],
        "password": read_secret(spec["secrets_dir"], PASSWORD),
    }
    status, answer = Site(url).ask("POST", "/rest/owner/setup", owner)
    if status != 200 and unclaimed(url):
        what = answer.get("message", "") if isinstance(answer, dict) else ""
        raise StepError(f"n8n refused to make its owner ({status} {what})", hint="see n8n.owner_email in the settings")


def _signed_in(url: str, email: str, password: str) -> Site:
    site = Site(url)
    status, answer = site.ask("POST", "/rest/login", {"emailOrLdapLoginId": email, "password": password})
    if status != 200:
        mfa = isinstance(answer, dict) and "mfa" in json.dumps(answer).lower()
        why = "its owner uses a second factor" if mfa else f"its owner has another password or address ({status})"
        raise StepError(
            f"n8n has no API key of ownstack, and {why}: ownstack cannot make itself a new key",
            hint=("in n8n switch the second factor off for a moment; then " if mfa else "") + RESET_HINT,
            code="n8n-signin",
        )
    return site


def _make_key(site: Site, folder: str) -> None:
    """A new key for the kit; older ones under its label are worthless, their text is shown only once."""
    status, answer = site.ask("GET", "/rest/api-keys")
    rows = answer["data"].get("items", []) if status == 200 else []
    for row in rows:
        if row.get("label") == LABEL:
            site.ask("DELETE", f"/rest/api-keys/{row['id']}")
    status, answer = site.ask("POST", "/rest/api-keys", {"label": LABEL, "expiresAt": None, "scopes": SCOPES})
    if status != 200:
        raise StepError(f"n8n refused to make an API key ({status})", hint="`ownstack logs n8n` shows why")
    write_secret(folder, API_KEY, answer["data"]["rawApiKey"])


# ----------------------------------------------------------------------------------------------- the owner's password

# n8n has no command that sets a password: user-management:reset deletes all other accounts and leaves the box to the
# first visitor. So one row is changed, with n8n's own hash function; sessions end, everything else stays.
CHANGE_OWNER = """
const [modules, database] = process.argv.slice(1);
const path = require('path');
const { createRequire } = require('module');
const { DatabaseSync } = require('node:sqlite');
const bcrypt = createRequire(path.join(modules, 'n8n', 'package.json'))('bcryptjs');
const password = require('fs').readFileSync(0, 'utf8');
const db = new DatabaseSync(database);
db.exec('PRAGMA busy_timeout = 10000');
const owners = db.prepare("SELECT id, email FROM user WHERE roleSlug = 'global:owner'").all();
if (owners.length !== 1 || !owners[0].email) {
  console.log(JSON.stringify({ owners: owners.length }));
  process.exit(3);
}
db.prepare('UPDATE user SET password = ? WHERE id = ?').run(bcrypt.hashSync(password, 10), owners[0].id);
const mfa = db.prepare('SELECT mfaEnabled FROM user WHERE id = ?').get(owners[0].id).mfaEnabled;
db.close();
console.log(JSON.stringify({ email: owners[0].email, mfa: !!mfa }));
"""


def password_reset(spec: Spec, emit: Emit) -> Result:
    """Give the owner a new password, kept in the password secret; give the kit a key if it lost its own.

    spec: url, secrets_dir, node, n8n (releases), data, user (the service's account; empty: as we are). n8n runs.
    """
    folder, url = spec["secrets_dir"], spec["url"].rstrip("/")
    wait_ready(f"{url}/healthz/readiness", 60, "n8n")
    password = make("password", 24)
    done = _set_password(spec, password)
    write_secret(folder, PASSWORD, password)
    if not done["mfa"] and not (has_secret(folder, API_KEY) and key_works(url, read_secret(folder, API_KEY))):
        _make_key(_signed_in(url, done["email"], password), folder)
    return {"changed": True, "data": {"email": done["email"], "second_factor": done["mfa"]}}


def _set_password(spec: Spec, password: str) -> dict[str, Any]:
    """Run the change as the service's account, so that the database's side files stay its own."""
    command = [os.path.join(spec["node"], "bin", "node"), "--no-warnings", "-e", CHANGE_OWNER, "--"]
    command += [os.path.join(spec["n8n"], "node_modules"), os.path.join(spec["data"], ".n8n", "database.sqlite")]
    as_user: dict[str, Any] = {}
    if spec.get("user") and os.getuid() == 0:
        as_user = {"user": spec["user"], "group": pwd.getpwnam(spec["user"]).pw_gid, "extra_groups": []}
    done = subprocess.run(
        command, input=password, capture_output=True, text=True, check=False, cwd="/", env={"PATH": "/usr/bin:/bin"},
        umask=0o077, **as_user,
    )  # fmt: skip
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        answer = {}
    if done.returncode != 0 or "email" not in answer:
        if "owners" in answer:
            raise StepError("n8n has no owner yet", hint="run `ownstack up`: it makes the owner", code="n8n-owner")
        raise StepError(
            f"the password was not changed: {done.stderr.strip()[-300:]}",
            hint="`ownstack logs n8n`; nothing else was touched",
        )
    return answer


# --------------------------------------------------------------------------------------------------------- for verify


def probe(spec: Spec, emit: Emit) -> Result:
    """What n8n tells and refuses. Reads only. spec: url, secrets_dir, data, state."""
    url = spec["url"].rstrip("/")
    paths = (
        "/rest/workflows",
        "/rest/credentials",
        "/rest/users",
        "/rest/executions",
        "/api/v1/workflows",
        "/types/nodes.json",
    )
    has_key = has_secret(spec["secrets_dir"], API_KEY)
    data = {
        "unclaimed": unclaimed(url),
        "without_login": {path: request("GET", url + path)[0] for path in paths},
        "page": request("GET", url + "/")[0],
        "foreign_host": request("GET", url + "/", headers={"Host": "rebound.example"})[0],
        "key_works": has_key and key_works(url, read_secret(spec["secrets_dir"], API_KEY)),
        "api": api(url, spec["secrets_dir"], "GET", "/workflows?limit=1")[0] if has_key else 0,
    }
    used = (read_json(os.path.join(spec["data"], ".n8n", "config")) or {}).get("encryptionKey")
    data["key_fingerprint"] = fingerprint(read_secret(spec["secrets_dir"], KEY))
    data["recorded_fingerprint"] = recorded(spec)
    data["data_fingerprint"] = fingerprint(used) if used else ""
    return {"changed": False, "data": data}


def running(spec: Spec, emit: Emit) -> Result:
    """Which releases the running n8n was started from, by the files it has mapped. spec: opt, entry (n8n's script)."""
    pid = _process(spec["entry"])
    if pid is None:
        raise StepError("n8n does not run", hint="`ownstack start n8n`", code="not-running")
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as stream:
        text = stream.read()
    found = {}
    for component in ("n8n", "node"):
        base = f"{spec['opt']}/{component}/releases/"
        at = text.find(base)
        found[component] = text[at + len(base) :].split("/", 1)[0] if at >= 0 else ""
    return {"changed": False, "data": {"pid": pid, "releases": found, "memory": _memory(pid)}}


def _process(entry: str) -> int | None:
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/cmdline", "rb") as stream:
                    words = stream.read().split(b"\0")
            except OSError:
                continue
            if entry.encode() in words:
                return int(name)
    return None


def _memory(pid: int) -> dict[str, int]:
    """Bytes held by n8n and its children: resident and proportional."""
    total = {"rss_bytes": 0, "pss_bytes": 0}
    children = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", encoding="ascii", errors="replace") as stream:
                    parent = int(stream.read().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == pid:
                children.append(int(name))
    for each in (pid, *children):
        try:
            with open(f"/proc/{each}/smaps_rollup", encoding="ascii") as stream:
                for line in stream:
                    if line.startswith(("Rss:", "Pss:")):
                        total[line[:3].lower() + "_bytes"] += int(line.split()[1]) * 1024
        except OSError:
            continue
    return total


STEPS = {
    "preflight": preflight,
    "setup": setup,
    "password_reset": password_reset,
    "probe": probe,
    "running": running,
    **n8n_content.STEPS,
    **n8n_maintain.STEPS,
}
