"""Documents indexed anew: what was taken out of knowledge meanwhile is neither kept nor made again."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from ownstack.runner import open_webui_reindex, open_webui_vectors
from ownstack.runner.core import Event

OLD, NEW = "open-webui", "open-webui-large-1"
KINDS = ("knowledge", "files")
Pair = tuple[str, str]


def silent(event: Event) -> None:
    """Nobody listens."""


class Services:
    """Qdrant with (tenant, file) pairs in its collections, and an Open WebUI that still has every file."""

    def __init__(self) -> None:
        self.held: dict[str, set[Pair]] = {f"{prefix}_{kind}": set() for prefix in (OLD, NEW) for kind in KINDS}
        self.indexed: list[dict[str, str]] = []

    def request(self, method: str, url: str, body: Any, *more: Any, **named: Any) -> tuple[int, Any]:
        name, _, rest = url.partition("/collections/")[2].partition("/")
        if rest.startswith("points/delete"):
            tenant, file = (one["match"]["value"] for one in body["filter"]["must"])
            self.held[name].discard((tenant, file))
        rows = [{"payload": {"tenant_id": t, "metadata": {"file_id": f}}} for t, f in sorted(self.held[name])]
        return 200, {"result": {"points": rows}}

    def call(self, method: str, path: str, body: Any = None, **named: Any) -> tuple[int, Any]:
        if path.endswith("/process/file"):
            self.indexed.append(body)
            self.held[f"{NEW}_knowledge"].add((body["collection_name"], body["file_id"]))
        return 200, {}


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> Services:
    made = Services()
    for module in (open_webui_reindex, open_webui_vectors):
        monkeypatch.setattr(module, "request", made.request)
    monkeypatch.setattr(open_webui_reindex, "kit", lambda spec: made)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return made


class Database:
    """Open WebUI's: one knowledge collection, and what is in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run("CREATE TABLE knowledge (id TEXT)")
        self.run("CREATE TABLE knowledge_file (knowledge_id TEXT, file_id TEXT)")
        self.run("INSERT INTO knowledge VALUES ('house')")

    def run(self, words: str, *values: str) -> None:
        with contextlib.closing(sqlite3.connect(self.path)) as opened:
            opened.execute(words, values)
            opened.commit()

    def add(self, file: str) -> None:
        self.run("INSERT INTO knowledge_file VALUES ('house', ?)", file)


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path / "webui.db")


@pytest.fixture
def spec(database: Database, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "key").write_text("k")
    where = {"url": "http://q", "secret": "key", "old": OLD, "new": NEW}
    return {"secrets_dir": str(tmp_path), "database": str(database.path), "qdrant": where, "carried": True}


def test_what_was_taken_out_while_it_was_carried_over_is_found_no_longer(
    services: Services, database: Database, spec: dict[str, Any]
) -> None:
    """The file itself is still there. What belongs to no knowledge that Open WebUI lists is not for us to judge."""
    database.add("a")
    database.add("since")
    services.held[f"{OLD}_knowledge"] = {("house", "a"), ("knowledge-bases", "")}
    more = {("house", "out"), ("house", "since"), ("of-a-script", "b"), ("knowledge-bases", "")}
    services.held[f"{NEW}_knowledge"] = {("house", "a"), *more}
    open_webui_reindex.reindex(spec, silent)
    assert services.held[f"{NEW}_knowledge"] == {("house", "a"), *more} - {("house", "out")}
    assert services.indexed == []


def test_what_is_being_added_keeps_its_vectors(
    services: Services, database: Database, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    services.held[f"{NEW}_knowledge"] = {("house", "new")}
    monkeypatch.setattr(time, "sleep", lambda seconds: database.add("new"))
    open_webui_reindex.reindex(spec, silent)
    assert services.held[f"{NEW}_knowledge"] == {("house", "new")}


def test_what_was_taken_out_since_the_switch_is_not_indexed_again(
    services: Services, database: Database, spec: dict[str, Any]
) -> None:
    database.add("a")
    services.held[f"{OLD}_knowledge"] = {("house", "a"), ("house", "out")}
    open_webui_reindex.reindex(spec, silent)
    assert services.indexed == [{"file_id": "a", "collection_name": "house"}]
    assert services.held[f"{NEW}_knowledge"] == {("house", "a")}


def test_a_database_that_does_not_say_what_knowledge_has_decides_nothing(
    services: Services, database: Database, spec: dict[str, Any]
) -> None:
    database.run("DROP TABLE knowledge_file")
    services.held[f"{OLD}_knowledge"] = {("house", "a")}
    services.held[f"{NEW}_knowledge"] = {("house", "b")}
    open_webui_reindex.reindex(spec, silent)
    assert services.held[f"{NEW}_knowledge"] == {("house", "a"), ("house", "b")}
