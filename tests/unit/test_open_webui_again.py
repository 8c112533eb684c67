"""A document of before, looked for by Open WebUI's own search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ownstack.runner import open_webui_again, open_webui_site, open_webui_vectors
from ownstack.runner.core import Event, StepError

FILE = {"text": "The word is harbour.\n", "metadata": {"file_id": "f"}, "tenant_id": "house"}
OTHERS = (
    {"text": "what a collection is about", "metadata": {}, "tenant_id": "knowledge-bases"},
    {"text": " ", "metadata": {"file_id": "e"}, "tenant_id": "house"},
)


def silent(event: Event) -> None:
    """Nobody listens."""


class Services:
    """Qdrant with collections of one account, and Open WebUI, whose search finds what it is told."""

    def __init__(self) -> None:
        self.held: dict[str, list[dict[str, Any]]] = {"open-webui_knowledge": [*OTHERS, FILE], "mine_files": [FILE]}
        self.finds: list[str] = ["something else", "The word is harbour."]
        self.asked: list[Any] = []
        self.status = 200

    def request(self, method: str, url: str, body: Any = None, *more: Any, **named: Any) -> tuple[int, Any]:
        if url.endswith("/retrieval/query/collection"):
            self.asked.append(body)
            return self.status, {"documents": [self.finds], "distances": [[0.0] * len(self.finds)]}
        name, _, rest = url.partition("/collections")[2].lstrip("/").partition("/")
        if not name:
            return 200, {"result": {"collections": [{"name": one} for one in self.held]}}
        if name not in self.held:
            return 404, {"status": {"error": "Not found"}}
        rows = [{"id": number, "payload": payload} for number, payload in enumerate(self.held[name])]
        if rest == "points/scroll":
            return 200, {"result": {"points": rows[: body["limit"]], "next_page_offset": None}}
        assert rest == "points"
        return 200, {"result": [row for row in rows if row["id"] in body["ids"]]}


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> Services:
    found = Services()
    for module in (open_webui_site, open_webui_vectors):
        monkeypatch.setattr(module, "request", found.request)
    return found


@pytest.fixture
def spec(tmp_path: Path) -> dict[str, Any]:
    for name in ("qdrant_api_key", "open_webui_kit_key"):
        (tmp_path / name).write_text("k")
    store = {"url": "http://q", "secret": "qdrant_api_key", "prefix": "open-webui"}
    return {"url": "http://w", "secrets_dir": str(tmp_path), "qdrant": store}


def again(spec: dict[str, Any], **more: Any) -> Any:
    return open_webui_again.again({**spec, **more}, silent)["data"]


def test_a_text_of_a_file_is_asked_for_in_its_own_words(services: Services, spec: dict[str, Any]) -> None:
    assert again(spec) == {"point": {"kind": "knowledge", "id": 2}, "found": True, "refused": False}
    assert services.asked == [{"collection_names": ["house"], "query": "The word is harbour.", "k": 5}]
    assert again(spec, point={"kind": "knowledge", "id": 2})["found"]


def test_it_is_not_found_where_the_search_or_the_store_has_it_no_more(services: Services, spec: dict[str, Any]) -> None:
    point = again(spec)["point"]
    services.finds = ["something else"]
    assert not again(spec, point=point)["found"]
    services.finds = []
    assert not again(spec, point=point)["found"]
    services.held["open-webui_knowledge"] = [*OTHERS]
    assert again(spec, point=point) == {"point": point, "found": False, "refused": False}


def test_without_a_document_there_is_none_to_find(services: Services, spec: dict[str, Any]) -> None:
    services.held = {"open-webui_knowledge": [*OTHERS], "mine_files": [FILE]}
    assert again(spec) == {"point": {}, "found": False, "refused": False}
    assert services.asked == []


def test_who_may_not_look_there_says_nothing_of_it(services: Services, spec: dict[str, Any]) -> None:
    point = again(spec)["point"]
    services.status = 403
    assert again(spec, point=point) == {"point": point, "found": False, "refused": True}
    services.status = 500
    with pytest.raises(StepError):
        again(spec, point=point)
