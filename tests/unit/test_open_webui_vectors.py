"""Vectors beside those that are searched: what becomes of them where the way is not gone to its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ownstack.runner import open_webui_vectors
from ownstack.runner.core import Event, StepError

OLD, NEW = "open-webui", "open-webui-large-1"


def silent(event: Event) -> None:
    """Nobody listens."""


class Services:
    """Qdrant with a file of several pages, and an engine that fails after the first one."""

    def __init__(self) -> None:
        self.held: dict[str, dict[int, Any]] = {
            f"{OLD}_files": {number: {"text": f"line {number}"} for number in range(40)},
            f"{NEW}_knowledge": {},
            "of-a-workflow": {},
        }
        self.embeds, self.deletes = 1, True

    def request(self, method: str, url: str, body: Any, *more: Any, **named: Any) -> tuple[int, Any]:
        if url.endswith("/api/embed"):
            self.embeds -= 1
            return (200, {"embeddings": [[1.0]] * len(body["input"])}) if self.embeds >= 0 else (500, {"error": "busy"})
        name, _, rest = url.partition("/collections")[2].lstrip("/").partition("/")
        if method == "DELETE":
            if not self.deletes:
                return 0, "refused"
            del self.held[name]
        return 200, {"result": self.answer(method, name, rest, body)}

    def answer(self, method: str, name: str, rest: str, body: Any) -> Any:
        if not name:
            return {"collections": [{"name": one} for one in self.held]}
        if rest == "points/count":
            return {"count": len(self.held[name])}
        if rest == "points/scroll":
            first = body["offset"] or 0
            rows = [{"id": i, "payload": p} for i, p in self.held[name].items()][first : first + body["limit"]]
            return {"points": rows, "next_page_offset": first + len(rows) if first + len(rows) < 40 else None}
        if method == "PUT" and not rest:
            self.held[name] = {}
        if method == "PUT" and rest.startswith("points"):
            self.held[name].update({point["id"]: point["payload"] for point in body["points"]})
        if rest == "points":
            return [{"id": i, "payload": self.held[name][i]} for i in body["ids"] if i in self.held[name]]
        return {"config": {"hnsw_config": {}, "params": {"vectors": {}}}}


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> Services:
    made = Services()
    monkeypatch.setattr(open_webui_vectors, "request", made.request)
    return made


def spec(folder: Path) -> dict[str, Any]:
    (folder / "key").write_text("k")
    where = {"url": "http://q", "secret": "key", "old": OLD, "new": NEW}
    return {"secrets_dir": str(folder), "engine": "http://e", "model": "large:1", "qdrant": where}


def test_half_of_a_file_is_not_taken_for_the_whole(services: Services, tmp_path: Path) -> None:
    """Open WebUI indexes what has no vectors yet: a file of which some texts have them would stay as it is."""
    with pytest.raises(StepError, match="busy") as caught:
        open_webui_vectors.vectors(spec(tmp_path), silent)
    assert caught.value.code == "reindex-incomplete"
    assert sorted(services.held) == ["of-a-workflow", f"{OLD}_files"]


def test_half_of_a_file_that_stays_is_told(services: Services, tmp_path: Path) -> None:
    services.deletes = False
    services.held.pop(f"{NEW}_knowledge")
    with pytest.raises(StepError, match=r"busy; and what was made until then is still there: .*refused") as caught:
        open_webui_vectors.vectors(spec(tmp_path), silent)
    assert caught.value.code == "vectors-half"
    assert len(services.held[f"{NEW}_files"]) == 32
    services.embeds, services.deletes = 5, True
    assert open_webui_vectors.vectors(spec(tmp_path), silent)["data"] == {"embedded": 8, "vectors": 40}
