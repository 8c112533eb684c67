"""Moving a models' store: every byte compared, nothing removed before all is there, cut off and gone on with."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from ownstack.runner import ollama_move
from ownstack.runner.core import StepError
from ownstack.runner.ollama_pull import Journal


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two models that share a layer."""
    store = tmp_path / "old"
    (store / "blobs").mkdir(parents=True)
    shared = b"shared" * 1000
    for name in ("one", "two"):
        layers = []
        for content in (shared, name.encode() * 5000):
            digest = hashlib.sha256(content).hexdigest()
            (store / "blobs" / f"sha256-{digest}").write_bytes(content)
            layers.append({"digest": f"sha256:{digest}"})
        manifest = store / "manifests/registry.ollama.ai/library" / name / "latest"
        manifest.parent.mkdir(parents=True)
        manifest.write_text(json.dumps({"layers": layers}))
    (store / ".pull-later").mkdir()
    (store / "blobs/sha256-aa-partial.part").write_text("half")
    return store


def spec(store: Path, target: Path, **more: Any) -> dict[str, Any]:
    return {"from": str(store), "to": str(target), "run_dir": str(store.parent / "run"), **more}


def silent(event: dict[str, Any]) -> None:
    """Nobody listens."""


def held(store: Path) -> dict[str, bytes]:
    return {path: (store / path).read_bytes() for path, _ in ollama_move.files_of(str(store))}


def test_everything_comes_over_and_goes_only_then(store: Path, tmp_path: Path) -> None:
    target = tmp_path / "disk/models"
    before = held(store)
    seen = ollama_move.copy(spec(store, target, dry=True), silent)["data"]
    assert seen["files"] == len(before) == 5
    assert not target.exists()
    done = ollama_move.copy(spec(store, target), silent)
    assert done["changed"]
    assert done["data"]["bytes"] == done["data"]["held"] == sum(map(len, before.values()))
    assert held(target) == before == held(store)
    assert target.stat().st_mode & 0o777 == 0o711
    for path, _ in ollama_move.files_of(str(store)):
        assert (target / path).stat().st_mtime_ns == (store / path).stat().st_mtime_ns
    assert ollama_move.copy(spec(store, target), silent)["changed"] is False
    assert ollama_move.drop(spec(store, target), silent)["data"]["files"] == 5
    assert held(target) == before
    assert not (store / "blobs").exists()
    assert (store / ".pull-later").exists()


