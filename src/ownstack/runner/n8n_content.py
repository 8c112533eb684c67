"""What the kit puts into n8n once: credentials and a demo workflow. What the owner changes or deletes stays so."""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets as random
import time
from collections.abc import Iterator
from typing import Any

from .core import Emit, Result, Spec, StepError, progress, read_json, write_json
from .http import request
from .n8n_api import LABEL, api, must
from .secrets import read_secret

DEMO = "Ask the model (ownstack demo)"
PATH = "ask"
IDS = {"ollama": "ownstackOllama", "qdrant": "ownstackQdrant"}
NAMES = {"ollama": "Ollama on this box", "qdrant": "Qdrant on this box"}
LONGEST = 1024  # tokens of an answer
QUESTION = "What is the capital of France? Answer in one word."  # small models answer it shortly
TYPES = {"ollama": "ollamaApi", "qdrant": "qdrantApi"}


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def workflow(name: str, path: str, model: str, credential: str, origin: str) -> dict[str, Any]:
    """A workflow that answers POST /webhook/<path> {"question": ...} with {"answer": ..., "model": ...}.

    `origin`: whose pages may read the answer in a browser; n8n's default is any page that the owner visits.
    The model answers soberly and not without end: a small one can ramble until the caller gives up.
    """

    def node(title: str, kind: str, version: float, at: int, **parameters: Any) -> dict[str, Any]:
        below = 220 if kind.endswith("lmChatOllama") else 0
        return {
            "id": digest([name, title])[:16], "name": title, "type": kind, "typeVersion": version,
            "position": [at, below], "parameters": parameters,
        }  # fmt: skip

    values = [
        {"id": "answer", "name": "answer", "type": "string", "value": "={{ $json.text }}"},
        {"id": "model", "name": "model", "type": "string", "value": model},
    ]
    hook = node(
        "Question", "n8n-nodes-base.webhook", 2, 0, httpMethod="POST", path=path, responseMode="lastNode",
        options={"allowedOrigins": origin},
    )  # fmt: skip
    hook["webhookId"] = digest([name, path])[:32]
    chain = node(
        "Ask", "@n8n/n8n-nodes-langchain.chainLlm", 1.7, 220, promptType="define",
        text='={{ $json.body.question || "Say hello in one sentence." }}',
    )  # fmt: skip
    limit = {"numPredict": LONGEST, "temperature": 0}
    chat = node("Model", "@n8n/n8n-nodes-langchain.lmChatOllama", 1, 220, model=model, options=limit)
    chat["credentials"] = {"ollamaApi": {"id": credential, "name": NAMES["ollama"]}}
    shape = node("Answer", "n8n-nodes-base.set", 3.4, 520, assignments={"assignments": values}, options={})
    return {
        "name": name,
        "nodes": [hook, chain, chat, shape],
        "connections": {
            "Question": {"main": [[{"node": "Ask", "type": "main", "index": 0}]]},
            "Model": {"ai_languageModel": [[{"node": "Ask", "type": "ai_languageModel", "index": 0}]]},
            "Ask": {"main": [[{"node": "Answer", "type": "main", "index": 0}]]},
        },
        "settings": {"executionOrder": "v1"},
    }


def credentials(spec: Spec) -> dict[str, dict[str, Any]]:
    """The credentials' contents, with their secrets."""
    wanted = {"ollama": {"baseUrl": spec["engine_url"], "apiKey": ""}}
    if spec.get("qdrant_url"):
        key = read_secret(spec["secrets_dir"], "qdrant_api_key")
        wanted["qdrant"] = {"qdrantUrl": spec["qdrant_url"], "apiKey": key}
    return wanted


