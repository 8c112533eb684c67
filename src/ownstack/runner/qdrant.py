"""Steps that ask Qdrant with its keys; the keys stay on the target."""

from __future__ import annotations

import urllib.parse

from .core import Emit, Result, Spec, StepError
from .http import request
from .secrets import read_secret

# a process that hangs takes connections and says nothing: `verify` asks it several times
PATIENCE_S = 10


def _headers(spec: Spec, name: str) -> dict[str, str]:
    return {"api-key": read_secret(spec["secrets_dir"], name)}


def _of(spec: Spec, collection: str) -> str:
    """The address of a collection; who makes one, a workflow say, may give it any name."""
    return f"{spec['url']}/collections/{urllib.parse.quote(collection, safe='')}"


def probe(spec: Spec, emit: Emit) -> Result:
    """How Qdrant answers with no key, the read-only key and the key. spec: url, secrets_dir."""
    url = spec["url"]
    full, reader = _headers(spec, "qdrant_api_key"), _headers(spec, "qdrant_read_only_key")
    status, about = request("GET", f"{url}/", headers=full, timeout=PATIENCE_S)
    if not status:
        raise StepError(f"Qdrant does not answer: {about}", hint="`ownstack restart qdrant`; `ownstack logs qdrant`")
    return {
        "changed": False,
        "data": {
            "version": about.get("version", "") if isinstance(about, dict) else "",
            "answers": status,
            "without_key": request("GET", f"{url}/collections")[0],
            "reader_reads": request("GET", f"{url}/collections", headers=reader)[0],
            # refused before anything is made: a reader may not create
            "reader_writes": request("PUT", f"{url}/collections/ownstack-never", {}, headers=reader)[0],
            "collections": counts({"url": url, "secrets_dir": spec["secrets_dir"]}, emit)["data"],
        },
    }


def counts(spec: Spec, emit: Emit) -> Result:
    """Exact number of points of each collection. spec: url, secrets_dir."""
    headers = _headers(spec, "qdrant_api_key")
    status, answer = request("GET", f"{spec['url']}/collections", headers=headers)
    if status != 200:
        raise StepError(f"Qdrant answers {status}", hint="`ownstack logs qdrant` shows why")
    found = {}
    for item in answer["result"]["collections"]:
        name = item["name"]
        status, one = request("POST", f"{_of(spec, name)}/points/count", {"exact": True}, headers=headers)
        if status == 404:  # somebody deleted it meanwhile
            continue
        if status != 200:
            raise StepError(f"Qdrant answers {status} to a count of {name}", hint="`ownstack logs qdrant` shows why")
        found[name] = one["result"]["count"]
    return {"changed": False, "data": found}


def of(spec: Spec, emit: Emit) -> Result:
    """The collections whose names begin with one of the prefixes and `_`. spec: url, secrets_dir, prefixes."""
    names = counts(spec, emit)["data"]
    begins = tuple(f"{prefix}_" for prefix in spec["prefixes"])
    return {"changed": False, "data": {"collections": sorted(name for name in names if name.startswith(begins))}}


def drop(spec: Spec, emit: Emit) -> Result:
    """Delete those collections. spec: as for `of`."""
    found = of(spec, emit)["data"]["collections"]
    for name in [] if spec.get("dry") else found:
        status, said = request("DELETE", _of(spec, name), headers=_headers(spec, "qdrant_api_key"), timeout=120)
        if status != 200:
            why = said.get("status", said) if isinstance(said, dict) else said
            raise StepError(
                f"Qdrant did not delete the collection {name} ({status}: {str(why)[:300]})",
                hint="`ownstack logs qdrant`",
            )
    return {"changed": bool(found), "data": {"collections": found}}


STEPS = {"counts": counts, "drop": drop, "of": of, "probe": probe}