def test_it_goes_on_where_it_was_cut_off(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "models"
    plain, calls = shutil.copyfileobj, []

    def cut(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        plain(*arguments)

    monkeypatch.setattr("shutil.copyfileobj", cut)
    with pytest.raises(KeyboardInterrupt):
        ollama_move.copy(spec(store, target), silent)
    assert not (target / "manifests").exists()  # no model is half there
    with pytest.raises(StepError, match="is kept"):
        ollama_move.drop(spec(store, target), silent)
    data = ollama_move.copy(spec(store, target), silent)["data"]
    assert data["files"] == 3
    assert held(target) == held(store)


def test_one_that_was_cut_off_at_its_end_is_finished_later(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new store has been serving since: what it has is not put back to what the old one held."""
    target = tmp_path / "models"
    ollama_move.copy(spec(store, target), silent)
    name = "manifests/registry.ollama.ai/library/{}/latest"
    (target / name.format("one")).write_text("pulled anew since")
    third = store / name.format("three")
    third.parent.mkdir()
    third.write_text("came while the first copy was made")
    with pytest.raises(StepError) as caught:
        ollama_move.drop(spec(store, target), silent)
    assert caught.value.code == "store-differs"
    assert ollama_move.copy(spec(store, target, later=True), silent)["data"]["files"] == 1
    (store / name.format("two")).write_text("pulled anew while the old one still served")
    with pytest.raises(StepError):
        ollama_move.drop(spec(store, target, later=True), silent)
    ollama_move.copy(spec(store, target, later=True), silent)
    shutil.rmtree(store / "blobs")  # as far as it had come
    ollama_move.copy(spec(store, target, later=True), silent)
    ollama_move.drop(spec(store, target, later=True), silent)
    assert not list(ollama_move.files_of(str(store)))
    assert (target / name.format("one")).read_text() == "pulled anew since"
    assert (target / name.format("two")).read_text() == "pulled anew while the old one still served"
    assert (target / name.format("three")).exists()
    assert ollama_move.copy(spec(store, target, later=True), silent)["data"]["files"] == 0, "nothing is left to do"


def test_bytes_that_came_over_wrong_are_found(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = shutil.copyfileobj

    def spoil(reading: Any, writing: Any, length: int) -> None:
        plain(reading, writing, length)
        writing.seek(0)
        writing.write(b"X")

    monkeypatch.setattr("shutil.copyfileobj", spoil)
    before = held(store)
    with pytest.raises(StepError, match="other bytes") as caught:
        ollama_move.copy(spec(store, tmp_path / "models"), silent)
    assert caught.value.code == "store-differs"
    assert held(store) == before
    assert held(tmp_path / "models") == {}


def test_bytes_that_rotted_in_the_old_store_are_found(store: Path, tmp_path: Path) -> None:
    blob = next(path for path in (store / "blobs").iterdir() if not path.name.endswith(".part"))
    blob.write_bytes(bytes(blob.stat().st_size))
    with pytest.raises(StepError, match="other bytes"):
        ollama_move.copy(spec(store, tmp_path / "models"), silent)


def test_what_makes_no_sense_is_refused_and_nothing_is_made(store: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "summer.jpg").write_text("x")
    for target, code in (
        (store, "store-same"),
        (store / "below", "store-same"),
        (tmp_path, "store-same"),
        (foreign, "store-foreign"),
    ):
        with pytest.raises(StepError) as caught:
            ollama_move.copy(spec(store, target), silent)
        assert caught.value.code == code
    with pytest.raises(StepError) as caught:
        ollama_move.copy(spec(tmp_path / "nothing", tmp_path / "models"), silent)
    assert caught.value.code == "store-empty"
    with pytest.raises(StepError) as caught:
        ollama_move.drop(spec(store, store), silent)
    assert caught.value.code == "store-same"
    assert not (tmp_path / "models").exists()
    assert os.listdir(foreign) == ["summer.jpg"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: asks as another account")
def test_a_folder_that_the_engines_account_may_not_enter_is_named_before_anything_is_copied(store: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        top, account = Path(name), {"owner": "daemon", "group": "daemon"}
        (top / "closed/below").mkdir(parents=True)
        for path, mode in ((top, 0o755), (top / "closed", 0o700), (top / "closed/below", 0o755)):
            path.chmod(mode)
        for target in (top / "closed/below/models", top / "closed/models"):
            with pytest.raises(StepError, match=rf"daemon.* may not enter {top}/closed$") as caught:
                ollama_move.copy(spec(store, target, dry=True, **account), silent)
            assert caught.value.code == "store-closed"
        assert ollama_move.copy(spec(store, top / "closed/models", dry=True, bound=True, **account), silent)
        assert ollama_move.copy(spec(store, top / "open/models", dry=True, **account), silent)
        (top / "closed").chmod(0o711)
        assert ollama_move.copy(spec(store, top / "closed/below/models", dry=True, **account), silent)


@pytest.mark.parametrize("where", ["old/blobs", "new/blobs", "new/manifests/registry.ollama.ai"])
def test_a_folder_that_is_a_link_is_not_followed(where: str, store: Path, tmp_path: Path) -> None:
    """Both stores belong to the engine's account, and this runs as root: it would write where that account may not."""
    outside, link = tmp_path / "outside", tmp_path / where
    outside.mkdir()
    if link.exists():
        shutil.copytree(link, outside, dirs_exist_ok=True)
        shutil.rmtree(link)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(outside)
    before = sorted(outside.rglob("*"))
    with pytest.raises(StepError) as caught:
        ollama_move.copy(spec(store, tmp_path / "new"), silent)
    assert caught.value.code == "store-link"
    assert sorted(outside.rglob("*")) == before


def test_a_link_in_the_place_of_a_file_is_not_written_through(store: Path, tmp_path: Path) -> None:
    target, outside = tmp_path / "new", tmp_path / "shadow"
    outside.write_text("of somebody else")
    blob = next(path for path, _ in ollama_move.files_of(str(store)) if path.startswith("blobs"))
    (target / "blobs").mkdir(parents=True)
    (target / f"{blob}.part").symlink_to(outside)
    ollama_move.copy(spec(store, target), silent)
    assert outside.read_text() == "of somebody else"
    assert held(target) == held(store)


def test_a_disk_that_is_too_small_is_told_beforehand(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1 << 30))
    with pytest.raises(StepError, match=r"1\.1 GB free") as caught:
        ollama_move.copy(spec(store, tmp_path / "models"), silent)
    assert caught.value.code == "disk-full"
    assert not (tmp_path / "models").exists()


def test_nothing_is_moved_while_a_pull_goes_on(store: Path, tmp_path: Path) -> None:
    Journal(str(tmp_path / "run/pull-x.json"), "x:1", None)  # this process
    with pytest.raises(StepError, match="x:1 is being pulled"):
        ollama_move.copy(spec(store, tmp_path / "models"), silent)


def test_a_folder_that_cannot_be_written_is_named(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, mode: int = 0o777) -> None:
        raise OSError(30, "Read-only file system", path)

    monkeypatch.setattr("os.mkdir", refuse)
    with pytest.raises(StepError, match="Read-only file system") as caught:
        ollama_move.copy(spec(store, tmp_path / "models"), silent)
    assert str(tmp_path / "models") in caught.value.message
    assert caught.value.code == "store-write"
