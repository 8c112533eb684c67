"""Vectors of another embedding model, made beside those that are searched.

Each text of the earlier collections is embedded by the new model and laid, under its own number, into new collections.
Open WebUI cannot do that by itself: what it indexes anew are the collections that it searches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .core import Emit, Result, Spec, StepError, progress
from .http import request
from .secrets import read_secret

PAGE = 32
HOUR = 3600.0
Point = dict[str, Any]


class Store:
    """Qdrant's HTTP interface with its key."""

    def __init__(self, spec: Spec) -> None:
        self.url = f"{spec['qdrant']['url']}/collections"
        self.headers = {"api-key": read_secret(spec["secrets_dir"], spec["qdrant"]["secret"])}

    def ask(self, method: str, path: str = "", body: Any = None) -> Any:
        status, answer = request(method, self.url + path, body, self.headers, timeout=HOUR)
        if status == 200:
            return answer["result"]
        why = answer.get("status", answer) if isinstance(answer, dict) else answer
        raise StepError(
            f"Qdrant answered {status} to {method} /collections{path}: {str(why)[:300]}", hint="`ownstack logs qdrant`"
        )

    def kinds(self, prefix: str) -> list[str]:
        """The ends of the names of collections that begin with `prefix` and `_`."""
        names = sorted(str(row["name"]) for row in self.ask("GET")["collections"])
        return [name.removeprefix(f"{prefix}_") for name in names if name.startswith(f"{prefix}_")]

    def count(self, name: str) -> int:
        return int(self.ask("POST", f"/{name}/points/count", {"exact": True})["count"])

    def pages(self, name: str, payload: bool = True, limit: int = PAGE) -> Iterator[list[Point]]:
        offset = None
        while True:
            body = {"limit": limit, "offset": offset, "with_payload": payload}
            page = self.ask("POST", f"/{name}/points/scroll", body)
            yield page["points"]
            offset = page.get("next_page_offset")
            if offset is None:
                return

    def like(self, name: str, other: str, size: int) -> None:
        """Make a collection as another one is, for vectors of `size` numbers."""
        about = self.ask("GET", f"/{other}")
        config = about["config"]
        held = config["hnsw_config"]
        hnsw = {key: held[key] for key in ("m", "payload_m") if held.get(key) is not None}
        vectors = {**config["params"]["vectors"], "size": size}
        self.ask("PUT", f"/{name}", {"vectors": vectors, "hnsw_config": hnsw})
        for field, index in about.get("payload_schema", {}).items():
            schema = index.get("params") or index["data_type"]
            self.ask("PUT", f"/{name}/index?wait=true", {"field_name": field, "field_schema": schema})

    def fresh(self, name: str, size: int) -> None:
        """Make a collection as Open WebUI makes them."""
        vectors = {"size": size, "distance": "Cosine", "on_disk": False}
        self.ask("PUT", f"/{name}", {"vectors": vectors, "hnsw_config": {"payload_m": 16, "m": 0}})
        for field in ("tenant_id", "metadata.hash", "metadata.file_id"):
            schema = {"type": "keyword", "on_disk": False, **({"is_tenant": True} if field == "tenant_id" else {})}
            self.ask("PUT", f"/{name}/index?wait=true", {"field_name": field, "field_schema": schema})


def vectors(spec: Spec, emit: Emit) -> Result:
    """Bring the new collections to what the earlier ones hold, which stay as they are.

    spec: secrets_dir, engine (its address), model, qdrant {url, secret, old, new}: the beginnings of the names; live:
    Open WebUI searches the new ones already.
    data: embedded (how many texts), vectors (how many there are). What a run that was cut off has done stays, and what
    the earlier collections hold no longer goes. Where it fails the new ones go. Of live ones nothing goes: they may
    hold what the earlier ones never did, after a way back say.
    """
    if spec.get("dry"):
        return {"changed": True, "data": {}}
    store = Store(spec)
    written: list[int] = []
    try:
        return _carried(store, spec, emit, written)
    except StepError as error:
        if not spec.get("live"):
            _let_go(store, spec["qdrant"]["new"], error)
        elif written:
            raise _half(f"{error.message}; {sum(written)} texts have their new vectors already") from error
        raise


