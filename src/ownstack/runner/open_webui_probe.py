"""What `verify` does to Open WebUI. Every probe takes away again what it made."""

from __future__ import annotations

import base64
import secrets
import socket
import time
import urllib.parse
from typing import Any

from .core import Emit, Result, Spec, StepError, progress
from .http import request
from .open_webui_site import Site, kit
from .qdrant import PATIENCE_S
from .secrets import read_secret

# each must refuse a caller without credentials
CLOSED = (
    ("GET", "/api/models"),
    ("GET", "/api/v1/auths/"),
    ("GET", "/api/v1/auths/admin/config"),
    ("GET", "/api/v1/auths/api_key"),
    ("GET", "/api/v1/chats/"),
    ("GET", "/api/v1/configs/export"),
    ("GET", "/api/v1/files/"),
    ("GET", "/api/v1/functions/"),
    ("GET", "/api/v1/knowledge/"),
    ("GET", "/api/v1/retrieval/config"),
    ("GET", "/api/v1/tools/"),
    ("GET", "/api/v1/users/"),
    ("GET", "/api/v1/utils/db/download"),
    ("GET", "/ollama/api/tags"),
    ("GET", "/openai/config"),
    ("POST", "/api/chat/completions"),
    ("POST", "/api/v1/configs/import"),
    ("POST", "/api/v1/files/"),
    ("POST", "/ollama/api/chat"),
    ("DELETE", "/api/v1/chats/"),
)
FOREIGN = "rebound.example"
# what a browser says that comes through an SSH tunnel from another local port
TUNNEL = "127.0.0.1:59999"


def refuses(spec: Spec, emit: Emit) -> Result:
    """Ask as a stranger. spec: url. data: open (addresses that answered), asked, signup, onboarding, and the
    status of: foreign_host, foreign_origin (websocket), tunnel_origin (websocket, must be 101)."""
    site = Site(spec["url"])
    answers = {
        f"{method} {path}": site.call(method, path, {} if method == "POST" else None)[0] for method, path in CLOSED
    }
    if 0 in answers.values():
        raise StepError(f"Open WebUI does not answer at {spec['url']}", hint="`ownstack logs open_webui` shows why")
    config = site.need("GET", "/api/config")
    data = {
        "open": sorted(name for name, status in answers.items() if status not in (401, 403)),
        "asked": len(answers),
        "signup": _signup(site, config),
        "onboarding": bool(config.get("onboarding")),
        "foreign_host": request("GET", spec["url"] + "/api/config", headers={"Host": FOREIGN})[0],
        "foreign_origin": handshake(spec["url"], urllib.parse.urlsplit(spec["url"]).netloc, f"http://{FOREIGN}"),
        "tunnel_origin": handshake(spec["url"], TUNNEL, f"http://{TUNNEL}"),
    }
    return {"changed": False, "data": data}


def _signup(site: Site, config: dict[str, Any]) -> bool:
    """Whether a stranger can make an account. Asked only where the page says no: a yes would leave one behind."""
    if config.get("features", {}).get("enable_signup"):
        return True
    stranger = {"name": "x", "email": "stranger@localhost", "password": "Aa1" + secrets.token_hex(8)}
    status, _ = site.call("POST", "/api/v1/auths/signup", stranger)
    return status not in (401, 403)


def handshake(url: str, host: str, origin: str) -> int:
    """The status of opening Open WebUI's websocket as a browser would: 101 when it is accepted, 0 without an answer."""
    place = urllib.parse.urlsplit(url)
    lines = (
        "GET /ws/socket.io/?EIO=4&transport=websocket HTTP/1.1",
        f"Host: {host}",
        f"Origin: {origin}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {base64.b64encode(secrets.token_bytes(16)).decode()}",
    )
    try:
        with socket.create_connection((place.hostname, place.port or 80), timeout=10) as stream:
            stream.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
            words = stream.recv(64).split(b" ", 2)
    except OSError:
        return 0
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0


def version(spec: Spec, emit: Emit) -> Result:
    """The version that serves. spec: url."""
    return {"changed": False, "data": {"version": Site(spec["url"]).need("GET", "/api/version").get("version", "")}}


def models(spec: Spec, emit: Emit) -> Result:
    """Models offered to people, and the parameters that could cut a chat short.

    spec: url, secrets_dir. data: models, num_ctx {model or "*": tokens}.
    """
    site = kit(spec)
    found = site.need("GET", "/api/models?refresh=true")["data"]
    limits: dict[str, int] = {}
    for entry in found:
        params = ((entry.get("info") or {}).get("params")) or {}
        if params.get("num_ctx"):
            limits[entry["id"]] = int(params["num_ctx"])
    general = site.need("GET", "/api/v1/configs/export").get("models.default_params") or {}
    if general.get("num_ctx"):
        limits["*"] = int(general["num_ctx"])
    return {"changed": False, "data": {"models": sorted(entry["id"] for entry in found), "num_ctx": limits}}


def chat(spec: Spec, emit: Emit) -> Result:
    """One real answer of a model through Open WebUI; nothing of it is stored.

    spec: url, secrets_dir, model, timeout (s). data: model, characters, prompt_tokens, answer_tokens, seconds.
    """
    began = time.monotonic()
    answer = _ask(kit(spec), spec, "Say hello in one short sentence.")
    usage = answer.get("usage") or {}
    data = {
        "model": answer.get("model", ""),
        "characters": len(_text(answer)),
        "prompt_tokens": int(usage.get("prompt_tokens") or usage.get("prompt_eval_count") or 0),
        "answer_tokens": int(usage.get("completion_tokens") or usage.get("eval_count") or 0),
        "seconds": round(time.monotonic() - began, 1),
    }
    return {"changed": False, "data": data}


