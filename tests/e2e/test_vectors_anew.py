"""Vectors of another embedding model beside those that are searched, with a real Qdrant: texts, notes and indexes."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from ownstack.runner import open_webui_memories, open_webui_reindex, open_webui_vectors
from ownstack.runner.core import StepError
from ownstack.runner.unpack import unpack
from tests.e2e.test_backup_vectors import KEY, Qdrant, silent
from tests.e2e.test_ollama_engine import artefact

OLD, NEW = "open-webui", "open-webui-large-1"
ANNA, BERT = "6f1c2a9e-0000-4000-8000-000000000001", "6f1c2a9e-0000-4000-8000-000000000002"
# as Open WebUI makes its collections
MADE = {"vectors": {"size": 2, "distance": "Cosine", "on_disk": False}, "hnsw_config": {"payload_m": 16, "m": 0}}
FIELDS = {"tenant_id": {"type": "keyword", "is_tenant": True}, "metadata.file_id": "keyword"}


class Web(BaseHTTPRequestHandler):
    """The engine's embeddings, and what Open WebUI answers about files that are there."""

    texts: ClassVar[list[str]] = []
    asked: ClassVar[list[dict[str, Any]]] = []
    deleted: ClassVar[set[str]] = set()
    fails = False
    index: Any = None

    def log_message(self, format: str, *arguments: object) -> None: ...

    def answer(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        found: dict[str, Any] = {}
        if self.path == "/api/embed":
            self.texts.extend(body["input"])
            found = {"embeddings": [[float(len(text)), 1.0, 2.0] for text in body["input"]]}
        if self.path == "/api/v1/retrieval/process/file":
            self.asked.append(body)
            type(self).index(body)
        data = json.dumps(found).encode()
        missing = self.path.rpartition("/")[2] in self.deleted
        self.send_response(500 if self.fails else 404 if missing else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = answer  # noqa: N815 - the names that http.server calls


@pytest.fixture
def web() -> Iterator[str]:
    Web.texts, Web.asked, Web.deleted, Web.fails = [], [], set(), False
    server = ThreadingHTTPServer(("127.0.0.1", 0), Web)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Qdrant]:
    folder = tmp_path_factory.mktemp("vectors")
    unpack(str(artefact("qdrant", "qdrant", "npm-third-party")), str(folder), {"format": "raw", "name": "qdrant"})
    found = Qdrant(folder / "qdrant", folder / "data")
    yield found
    found.stop()


def point(number: int | str, tenant: str, file: str = "", text: str = "") -> dict[str, Any]:
    notes = {"file_id": file, "embedding_config": {"engine": "ollama", "model": "small:1"}} if file else {}
    payload = {"text": text or f"line {number}\nof it", "metadata": notes, "tenant_id": tenant}
    return {"id": number, "vector": [1.0, float(len(text))], "payload": payload}


def put(store: Qdrant, name: str, *points: dict[str, Any]) -> None:
    store.ask("PUT", f"/collections/{name}/points?wait=true", {"points": list(points)})


def held(store: Qdrant, name: str) -> dict[int | str, dict[str, Any]]:
    asked = {"limit": 1000, "with_payload": True, "with_vector": True}
    return {row["id"]: row for row in store.ask("POST", f"/collections/{name}/points/scroll", asked)["points"]}


@pytest.fixture
def spec(store: Qdrant, web: str, tmp_path: Path) -> dict[str, Any]:
    """A Qdrant with a knowledge collection, a file and a memory."""
    for row in store.ask("GET", "/collections")["collections"]:
        store.ask("DELETE", f"/collections/{row['name']}")
    for kind in ("files", "knowledge", "memories"):
        store.ask("PUT", f"/collections/{OLD}_{kind}", MADE)
        for field, schema in FIELDS.items():
            path = f"/collections/{OLD}_{kind}/index?wait=true"
            store.ask("PUT", path, {"field_name": field, "field_schema": schema})
    put(store, f"{OLD}_files", *[point(n, "file-a", "a") for n in range(70)])
    put(store, f"{OLD}_knowledge", point(100, "house", "a"), point(101, "knowledge-bases"))
    put(store, f"{OLD}_memories", point(ANNA, "user-memory-anna", text="likes boats"))
    (tmp_path / "qdrant_api_key").write_text(KEY)
    (tmp_path / "open_webui_kit_key").write_text("k")
    with contextlib.closing(sqlite3.connect(tmp_path / "webui.db")) as database:
        database.execute("CREATE TABLE memory (id TEXT, user_id TEXT, path TEXT, content TEXT, created_at INTEGER)")
        rows = [(ANNA, "anna", None, "likes boats", 1), (BERT, "bert", "home", "has a cat", 2)]
        database.executemany("INSERT INTO memory VALUES (?, ?, ?, ?, ?)", rows)
        database.commit()
    where = {"url": store.url, "secret": "qdrant_api_key", "old": OLD, "new": NEW}
    return {
        "secrets_dir": str(tmp_path),
        "url": web,
        "engine": web,
        "model": "large:1",
        "database": str(tmp_path / "webui.db"),
        "qdrant": where,
    }


def vectors(spec: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = open_webui_vectors.vectors(spec, silent)["data"]
    return found


def test_every_text_is_embedded_into_new_collections_and_the_old_ones_stay(spec: dict[str, Any], store: Qdrant) -> None:
    before = {kind: held(store, f"{OLD}_{kind}") for kind in ("files", "knowledge", "memories")}
    assert vectors(spec) == {"embedded": 73, "vectors": 73}
    assert {kind: held(store, f"{OLD}_{kind}") for kind in before} == before, "what is searched meanwhile"
    for kind, rows in before.items():
        now = held(store, f"{NEW}_{kind}")
        assert now.keys() == rows.keys()
        for number, row in now.items():
            old = rows[number]["payload"]
            assert (row["payload"]["text"], row["payload"]["tenant_id"]) == (old["text"], old["tenant_id"])
            assert len(row["vector"]) == 3
        about, like = (store.ask("GET", f"/collections/{prefix}_{kind}") for prefix in (NEW, OLD))
        assert about["config"]["params"]["vectors"] == {"size": 3, "distance": "Cosine", "on_disk": False}
        assert (about["config"]["hnsw_config"]["m"], about["config"]["hnsw_config"]["payload_m"]) == (0, 16)
        schemas = [{field: index.get("params") for field, index in one["payload_schema"].items()}
                   for one in (about, like)]  # fmt: skip
        assert schemas[0] == schemas[1]
        assert schemas[0].keys() == FIELDS.keys()
    assert held(store, f"{NEW}_files")[3]["payload"]["metadata"]["embedding_config"]["model"] == "large:1"
    assert "line 3 of it" in Web.texts, "as Open WebUI reads it"


def test_a_run_that_was_cut_off_goes_on_and_what_went_meanwhile_goes(spec: dict[str, Any], store: Qdrant) -> None:
    vectors(spec)
    Web.texts.clear()
    store.ask("PUT", f"/collections/{NEW}_gone", MADE)
    store.ask("POST", f"/collections/{OLD}_files/points/delete?wait=true", {"points": [5]})
    put(store, f"{OLD}_files", point(6, "file-a", "a", "another text"), point(99, "file-b", "b"))
    assert vectors(spec)["embedded"] == 2
    assert sorted(Web.texts) == ["another text", "line 99 of it"]
    assert held(store, f"{NEW}_files").keys() == held(store, f"{OLD}_files").keys()
    assert f"{NEW}_gone" not in [row["name"] for row in store.ask("GET", "/collections")["collections"]]


def test_of_collections_that_are_searched_already_nothing_goes(spec: dict[str, Any], store: Qdrant) -> None:
    """After a way back they may hold what the earlier ones never did."""
    vectors(spec)
    put(store, f"{NEW}_files", {**point(500, "file-z", "z"), "vector": [1.0, 2.0, 3.0]})
    store.ask("PUT", f"/collections/{NEW}_more", MADE)
    put(store, f"{OLD}_files", point(99, "file-b", "b"))
    assert vectors({**spec, "live": True})["embedded"] == 1
    assert held(store, f"{NEW}_files").keys() == {*range(70), 99, 500}
    put(store, f"{OLD}_files", point(98, "file-b", "b"))
    Web.fails = True
    with pytest.raises(StepError, match="large:1 could not embed"):
        vectors({**spec, "live": True})
    there = [row["name"] for row in store.ask("GET", "/collections")["collections"]]
    assert {f"{NEW}_files", f"{NEW}_more"} <= set(there)


def test_what_was_deleted_while_it_was_carried_over_is_found_no_longer(spec: dict[str, Any], store: Qdrant) -> None:
    put(store, f"{OLD}_files", *[point(n, "file-b", "b") for n in (98, 99)])
    put(store, f"{OLD}_knowledge", point(102, "house", "b"))
    vectors(spec)
    for kind in ("files", "knowledge"):
        only = {"must": [{"key": "metadata.file_id", "match": {"value": "b"}}]}
        store.ask("POST", f"/collections/{OLD}_{kind}/points/delete?wait=true", {"filter": only})
    put(store, f"{NEW}_files", {**point(500, "file-z", "z"), "vector": [1.0, 2.0, 3.0]})  # uploaded since the switch
    Web.deleted.add("b")
    open_webui_reindex.reindex({**spec, "carried": True}, silent)
    assert held(store, f"{NEW}_files").keys() == {*range(70), 500}
    assert held(store, f"{NEW}_knowledge").keys() == {100, 101}


def test_a_model_that_cannot_embed_is_an_error(spec: dict[str, Any]) -> None:
    Web.fails = True
    with pytest.raises(StepError, match="large:1 could not embed") as caught:
        vectors(spec)
    assert caught.value.code == "reindex-incomplete"


@pytest.mark.parametrize("arrives", [True, False])
def test_after_the_switch_only_what_came_since_is_indexed(arrives: bool, spec: dict[str, Any], store: Qdrant) -> None:
    vectors(spec)
    put(store, f"{OLD}_files", point(98, "file-b", "b"))
    put(store, f"{OLD}_knowledge", point(102, "house", "b"))

    def index(body: dict[str, Any]) -> None:
        tenant = body.get("collection_name", f"file-{body['file_id']}")
        kind = "knowledge" if "collection_name" in body else "files"
        row = {**point(len(Web.asked) + 300, tenant, body["file_id"]), "vector": [1.0, 2.0, 3.0]}
        if arrives:
            put(store, f"{NEW}_{kind}", row)

    Web.index = staticmethod(index)
    told = {**spec, "carried": True}
    if not arrives:
        with pytest.raises(StepError, match="1 of the documents could not be indexed anew: b"):
            open_webui_reindex.reindex(told, silent)
        return
    assert open_webui_reindex.reindex(told, silent)["data"] == {"knowledge": 3, "files": 2, "memories": 1}
    assert Web.asked == [{"file_id": "b"}, {"file_id": "b", "collection_name": "house"}]


def test_memories_that_have_no_vector_get_one(spec: dict[str, Any], store: Qdrant) -> None:
    """Of a box where nothing was carried over, and of a database that comes from elsewhere."""
    assert open_webui_memories.memories(spec) == 2
    found = held(store, f"{NEW}_memories")
    assert {row["payload"]["tenant_id"]: row["payload"]["text"] for row in found.values()} == {
        "user-memory-anna": "likes boats", "user-memory-bert": "home\nhas a cat",
    }  # fmt: skip
    assert found[BERT]["payload"]["metadata"] == {"created_at": 2, "path": "home"}
    assert len(found[ANNA]["vector"]) == 3
    about = store.ask("GET", f"/collections/{NEW}_memories")
    assert about["payload_schema"]["tenant_id"]["params"]["is_tenant"]
    assert open_webui_memories.memories(spec) == 0
    with contextlib.closing(sqlite3.connect(spec["database"])) as database:
        database.execute("DROP TABLE memory")
        database.commit()
    assert open_webui_memories.memories(spec) == 0
