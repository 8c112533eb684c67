"""An n8n from elsewhere: what its key opens, and a key for the kit without its owner's password."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import pwd
import re
import sqlite3
import subprocess
from typing import Any

from . import n8n
from .backup_check import N8N_KEY
from .core import Emit, Result, Spec, StepError, progress
from .http import wait_ready
from .imports_source import address
from .n8n_api import key_works
from .secrets import has_secret, make, read_secret

# n8n's own code decrypts: it knows all the forms that credentials have had
OPEN = """
const [modules] = process.argv.slice(1);
const path = require('path');
const { Cipher } = require(path.join(modules, 'n8n-core', 'dist', 'encryption', 'cipher.js'));
const { key, keys, rows } = JSON.parse(require('fs').readFileSync(0, 'utf8'));
const settings = { encryptionKey: key };
const provider = {
  getActiveKey: async () => { throw new Error('reads only'); },
  getKeyById: async (id) => keys.find((one) => one.id === id) || null,
  getLegacyKey: async () => keys.find((one) => one.algorithm === 'aes-256-cbc')
    || { id: 'instance', value: cipher.encryptDEKWithInstanceKey(key), algorithm: 'aes-256-cbc', format: 'no-prefix' },
};
const cipher = new Cipher(settings, provider);
(async () => {
  const found = { opened: [], closed: [] };
  for (const [id, data] of rows) {
    let good = false;
    try { JSON.parse(await cipher.decryptV2(data)); good = true; } catch (error) { good = false; }
    found[good ? 'opened' : 'closed'].push(id);
  }
  console.log(JSON.stringify(found));
})();
"""
# one row is changed for a moment and put back as it was, with n8n's own hash function
BORROW = """
const [modules, database] = process.argv.slice(1);
const path = require('path');
const { createRequire } = require('module');
const { DatabaseSync } = require('node:sqlite');
const bcrypt = createRequire(path.join(modules, 'n8n', 'package.json'))('bcryptjs');
const asked = JSON.parse(require('fs').readFileSync(0, 'utf8'));
const db = new DatabaseSync(database);
db.exec('PRAGMA busy_timeout = 10000');
const set = db.prepare('UPDATE user SET password = ?, mfaEnabled = ? WHERE id = ?');
if (asked.row) {
  set.run(asked.row.password, asked.row.mfaEnabled, asked.row.id);
  console.log('{}');
} else {
  const owners = db.prepare(
    "SELECT id, email, password, mfaEnabled FROM user WHERE roleSlug = 'global:owner' AND email IS NOT NULL").all();
  if (owners.length !== 1) { console.log(JSON.stringify({ owners: owners.length })); process.exit(3); }
  set.run(bcrypt.hashSync(asked.password, 10), 0, owners[0].id);
  console.log(JSON.stringify(owners[0]));
}
db.close();
"""


def box_key(secrets_dir: str) -> str:
    return read_secret(secrets_dir, N8N_KEY)


def known_migrations(program: str) -> set[str]:
    """Names of the steps of its schema that the installed n8n knows."""
    found: set[str] = set()
    for path in glob.glob(f"{program}/node_modules/@n8n/db/dist/migrations/*/*.js"):
        with open(path, encoding="utf-8") as stream:
            found.update(re.findall(r"\b([A-Za-z]\w*\d{13})\b", stream.read()))
    if not found:
        raise StepError("the installed n8n does not say what it knows", hint="`ownstack up`, then run again")
    return found


def _rows(database: str) -> tuple[list[list[str]], list[dict[str, Any]]]:
    """Credentials as they are stored, and keys that are stored with them."""
    with contextlib.closing(sqlite3.connect(address(database), uri=True, timeout=60)) as held:
        rows = [[str(one), str(data)] for one, data in held.execute("SELECT id, data FROM credentials_entity")]
        tables = {row[0] for row in held.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        keys = []
        if "deployment_key" in tables:
            query = "SELECT id, value, algorithm FROM deployment_key WHERE type = 'data_encryption'"
            keys = [{"id": i, "value": v, "algorithm": a, "format": "prefixed"} for i, v, a in held.execute(query)]
    return rows, keys


def opened(about: dict[str, Any], database: str, key: str) -> dict[str, list[str]]:
    """Ids of the credentials that the key opens, and of those that it does not. about: node, program."""
    rows, keys = _rows(database)
    if not rows:
        return {"opened": [], "closed": []}
    command = [_node(about), "--no-warnings", "-e", OPEN, "--", os.path.join(about["program"], "node_modules")]
    found: dict[str, list[str]] = _run(command, {"key": key, "keys": keys, "rows": rows})
    return found


def _node(about: dict[str, Any]) -> str:
    return os.path.join(about["node"], "bin", "node")


def _run(command: list[str], asked: Any, **more: Any) -> Any:
    """Secrets travel on standard input and output."""
    env = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        command, input=json.dumps(asked), capture_output=True, text=True, check=False, cwd="/", env=env, umask=0o077,
        **more,
    )  # fmt: skip
    try:
        answer = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        answer = None
    if done.returncode not in (0, 3) or answer is None:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise StepError(f"n8n's own code failed: {last[:300]}", hint="`ownstack verify` looks at n8n", code="n8n-code")
    return answer


def owner_of(database: str) -> str:
    """The owner's sign-in name, in each of the schemas that n8n has had."""
    with contextlib.closing(sqlite3.connect(address(database), uri=True, timeout=60)) as held:
        columns = {row[1] for row in held.execute("PRAGMA table_info(user)")}
        if "roleSlug" in columns:
            query = "SELECT email FROM user WHERE roleSlug = 'global:owner'"
        elif "role" in columns:
            query = "SELECT email FROM user WHERE role = 'global:owner'"
        else:
            query = 'SELECT email FROM "user" ORDER BY "createdAt" LIMIT 1'
        try:
            row = held.execute(query).fetchone()
        except sqlite3.Error:
            row = None
    return str(row[0] or "") if row else ""


def api_key(spec: Spec, emit: Emit) -> Result:
    """Give the kit an API key in an n8n that came from elsewhere. spec: as for `n8n.password_reset`.

    Only n8n itself makes keys, for who signs in. So its owner gets a password of the moment, and right afterwards the
    own one back, with the second factor: neither is ever known here. Cut off in between, the import is taken back.
    """
    url, folder = spec["url"].rstrip("/"), spec["secrets_dir"]
    wait_ready(f"{url}/healthz/readiness", 60, "n8n")
    if n8n.unclaimed(url) or (has_secret(folder, n8n.API_KEY) and key_works(url, read_secret(folder, n8n.API_KEY))):
        return {"changed": False}
    progress(emit, "making a key for ownstack in n8n")
    command = [_node(spec), "--no-warnings", "-e", BORROW, "--"]
    command += [os.path.join(spec["n8n"], "node_modules"), os.path.join(spec["data"], ".n8n", "database.sqlite")]
    as_user: dict[str, Any] = {}
    if spec.get("user") and os.getuid() == 0:
        as_user = {"user": spec["user"], "group": pwd.getpwnam(spec["user"]).pw_gid, "extra_groups": []}
    password = make("password", 24)
    row = _run(command, {"password": password}, **as_user)
    if "email" not in row:
        raise StepError(f"that n8n has {row.get('owners')} owners, not one", hint="sign in there and make one owner")
    try:
        n8n._make_key(n8n._signed_in(url, row["email"], password), folder)
    finally:
        _run(command, {"row": row}, **as_user)
    return {"changed": True}