def _ask(site: Site, spec: Spec, question: str, **more: Any) -> dict[str, Any]:
    body = {
        "model": spec["model"],
        "messages": [{"role": "user", "content": question}],
        "stream": False,
        "max_tokens": 64,
        **more,
    }
    answer = site.need("POST", "/api/chat/completions", body, timeout=spec.get("timeout", 300))
    if not isinstance(answer, dict):
        raise StepError(f"Open WebUI's answer to a chat is no JSON object: {str(answer)[:100]!r}")
    return answer


def _text(answer: dict[str, Any]) -> str:
    """The answer's text, with what a thinking model wrote before it."""
    message = ((answer.get("choices") or [{}])[0]).get("message") or {}
    return str(message.get("content") or "") + str(message.get("reasoning_content") or "")


def points(spec: Spec) -> int:
    """Points in all collections of Open WebUI in Qdrant, counted exactly. spec: qdrant {url, secret, prefix}."""
    about = spec["qdrant"]
    headers = {"api-key": read_secret(spec["secrets_dir"], about["secret"])}
    status, answer = request("GET", about["url"] + "/collections", headers=headers, timeout=PATIENCE_S)
    if status != 200:
        raise StepError(f"Qdrant answered {status} to the list of its collections", hint="`ownstack logs qdrant`")
    total = 0
    for collection in answer["result"]["collections"]:
        if not collection["name"].startswith(about["prefix"]):
            continue
        name = urllib.parse.quote(collection["name"], safe="")
        _, counted = request("POST", f"{about['url']}/collections/{name}/points/count", {"exact": True}, headers)
        total += int(counted["result"]["count"])
    return total


def document(spec: Spec, emit: Emit) -> Result:
    """Upload a document with a fresh random token, find it again through a chat, take everything away.

    spec: url, secrets_dir, model, qdrant {url, secret, prefix}, timeout (s), and optionally file (a name) and
    content (base64) to upload instead, with `token` the text that it holds.
    data: token_found, sources, before, during, after (points in Qdrant), left (what could not be removed), seconds.
    """
    began = time.monotonic()
    site = kit(spec)
    token = spec.get("token") or f"token-{secrets.token_hex(8)}"
    name, content = _file(spec, token)
    before = points(spec)
    data: dict[str, Any] = {"before": before, "during": before}
    held: dict[str, str] = {}
    try:
        progress(emit, "uploading a document")
        held["knowledge"] = _knowledge(site)
        held["file"] = _upload(site, name, content)
        _processed(site, held["file"], spec.get("timeout", 300))
        site.need("POST", f"/api/v1/knowledge/{held['knowledge']}/file/add", {"file_id": held["file"]}, timeout=120)
        data["during"] = points(spec)
        progress(emit, "asking about the document")
        collection = [{"type": "collection", "id": held["knowledge"]}]
        # what the model makes of it does not matter, only which documents it was given
        answer = _ask(site, spec, f"What does the document say about {token}?", files=collection, max_tokens=8)
        sources = answer.get("sources") or []
        data["sources"] = len(sources)
        data["token_found"] = any(token in text for source in sources for text in source.get("document") or [])
    finally:
        data["left"] = _clean(site, held)
    data["after"] = _settled(spec, before)
    data["seconds"] = round(time.monotonic() - began, 1)
    return {"changed": False, "data": data}


def _file(spec: Spec, token: str) -> tuple[str, bytes]:
    if "content" in spec:
        return spec["file"], base64.b64decode(spec["content"])
    text = f"ownstack verify document.\nThe word of the day is {token}.\nIt was chosen at random and means nothing.\n"
    return f"ownstack-verify-{token}.txt", text.encode()


def _knowledge(site: Site) -> str:
    body = {
        "name": f"ownstack verify {secrets.token_hex(4)}",
        "description": "made by `ownstack verify`, removed by it",
    }
    return str(site.need("POST", "/api/v1/knowledge/create", body)["id"])


def _upload(site: Site, name: str, content: bytes) -> str:
    boundary = secrets.token_hex(16)
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
    kind = "Content-Type: application/octet-stream\r\n\r\n"
    body = (head + kind).encode() + content + f"\r\n--{boundary}--\r\n".encode()
    form = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    path = "/api/v1/files/?process=true&process_in_background=false"
    return str(site.need("POST", path, body, timeout=300, **form)["id"])


def _processed(site: Site, file: str, seconds: float) -> None:
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        state = site.need("GET", f"/api/v1/files/{file}/process/status").get("status")
        if state == "completed":
            return
        if state == "failed":
            about = site.need("GET", f"/api/v1/files/{file}")
            why = (about.get("data") or {}).get("error") or "no reason given"
            raise StepError(f"Open WebUI could not read or embed the document: {why}", code="document-failed")
        time.sleep(0.3)
    raise StepError(f"the document was not embedded within {int(seconds)} s", code="document-failed")


def _clean(site: Site, held: dict[str, str]) -> list[str]:
    left = []
    removals = (("file", "/api/v1/files/{}"), ("knowledge", "/api/v1/knowledge/{}/delete"))
    for kind, path in removals:
        if kind in held and site.call("DELETE", path.format(held[kind]))[0] != 200:
            left.append(f"{kind} {held[kind]}")
    return left


def _settled(spec: Spec, wanted: int, seconds: float = 10) -> int:
    """The number of points, once it is `wanted` or time is up."""
    began = time.monotonic()
    while True:
        now = points(spec)
        if now == wanted or time.monotonic() - began > seconds:
            return now
        time.sleep(0.2)


STEPS = {
    "chat": chat,
    "document": document,
    "models": models,
    "refuses": refuses,
    "version": version,
}
