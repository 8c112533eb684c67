"""A backup whose Qdrant is older: by one minor version its vectors are loaded, by more documents are indexed anew."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ownstack.cli import restore, run
from ownstack.cli.restore_vectors import reindexing
from ownstack.engine import backups
from tests.cli import standing
from tests.cli.backing import ABOUT, BOX, box, word
from tests.cli.standing import Box, spec, specs, steps, told
from tests.cli.test_restore_bare import bare_machine
from tests.unit import machines

__all__ = ["box", "word"]

DOCUMENTS = {"files": 5, "knowledge": 4, "memories": 2, "left": ["scan.pdf"]}


def before(box: Box, minors: int, patch: int = 0) -> str:
    """A version that many minor versions below the Qdrant of the box."""
    major, minor = backups.versions(machines.plan(box.report))["qdrant"].split(".")[:2]
    return f"{major}.{int(minor) - minors}.{patch}"


def backed(monkeypatch: pytest.MonkeyPatch, qdrant: str, **more: Any) -> dict[str, Any]:
    """What a backup with vectors of that Qdrant says when it is opened."""
    about = {**ABOUT, "versions": {"qdrant": qdrant}, **more}
    monkeypatch.setitem(standing.ANSWERS, "backup.verify", about)
    monkeypatch.setitem(standing.ANSWERS, "imports.documents", DOCUMENTS)
    return about


@pytest.mark.parametrize(("minors", "patch"), [(0, 0), (1, 0), (1, 99)])
def test_of_the_same_and_the_minor_version_before_vectors_are_loaded(
    minors: int, patch: int, box: Box, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {**BOX, "own_collections": ["notes"]}
    backed(monkeypatch, before(box, minors, patch), box=own, own_collections=1)
    assert run(["restore", "/mnt/b.tar", "--json", "--yes", "--passphrase-file", word]) == 0
    data = told(capsys)["data"]
    assert (data["reindex"], data["documents"]) == ("", {})
    assert "restore.vectors" in steps(box)
    assert "imports.documents" not in steps(box)


@pytest.mark.parametrize("prefix", ["open-webui", "open-webui-import-1a2b3c4d"])
def test_over_several_minor_versions_documents_are_indexed_anew(
    prefix: str, box: Box, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    backed(monkeypatch, before(box, 2), box={**BOX, "vectors": prefix})
    assert run(["restore", "/mnt/b.tar", "--json", "--yes", "--passphrase-file", word]) == 0
    data = told(capsys)["data"]
    assert data["documents"] == DOCUMENTS
    assert before(box, 2) in data["reindex"]
    done = steps(box)
    assert not {"restore.vectors", "open_webui.vectors", "open_webui.reindex"} & set(done)
    started = max(i for i, name in enumerate(done) if name == "box.activate")
    assert started < done.index("imports.documents") < done.index("restore.finish")
    assert spec(box, "imports.documents")["qdrant"]["new"] == prefix
    assert "qdrant" in [one["name"] for one in spec(box, "restore.swap")["services"]], "it begins empty"


def test_another_embedding_model_as_well_is_indexed_once(box: Box, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    embedding = machines.plan(box.report).model("embedding")
    assert embedding is not None
    other = {**embedding.model_dump(mode="json"), "tag": "other:1"}
    backed(monkeypatch, before(box, 2), box={**BOX, "models": [other]})
    assert run(["restore", "/mnt/b.tar", "--json", "--yes", "--passphrase-file", word]) == 0
    assert not {"open_webui.vectors", "open_webui.reindex"} & set(steps(box)), "the earlier vectors are not there"
    assert spec(box, "imports.documents")["qdrant"]["new"].startswith("open-webui-")


def test_it_is_said_before_anybody_is_asked(
    box: Box, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    backed(monkeypatch, before(box, 2))
    asked: list[str] = []
    monkeypatch.setattr(restore, "confirm", lambda question, yes, as_json: asked.append(capsys.readouterr().err))
    assert run(["restore", "/mnt/b.tar", "--passphrase-file", word]) == 0
    assert "memories are indexed anew: their vectors are of Qdrant" in asked[0]
    after = capsys.readouterr().err
    assert "indexed anew: 5 documents, 2 memories" in after
    assert "not indexed: scan.pdf" in after


def test_collections_that_nothing_makes_anew_stop_it_beforehand(
    box: Box, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    backed(monkeypatch, before(box, 2), box={**BOX, "own_collections": ["letters", "notes"]})
    assert run(["restore", "/mnt/b.tar", "--json", "--yes", "--passphrase-file", word]) == 1
    error = told(capsys)["error"]
    assert error["code"] == "backup-collections"
    assert "letters, notes" in error["message"]
    assert "the ownstack of that time" in error["hint"]
    assert not [name for name in steps(box) if name.startswith("restore.")]


def test_where_nothing_can_be_indexed_the_restore_is_taken_back(
    box: Box, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    backed(monkeypatch, before(box, 2))
    fault, real = (
        {"event": "error", "code": "reindex-incomplete", "message": "none of the 5", "hint": "x"},
        standing.runner,
    )
    monkeypatch.setattr(
        standing, "runner", lambda text: [json.dumps(fault)] if "imports.documents" in text else real(text)
    )
    assert run(["restore", "/mnt/b.tar", "--json", "--yes", "--passphrase-file", word]) == 1
    error = told(capsys)["error"]
    assert (error["code"], "none of the 5" in error["message"]) == ("restore-reverted", True)
    assert "restore.revert" in steps(box)
    assert "restore.finish" not in steps(box)


@pytest.mark.parametrize("own", [0, 2])
def test_a_new_machine_is_told_before_a_box_is_made(
    own: int, box: Box, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names of collections are known only when the backup is opened, on the box; their number before."""
    asked: list[str] = []
    about = backed(monkeypatch, before(box, 2), own_collections=own)
    bare_machine(box, monkeypatch, ["/mnt/usb/a.tar"], about)
    monkeypatch.setattr(restore, "confirm", lambda question, yes, as_json: asked.append(capsys.readouterr().err))
    assert run(["restore", "/mnt/usb/a.tar", "--passphrase-file", word]) == 1
    said = capsys.readouterr().err
    assert steps(box) == []
    if own:
        assert "collections of your own (2)" in said
        assert asked == []
    else:
        assert "indexed anew" in asked[0]


