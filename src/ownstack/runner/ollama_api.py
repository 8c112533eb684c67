"""Talking to Ollama: names of models, their state, uploads, streams. Every failure becomes a StepError."""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any, NamedTuple

from .core import StepError
from .http import request

Model = dict[str, Any]
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"
_HOST = r"[A-Za-z0-9][A-Za-z0-9.-]*(?::\d+)?"
_NAME = re.compile(rf"(?:(?P<host>{_HOST})/)??(?:(?P<space>{_PART})/)?(?P<model>{_PART})(?::(?P<tag>{_PART}))?")
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Name(NamedTuple):
    """The four parts of a model's name, with the engine's own defaults filled in."""

    host: str
    space: str
    model: str
    tag: str

    @property
    def short(self) -> str:
        """As the engine lists it: without the parts that are defaults."""
        front = "" if self.host == DEFAULT_HOST else f"{self.host}/"
        space = "" if self.space == "library" and not front else f"{self.space}/"
        return f"{front}{space}{self.model}:{self.tag}"

    @property
    def path(self) -> str:
        """Where the manifest lies below `manifests/`."""
        return os.path.join(self.host, self.space, self.model, self.tag)


DEFAULT_HOST = "registry.ollama.ai"
MADE_OF = "made by ownstack of the file sha256:"
LOGS = "`ownstack logs ollama` shows why"


def parse(text: str) -> Name:
    """Read a model's name (`model`, `model:tag`, `space/model:tag`, `host:port/space/model:tag`)."""
    match = _NAME.fullmatch(text)
    if match is None:
        raise StepError(
            f"{text!r} is not a model's name", hint="a name looks like qwen3:14b or space/model:tag", code="model-name"
        )
    return Name(match["host"] or DEFAULT_HOST, match["space"] or "library", match["model"], match["tag"] or "latest")


def mirrored(name: Name, registry: str) -> Name:
    """The name under which a mirror registry (`host` or `host:port`) serves the model."""
    return name._replace(host=registry) if registry and name.host == DEFAULT_HOST else name


AWAY = "the model registry cannot be reached: check the network, try later, or name a mirror registry"
CUT = "the file is cut short: fetch it again"
# (part of the engine's words, code, hint), the first that matches counts
KNOWN = (
    ("no space left", "disk-full", "free disk space and run again: what was fetched is kept"),
    ("invalid model name", "model-name", "a name looks like qwen3:14b or space/model:tag"),
    ("file does not exist", "model-unknown", "the registry has no such model or tag: correct the name in [models]"),
    ("not found", "model-unknown", "the model is not there: `ownstack up` brings the planned ones"),
    ("dial tcp", "registry-unreachable", AWAY),
    ("no such host", "registry-unreachable", AWAY),
    ("timeout", "registry-unreachable", AWAY),
    ("exceeds file size", "gguf-broken", CUT),
    ("unexpected eof", "gguf-broken", CUT),
    ("invalid file magic", "gguf-broken", "the file is not a GGUF file"),
    ("digest mismatch", "fetch-hash", "the bytes changed on the way: run again; if it stays so, do not use the source"),
    ("more system memory", "model-too-big", "choose a smaller model or context: `ownstack fit` shows what fits"),
    ("newer version of ollama", "engine-too-old", "this model needs a newer engine: `ownstack upgrade ollama`"),
    ("gguf", "gguf-broken", "the file is damaged or newer than this engine"),
)


def failure(what: str, status: int, answer: Any) -> StepError:
    """A StepError out of what the engine answered."""
    if status == 0:
        return StepError(f"{what}: Ollama does not answer ({answer})", hint=LOGS, code="engine-down")
    words = str(answer.get("error", answer) if isinstance(answer, dict) else answer).strip()[:500]
    for part, code, hint in KNOWN:
        if part in words.lower():
            return StepError(f"{what}: {words}", hint=hint, code=code)
    return StepError(f"{what}: {words} (status {status})", hint=LOGS, code="engine-refused")


def ask(url: str, path: str, body: Any = None, what: str = "", timeout: float = 60.0) -> dict[str, Any]:
    """One call; the decoded answer. Raises StepError when the engine refuses or is not there."""
    status, answer = request("GET" if body is None else "POST", url.rstrip("/") + path, body, timeout=timeout)
    if status != 200 or not isinstance(answer, dict) or "error" in answer:
        raise failure(what or path, status, answer)
    return answer


