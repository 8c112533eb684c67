"""Which models are other ones in the registry by now.

Nobody but the account that pulls may reach the registry, and it does so in a short-lived unit of its own, of which the
system's journal tells. Asked for are manifests alone: the names of the models leave the machine, nothing else does.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import urllib.error
import urllib.request
from typing import Any

from . import ollama_api as api
from .core import Emit, Result, Spec, StepError, ids, progress, read_json
from .detached import systemd
from .ollama_engine import HARDENING

ACCEPT = "application/vnd.docker.distribution.manifest.v2+json"
LIMIT = 1 << 20  # bytes of a manifest
SECONDS = 20.0


def outdated(spec: Spec, emit: Emit) -> Result:
    """Compare the digests of models with those of the registry.

    spec: url, record, registry, insecure, environment, planned: {tag: whether it
      was made here}, names (of the models to ask for; default all),
      and for the asking unit: runner, manager, unit, account.
    data: models: [{name, planned, here, registry, address, status, bytes, why}]; status: same, changed, made-here (not
      asked for), unknown (the registry has none of that name), refused, unreachable. `bytes`: of an update.
    """
    planned = {api.parse(tag).short: bool(made) for tag, made in spec["planned"].items()}
    wanted = [api.parse(name).short for name in spec.get("names", [])]
    held = api.listed(spec["url"])
    missing = [name for name in wanted if name not in held]
    if missing:
        raise StepError(
            f"{missing[0]} is not among the box's models", hint="`ownstack models` lists them", code="model-unknown"
        )
    notes = {api.parse(tag).short: note for tag, note in read_json(spec["record"], {}).items()}
    rows = []
    for name in wanted or sorted(held):
        row = {"name": name, "planned": name in planned, "here": held[name]["digest"], "registry": "", "address": "",
               "status": "", "bytes": 0, "why": ""}  # fmt: skip
        now = api.state(spec["url"], name, held) or {}
        noted = notes.get(name)
        if noted and noted["blob"] == now.get("blob"):  # a context of its own makes another manifest of it
            row["here"] = noted["digest"]
        elif planned.get(name) or (name not in planned and made_here(spec["url"], name)):
            row["status"] = "made-here"
        if not row["status"]:
            source = api.mirrored(api.parse(name), spec.get("registry", ""))
            row["address"] = address(source, bool(spec.get("insecure")))
        rows.append(row)
    answers = _ask(spec, {row["name"]: row["address"] for row in rows if row["address"]}, emit)
    for row in rows:
        if row["address"]:
            row.update(_judged(row, answers[row["name"]]))
    return {"changed": False, "data": {"models": rows}}


def address(source: api.Name, insecure: bool) -> str:
    """Where a registry has the manifest of a model."""
    scheme = "http" if insecure else "https"
    return f"{scheme}://{source.host}/v2/{source.space}/{source.model}/manifests/{source.tag}"


def made_here(url: str, name: str) -> bool:
    """Whether a model was made on this machine, of a file or of another one: the engine then tells of what."""
    if api.parse(name).space != "library":
        return False
    details = api.ask(url, "/api/show", {"model": name}, f"looking at {name}").get("details") or {}
    return bool(details.get("parent_model"))


def _judged(row: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    if "why" in answer:
        return {"status": answer["status"], "why": answer["why"]}
    if answer["digest"] == row["here"]:
        return {"status": "same", "registry": answer["digest"]}
    # all of it: a pull has a store of its own, and sees nothing of what is there
    return {"status": "changed", "registry": answer["digest"], "bytes": answer["bytes"]}


def _ask(spec: Spec, addresses: dict[str, str], emit: Emit) -> dict[str, dict[str, Any]]:
    """`manifests` by the account that may: in a unit of its own under systemd, else in a process of that account."""
    if not addresses:
        return {}
    for host in sorted({one.split("/")[2] for one in addresses.values()}):
        progress(emit, f"asking {host}")
    inner = json.dumps({"addresses": addresses, "environment": spec.get("environment", {})}, sort_keys=True)
    command = [spec["runner"], "ollama.manifests", "--json", inner]
    account = spec.get("account", "")
    more: dict[str, Any] = {}
    if spec["manager"] == "systemd" and account:
        rules = [*HARDENING, f"User={account}", f"Group={account}", "Type=exec", "ProtectHome=true"]
        command = [
            "systemd-run", *systemd(spec["manager"]), "--quiet", "--pipe", "--wait", "--collect",
            f"--unit={spec['unit']}", "--description=asking the model registry for digests",
            *[f"--property={rule}" for rule in rules], "--", *[word.replace("$", "$$") for word in command],
        ]  # fmt: skip
    elif account and os.getuid() == 0:
        uid, gid = ids(account, account)
        more = {"user": uid, "group": gid, "extra_groups": []}
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd="/", **more)
    for line in reversed(done.stdout.splitlines()):
        event = json.loads(line)
        if event.get("event") == "result":
            found: dict[str, dict[str, Any]] = event["data"]["manifests"]
            return found
    raise StepError(
        f"the account that pulls could not ask the registry: {(done.stderr or done.stdout).strip()[-300:]}",
        hint="run `ownstack up` again: it makes the account",
        code="registry-ask",
    )


def manifests(spec: Spec, emit: Emit) -> Result:
    """Ask for manifests. spec: addresses (name -> address), environment (HTTPS_PROXY).

    data: manifests: name -> {digest, bytes (of all layers)}, or {status, why}.
    """
    proxy = spec.get("environment", {}).get("HTTPS_PROXY", "")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({"https": proxy} if proxy else {}))
    return {
        "changed": False,
        "data": {"manifests": {name: _manifest(opener, url) for name, url in spec["addresses"].items()}},
    }


def _manifest(opener: urllib.request.OpenerDirector, url: str) -> dict[str, Any]:
    asked = urllib.request.Request(url, headers={"Accept": ACCEPT, "User-Agent": "ownstack"})  # noqa: S310 - made above
    try:
        with opener.open(asked, timeout=SECONDS) as answer:
            content = answer.read(LIMIT)
        told = json.loads(content)
        size = sum(int(layer["size"]) for layer in [*told["layers"], told["config"]])
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 404:
            return {"status": "unknown", "why": "the registry has none of that name"}
        status = "refused" if error.code in (401, 403) else "unreachable"
        return {"status": status, "why": f"{error.code} {error.reason}"}
    except OSError as error:
        return {"status": "unreachable", "why": str(getattr(error, "reason", error)) or type(error).__name__}
    except (ValueError, KeyError, TypeError) as error:
        return {"status": "unreachable", "why": f"what answers is no model registry ({type(error).__name__})"}
    return {"digest": hashlib.sha256(content).hexdigest(), "bytes": size}