def _half(message: str) -> StepError:
    return StepError(message, hint="`ownstack logs qdrant` shows why; then run again", code="vectors-half")


def _let_go(store: Store, prefix: str, why: StepError) -> None:
    """Some of a file's texts would count as all of them when documents are indexed by Open WebUI instead."""
    try:
        for kind in store.kinds(prefix):
            store.ask("DELETE", f"/{prefix}_{kind}")
    except StepError as error:
        raise _half(f"{why.message}; and what was made until then is still there: {error.message}") from why


def _carried(store: Store, spec: Spec, emit: Emit, written: list[int]) -> Result:
    about, live = spec["qdrant"], bool(spec.get("live"))
    old, there = store.kinds(about["old"]), store.kinds(about["new"])
    for kind in set() if live else set(there) - set(old):
        store.ask("DELETE", f"/{about['new']}_{kind}")
    total = sum(store.count(f"{about['old']}_{kind}") for kind in old)
    done = 0
    for kind in old:
        source, target = f"{about['old']}_{kind}", f"{about['new']}_{kind}"
        made, held = kind in there, set()
        for page in store.pages(source):
            progress(emit, "indexing the documents anew, beside what is searched", done, total)
            wanted = [_of(point, spec["model"]) for point in page]
            missing = _missing(store, target, wanted) if made else wanted
            if missing:
                embed(spec, missing)
                if not made:
                    store.like(target, source, len(missing[0]["vector"]))
                    made = True
                store.ask("PUT", f"/{target}/points?wait=true", {"points": missing})
                written.append(len(missing))
            held |= {point["id"] for point in wanted}
            done += len(page)
        if kind in there and not live:
            _drop(store, target, held)
    return {"changed": bool(written), "data": {"embedded": sum(written), "vectors": done}}


def _of(point: Point, model: str) -> Point:
    """The point as it is to be, still without its vector: Open WebUI notes which model made that."""
    payload = dict(point.get("payload") or {})
    notes = payload.get("metadata")
    if isinstance(notes, dict) and isinstance(notes.get("embedding_config"), dict):
        config = {**notes["embedding_config"], "engine": "ollama", "model": model}
        payload["metadata"] = {**notes, "embedding_config": config}
    return {"id": point["id"], "payload": payload}


def _missing(store: Store, target: str, wanted: list[Point]) -> list[Point]:
    """Those that are not there as they are to be."""
    asked = {"ids": [point["id"] for point in wanted], "with_payload": True}
    there = {point["id"]: point.get("payload") for point in store.ask("POST", f"/{target}/points", asked)}
    return [point for point in wanted if there.get(point["id"]) != point["payload"]]


def embed(spec: Spec, points: list[Point]) -> None:
    """Give each point the vector of its text, which is read as Open WebUI reads it."""
    texts = [str(point["payload"].get("text") or " ").replace("\n", " ") for point in points]
    body = {"model": spec["model"], "input": texts, "truncate": True}
    status, answer = request("POST", f"{spec['engine']}/api/embed", body, timeout=HOUR)
    found = answer.get("embeddings") or [] if isinstance(answer, dict) else []
    if status != 200 or len(found) != len(points):
        why = answer.get("error", "too few vectors") if isinstance(answer, dict) else answer
        raise StepError(
            f"{spec['model']} could not embed the documents: {str(why)[:300]}",
            hint="`ownstack logs ollama` shows why",
            code="reindex-incomplete",
        )
    for point, vector in zip(points, found):
        point["vector"] = vector


def _drop(store: Store, name: str, held: set[Any]) -> None:
    """Take away what is not held."""
    gone = [point["id"] for page in store.pages(name, False, 1000) for point in page if point["id"] not in held]
    if gone:
        store.ask("POST", f"/{name}/points/delete?wait=true", {"points": gone})


STEPS: dict[str, Any] = {"vectors": vectors}