def stream(url: str, path: str, body: dict[str, Any], what: str, timeout: float = 900.0) -> Iterator[dict[str, Any]]:
    """The lines of a streamed answer. Raises StepError at an error line, a refusal or silence."""
    asked = urllib.request.Request(  # noqa: S310 - the address is the engine's own
        url.rstrip("/") + path, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    try:
        with _opener.open(asked, timeout=timeout) as answer:
            for line in answer:
                event = json.loads(line)
                if "error" in event:
                    raise failure(what, 500, event)
                yield event
    except urllib.error.HTTPError as error:
        with error:
            text = error.read().decode("utf-8", "replace")
        raise failure(what, error.code, _json(text)) from error
    except (OSError, ValueError) as error:
        raise failure(what, 0, error) from error


def upload(url: str, path: str, digest: str) -> bool:
    """Give the engine a file as a blob; False where it has it. The file is streamed, not read into memory."""
    address = f"{url.rstrip('/')}/api/blobs/{digest}"
    # a POST of a blob that is there already resets the connection
    if request("HEAD", address)[0] == 200:
        return False
    what = f"giving {os.path.basename(path)} to Ollama"
    with open(path, "rb") as source:
        asked = urllib.request.Request(  # noqa: S310 - the address is the engine's own
            address, data=source, method="POST", headers={"Content-Length": str(os.path.getsize(path))}
        )
        try:
            _opener.open(asked, timeout=3600).close()
        except urllib.error.HTTPError as error:
            with error:
                raise failure(what, error.code, _json(error.read().decode("utf-8", "replace"))) from error
        except OSError as error:
            raise failure(what, 0, error) from error
    return True


def permitted(spec: dict[str, Any], now: Model | None) -> None:
    """Refuse to change an engine that is not ours beyond what its owner consented to.

    spec: tag, may_add, may_replace (both true by default).
    """
    if now is None and not spec.get("may_add", True):
        raise StepError(
            f"the Ollama in use lacks {spec['tag']}",
            hint="`[models] may_add_models = true` lets the kit add it through the API; or name models that are there",
            code="no-consent",
        )
    if now is not None and not spec.get("may_replace", True):
        raise StepError(
            f"the Ollama in use has another {spec['tag']} than the planned one, and it is not ours to change",
            hint="name that model in [models] as it is, or choose another one",
            code="model-foreign",
        )


def copy(url: str, source: str, tag: str) -> None:
    """Give a model a second name."""
    status, answer = request("POST", url.rstrip("/") + "/api/copy", {"source": source, "destination": tag})
    if status != 200:
        raise failure(f"naming {tag}", status, answer)


def delete(url: str, tag: str) -> None:
    """Take a model off the list."""
    status, answer = request("DELETE", url.rstrip("/") + "/api/delete", {"model": tag})
    if status != 200:
        raise failure(f"removing {tag}", status, answer)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def listed(url: str) -> dict[str, Model]:
    """The models that the engine lists, by name: digest of the manifest and size in bytes."""
    answer = ask(url, "/api/tags", what="listing the models")
    return {m["name"]: {"digest": m.get("digest", ""), "size": m.get("size", 0)} for m in answer.get("models") or []}


def state(url: str, name: str, models: dict[str, Model] | None = None) -> Model | None:
    """A model as the engine has it, or None.

    `digest` of its manifest, `size` in bytes, `blob` (sha256:... of its weights, or of the file that an engine which
    writes weights anew made them of), `num_ctx` (0: not written in).
    """
    found = (listed(url) if models is None else models).get(parse(name).short)
    if found is None:
        return None
    shown = ask(url, "/api/show", {"model": name}, f"looking at {name}")
    source = re.search(r"^FROM \S*sha256[-:]([0-9a-f]{64})", shown.get("modelfile", ""), re.MULTILINE)
    source = re.search(rf"^{MADE_OF}([0-9a-f]{{64}})$", shown.get("license") or "", re.MULTILINE) or source
    context = re.search(r"^num_ctx\s+(\d+)", shown.get("parameters", ""), re.MULTILINE)
    return {
        **found,
        "blob": f"sha256:{source[1]}" if source else "",
        "num_ctx": int(context[1]) if context else 0,
        "capabilities": shown.get("capabilities", []),
    }


def tell_source(url: str, tag: str, digest: str) -> None:
    """Write into a model of which file its weights were made, as a note in its licence: they have another hash."""
    body = {"model": tag, "from": tag, "license": MADE_OF + digest, "stream": False}
    ask(url, "/api/create", body, f"noting where {tag} comes from", timeout=600)


def bake(url: str, source: str, tag: str, num_ctx: int) -> None:
    """Make `tag` of the model `source` with its context length written into it. Only names change: weights are shared.

    A client that asks without a context length of its own then gets this one, whichever way it comes in.
    """
    if state(url, source) is None:  # or the engine would try to pull it
        raise StepError(f"{source} is not there", hint="`ownstack up` brings it", code="model-unknown")
    body = {"model": tag, "from": source, "parameters": {"num_ctx": num_ctx}, "stream": False}
    ask(url, "/api/create", body, f"setting the context of {tag}", timeout=600)