class Content:
    """One run over what stands in n8n, with the record of what the kit wrote there."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.url, self.secrets = spec["url"].rstrip("/"), spec["secrets_dir"]
        self.state: dict[str, Any] = read_json(spec["state"]) or {}
        self.dry = bool(spec.get("dry"))
        self.changed: list[str] = []

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        return must(self.url, self.secrets, method, path, body)

    def save(self) -> None:
        write_json(self.spec["state"], self.state, 0o600)

    def listed(self, what: str) -> Iterator[dict[str, Any]]:
        cursor = ""
        while True:
            page = self.ask("GET", f"/{what}?limit=100" + (f"&cursor={cursor}" if cursor else ""))
            yield from page["data"]
            cursor = page.get("nextCursor") or ""
            if not cursor:
                return

    def credential(self, kind: str, data: dict[str, Any], there: dict[str, dict[str, Any]]) -> str:
        """Make or update one credential; say how it stands: kept, made, updated, removed, yours."""
        held = self.state.get(f"credential-{kind}")
        wanted = digest(data)
        body = {"name": NAMES[kind], "type": TYPES[kind], "data": data}
        if held is None and IDS[kind] in there:  # the record is lost: what stands there may be edited
            return self._record(f"credential-{kind}", {"id": IDS[kind], "wrote": "", "seen": ""}, "yours")
        if held is None:
            self.changed.append(kind)
            if not self.dry:
                made = self._made(kind, body)
                self._record(
                    f"credential-{kind}", {"id": made["id"], "wrote": wanted, "seen": made["updatedAt"]}, "made"
                )
            return "made"
        if held["id"] not in there:
            return "removed"
        if held["wrote"] == wanted:
            return "kept"
        if there[held["id"]]["updatedAt"] != held["seen"]:
            return "yours"
        self.changed.append(kind)
        if not self.dry:
            made = self.ask("PATCH", f"/credentials/{held['id']}", {"data": data})
            self._record(f"credential-{kind}", {**held, "wrote": wanted, "seen": made["updatedAt"]}, "updated")
        return "updated"

    def _made(self, kind: str, body: dict[str, Any]) -> Any:
        try:
            return self.ask("POST", "/credentials", {"id": IDS[kind], **body})
        except StepError as error:
            if "id is read-only" not in error.message:
                raise
        return self.ask("POST", "/credentials", body)  # n8n before 2.41 gives an id itself

    def _record(self, key: str, value: dict[str, Any], word: str) -> str:
        if not self.dry:
            self.state[key] = value
            self.save()
        return word

    def demo(self, wanted: dict[str, Any]) -> str:
        """Make or update the demo workflow; the same words as for a credential."""
        held = self.state.get("demo")
        if held is None:
            same = [row for row in self.listed("workflows") if row["name"] == DEMO]
            if same:
                return self._record("demo", {"id": same[0]["id"], "wrote": "", "version": ""}, "yours")
            self.changed.append("demo")
            if not self.dry:
                made = self.ask("POST", "/workflows", wanted)
                held = {"id": made["id"], "wrote": digest(wanted), "version": made.get("versionId"), "published": False}
                self._record("demo", held, "made")
                self._publish(held)
            return "made"
        status, now = api(self.url, self.secrets, "GET", f"/workflows/{held['id']}")
        if status == 404 or (status == 200 and now.get("isArchived")):
            return "removed"
        if status != 200:
            raise StepError(f"n8n does not show its workflow ({status})", hint="`ownstack logs n8n` shows why")
        untouched = now.get("versionId") == held["version"]
        if not untouched:
            return "yours"
        if held["wrote"] == digest(wanted) and held["published"]:
            return "kept"
        self.changed.append("demo")
        if not self.dry:
            if held["wrote"] != digest(wanted):
                made = self.ask("PUT", f"/workflows/{held['id']}", wanted)
                held.update(wrote=digest(wanted), version=made.get("versionId"))
                self._record("demo", held, "updated")
            if now.get("active") or not held["published"]:
                self._publish(held)
        return "updated"

    def _publish(self, held: dict[str, Any]) -> None:
        """Publish and remember the version under which it then stands."""
        self.ask("POST", f"/workflows/{held['id']}/activate")
        now = self.ask("GET", f"/workflows/{held['id']}")
        self._record("demo", {**held, "published": True, "version": now.get("versionId")}, "published")


def content(spec: Spec, emit: Emit) -> Result:
    """Credentials for Ollama and Qdrant and the demo workflow: made once, kept up with the plan while untouched.

    spec: url, secrets_dir, state (the record's path), engine_url, qdrant_url (empty: none), model.
    """
    run = Content(spec)
    if run.dry and api(run.url, run.secrets, "GET", "/workflows?limit=1")[0] != 200:
        return {"changed": True, "data": {}}
    progress(emit, "credentials and the demo workflow of n8n")
    there = {row["id"]: row for row in run.listed("credentials")}
    words = {kind: run.credential(kind, data, there) for kind, data in credentials(spec).items()}
    if spec["model"]:
        words["demo"] = run.demo(workflow(DEMO, PATH, spec["model"], IDS["ollama"], run.url))
    ids = {key: value["id"] for key, value in run.state.items() if isinstance(value, dict)}
    return {"changed": bool(run.changed), "data": {"stands": words, "ids": ids, "path": PATH}}


# ------------------------------------------------------------------------------------------------------------ verify


def call(url: str, path: str, seconds: float, mark: str = "") -> tuple[int, Any, float]:
    """Ask a webhook; the run that n8n keeps holds `mark`. It publishes a moment after it says so: until then 404."""
    body = {"question": QUESTION, "by": mark}
    began = time.monotonic()
    while True:
        asked = time.monotonic()
        status, answer = request("POST", f"{url}/webhook/{path}", body, timeout=seconds)
        if status != 404 or time.monotonic() - began > 15:
            return status, answer, time.monotonic() - asked
        time.sleep(0.3)


@contextlib.contextmanager
def borrowed(run: Content) -> Iterator[str]:
    """The id of the kit's stored credential for Ollama; where the owner removed it, of one that lives for this only."""
    there = {row["id"] for row in run.listed("credentials")}
    if IDS["ollama"] in there:
        yield IDS["ollama"]
        return
    made = run.ask(
        "POST",
        "/credentials",
        {"name": f"{LABEL} verify", "type": TYPES["ollama"], "data": credentials(run.spec)["ollama"]},
    )
    try:
        yield str(made["id"])
    finally:
        api(run.url, run.secrets, "DELETE", f"/credentials/{made['id']}")


def ask(spec: Spec, emit: Emit) -> Result:
    """One question through a workflow that lives only for it: webhook, chain, stored credential, model.

    The demo workflow is the owner's to change or delete, so a check must not rest on it. spec: as for `content`, and
    timeout. Raises StepError when n8n refuses; a wrong answer is data.
    """
    run = Content({**spec, "dry": True})
    path = f"ownstack-verify-{random.token_hex(8)}"
    _sweep(run)
    seconds = float(spec.get("timeout", 300))
    with borrowed(run) as credential:
        wanted = workflow(f"{LABEL} verify {path[-16:]}", path, spec["model"], credential, run.url)
        wanted["settings"].update(
            saveDataSuccessExecution="none", saveDataErrorExecution="none", saveManualExecutions=False
        )
        made = run.ask("POST", "/workflows", wanted)
        try:
            run.ask("POST", f"/workflows/{made['id']}/activate")
            status, answer, took = call(run.url, path, seconds)
        finally:
            discard(run, made["id"])
    stored = credential == IDS["ollama"]
    return {
        "changed": False,
        "data": {
            "status": status,
            "answer": answer,
            "model": spec["model"],
            "seconds": round(took, 2),
            "stored_credential": stored,
        },
    }


def discard(run: Content, identity: str) -> None:
    """Unpublish and delete a workflow. n8n unpublishes a moment after it says so: until then it refuses (409)."""
    api(run.url, run.secrets, "POST", f"/workflows/{identity}/deactivate")
    began = time.monotonic()
    while True:
        status, answer = api(run.url, run.secrets, "DELETE", f"/workflows/{identity}")
        if status in (200, 204, 404):
            return
        if status != 409 or time.monotonic() - began > 20:
            raise StepError(
                f"the workflow that verify made was not deleted ({status}): {answer}",
                hint=f"delete the workflow named {LABEL} verify in n8n, or run `ownstack verify` again",
                code="n8n-left-over",
            )
        time.sleep(0.3)


def _sweep(run: Content) -> None:
    """Take away what an interrupted check left behind."""
    for row in list(run.listed("workflows")):
        if row["name"].startswith(f"{LABEL} verify"):
            discard(run, row["id"])
    for row in list(run.listed("credentials")):
        if row["name"].startswith(f"{LABEL} verify"):
            api(run.url, run.secrets, "DELETE", f"/credentials/{row['id']}")


def forget(run: Content, identity: str, mark: str) -> None:
    """Delete the run of a workflow that a check asked for; those of the owner have no such mark.

    n8n stores a run just after its answer. A key that an earlier version made may not delete runs: then it stays.
    """
    for _ in range(10):
        status, found = api(run.url, run.secrets, "GET", f"/executions?workflowId={identity}&includeData=true&limit=5")
        if status != 200:
            return
        for row in found["data"]:
            if mark in json.dumps(row.get("data", {})):
                api(run.url, run.secrets, "DELETE", f"/executions/{row['id']}")
                return
        time.sleep(0.2)


def demo(spec: Spec, emit: Emit) -> Result:
    """How the demo workflow stands, and its answer where it is published. spec: as for `content`, and timeout."""
    run = Content({**spec, "dry": True})
    held: dict[str, Any] | None = run.state.get("demo")
    if held is None:
        return {"changed": False, "data": {"stands": "never made"}}
    status, now = api(run.url, run.secrets, "GET", f"/workflows/{held['id']}")
    if status == 404 or (status == 200 and now.get("isArchived")):
        return {"changed": False, "data": {"stands": "removed"}}
    if status != 200:
        raise StepError(f"n8n does not show its workflow ({status})", hint="`ownstack logs n8n` shows why")
    stands = "as made" if now.get("versionId") == held["version"] else "edited"
    if not now.get("active"):
        return {"changed": False, "data": {"stands": stands, "active": False}}
    mark = f"{LABEL} verify {random.token_hex(8)}"
    status, answer, took = call(run.url, PATH, float(spec.get("timeout", 300)), mark)
    if status == 200:  # of a failed one n8n shows the reason
        forget(run, held["id"], mark)
    return {
        "changed": False,
        "data": {"stands": stands, "active": True, "status": status, "answer": answer, "seconds": round(took, 2)},
    }


STEPS = {"content": content, "ask": ask, "demo": demo}