def test_a_new_machine_gets_its_documents_indexed(
    box: Box, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    standing_one = box.state
    about = backed(monkeypatch, before(box, 2))

    def made(site: Any, plan: Any, listen: Any) -> Any:
        site.state = standing_one
        return site.recorded_plan()

    bare_machine(box, monkeypatch, ["/mnt/usb/a.tar"], about)
    monkeypatch.setattr(restore, "made", made)
    assert run(["restore", "/mnt/usb/a.tar", "--yes", "--json", "--passphrase-file", word]) == 0
    assert told(capsys)["data"]["documents"] == DOCUMENTS
    assert "restore.vectors" not in steps(box)


@pytest.mark.parametrize("minors", [1, 2])
def test_a_drill_leaves_out_what_a_restore_leaves_out(
    minors: int, box: Box, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    backed(monkeypatch, before(box, minors))
    monkeypatch.setitem(standing.ANSWERS, "drill.run_outliving", {"ok": True, "counts": {"chats": 3}, "seconds": 4.0})
    assert run(["backup", "--verify", "/mnt/b.tar", "--drill", "--passphrase-file", word]) == 0
    assert spec(box, "drill.run_outliving")["without_vectors"] == (minors == 2)
    assert ("vectors were not tried" in capsys.readouterr().err) == (minors == 2)


def test_a_backup_without_open_webui_promises_no_documents(box: Box) -> None:
    about = {**ABOUT, "services": ["n8n"], "versions": {"qdrant": before(box, 2)}}
    assert reindexing(about, machines.plan(box.report)) == ""
    assert reindexing({}, machines.plan(box.report)) == "", "of a machine that cannot read a tar"


@pytest.mark.parametrize(
    ("minors", "prefix", "other", "noted"),
    [
        (0, "open-webui-x", False, ["open-webui"]),
        (0, "open-webui-x", True, ["open-webui", "open-webui-x"]),
        (0, "open-webui", False, None),
        (2, "open-webui-x", True, None),
        (None, "open-webui-x", False, ["of-this-box"]),
    ],
)
def test_collections_that_nobody_needs_are_known_as_that(
    minors: int | None, prefix: str, other: bool, noted: list[str] | None, box: Box, word: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Those of the backup, where its vectors were loaded; `up --prune` removes them."""
    box.state = box.state.model_copy(
        update={"manifest": {**(box.state.manifest or {}), "old_vectors": ["of-this-box"]}}
    )
    embedding = machines.plan(box.report).model("embedding")
    assert embedding is not None
    models = [{**embedding.model_dump(mode="json"), "tag": "other:1"}] if other else []
    about = {**BOX, "vectors": prefix, "models": models, "old_vectors": ["open-webui"]}
    backed(monkeypatch, before(box, minors or 0), box=about)
    if minors is None:
        monkeypatch.setitem(standing.ANSWERS, "backup.verify", {**ABOUT, "versions": {}, "box": about})
    assert run(["restore", "/mnt/b.tar", "--json", "--yes", "--passphrase-file", word]) == 0
    told_now = [
        one["values"]["old_vectors"] for one in specs(box, "box.write_manifest") if "old_vectors" in one["values"]
    ]
    assert told_now == ([] if minors is None else [noted])
