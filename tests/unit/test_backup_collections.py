"""Collections in a backup: Open WebUI's, which can be made anew from the rest, and those of the box's owner."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from ownstack.runner import backup, backup_check, backup_parts, drill, scratch
from ownstack.runner.backup_file import Reader, Writer
from ownstack.runner.core import Event
from tests.fixtures.small_box import SmallBox


def silent(event: Event) -> None:
    """Nobody listens."""


def qdrant(monkeypatch: pytest.MonkeyPatch, names: list[str], aliases: tuple[str, ...] = ()) -> None:
    """A Qdrant with these collections, each of one point."""

    def add(out: Writer, spec: dict[str, Any], work: str) -> dict[str, Any]:
        rows = []
        for number, name in enumerate(names):
            data = io.BytesIO()
            with tarfile.open(fileobj=data, mode="w") as tar:
                tar.addfile(tarfile.TarInfo("segment"), io.BytesIO())
            out.put(f"vectors/{number}.snapshot", data.getvalue())
            rows.append({"collection": name, "member": f"vectors/{number}.snapshot", "points": [1, 1]})
        return {"collections": rows, "aliases": [{"alias_name": n, "collection_name": names[0]} for n in aliases]}

    monkeypatch.setattr(backup_parts, "add_vectors", add)


@pytest.fixture
def box(tmp_path: Path) -> SmallBox:
    found = SmallBox(tmp_path, "first")
    known = json.loads(found.manifest.read_text())
    known["plan"]["vectors"] = "open-webui-nomic-1a2b3c4d"
    found.manifest.write_text(json.dumps({**known, "old_vectors": ["open-webui"]}))
    return found


OURS = ["open-webui-nomic-1a2b3c4d_files", "open-webui-nomic-1a2b3c4d_web-search", "open-webui_knowledge"]


@pytest.mark.parametrize(
    ("names", "aliases", "own"),
    [
        (OURS, (), []),
        ([*OURS, "notes", "open-webui-mine"], (), ["notes", "open-webui-mine"]),
        (OURS, ("mine",), ["mine"]),
        (["open-webui-nomic-1a2b3c4dx_files"], (), ["open-webui-nomic-1a2b3c4dx_files"]),
    ],
)
def test_a_backup_tells_collections_of_the_owner_apart(
    names: list[str], aliases: tuple[str, ...], own: list[str], box: SmallBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their number in the clear, for a machine on which it cannot be opened yet; their names not."""
    qdrant(monkeypatch, names, aliases)
    file = backup.make(box.make_spec(qdrant={"url": ""}), silent)["data"]["file"]
    assert Reader(file).manifest["own_collections"] == len(own)
    assert b"notes" not in Path(file).read_bytes()
    spec = box.verify_spec(file, identity_file=str(box.identity))
    told = backup_check.verify(spec, silent)["data"]["box"]
    assert (told["own_collections"], told["old_vectors"]) == (own, ["open-webui"])


def test_without_open_webui_none_can_be_made_anew() -> None:
    vectors = {"collections": [{"collection": "open-webui_files"}], "aliases": []}
    known = {"plan": {"vectors": "open-webui"}}
    assert backup_check.own_collections(vectors, ["n8n"], known) == ["open-webui_files"]
    assert backup_check.own_collections(None, ["n8n"], known) == []
    nameless = {"collections": [{"collection": "_mine"}], "aliases": []}
    assert backup_check.own_collections(nameless, ["open_webui"], {"plan": {"vectors": ""}}) == ["_mine"]


@pytest.mark.parametrize("without", [False, True])
def test_a_drill_loads_no_vectors_that_a_restore_would_leave_out(
    without: bool, box: SmallBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    qdrant(monkeypatch, ["open-webui_files"])
    file = backup.make(box.make_spec(qdrant={"url": ""}), silent)["data"]["file"]
    started: list[str] = []
    loaded: list[str] = []

    def load(spec: dict[str, Any], about: dict[str, Any], folder: str, emit: Any) -> dict[str, int]:
        loaded.extend(row["collection"] for row in about["collections"])
        return {"x": 1}

    monkeypatch.setattr(scratch, "start", lambda place, name, emit: started.append(name))
    monkeypatch.setattr(scratch, "stop", lambda place, name: None)
    monkeypatch.setattr(drill, "load_vectors", load)
    root = box.var / "scratch/drill"
    (box.var / "qdrant").mkdir()
    one = {"name": "qdrant", "folder": f"{root}/var/qdrant", "like": str(box.var / "qdrant"), "ready": "http://x/y"}
    place = {
        "root": str(root), "mark": str(box.var / "run/drill.json"), "etc": f"{root}/etc",
        "secrets_dir": f"{root}/etc/secrets", "folders": [], "files": [], "services": [one], "opt": "",
        "programs": {}, "manager": "systemd", "runner": "",
    }  # fmt: skip
    spec = {
        **box.verify_spec(file, identity_file=str(box.identity)), "lock": str(box.var / "run/lock"),
        "state": str(box.var / "backups.json"), "services": [], "place": place, "secrets": [], "n8n": {},
        "without_vectors": without,
    }  # fmt: skip
    monkeypatch.setattr(drill, "_counted", lambda held, about: {})
    counts = drill.run(spec, silent)["data"]["counts"]
    assert started == ["qdrant"], "Open WebUI looks for it when it starts"
    assert (loaded, counts) == (([], {}) if without else (["open-webui_files"], {"vectors": 1}))
