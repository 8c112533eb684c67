"""`import` as a command: what it refuses, in which order it works, what it does when a part fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ownstack.cli import run
from ownstack.verify.check import Outcome
from tests.cli import standing
from tests.cli.standing import Box, spec, steps, told, verdict
from tests.unit.test_imports import flows

WORD = "TheKeyOfTheOther"
FOUND: dict[str, Any] = {
    "kind": "open_webui", "label": "Open WebUI", "found": "/srv/old/webui.db", "owner": "mara@example.org",
    "holds": {"accounts": 2, "chats": 3}, "here": {"accounts": 1, "chats": 7}, "notes": ["1 file has no upload"],
}  # fmt: skip


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Box:
    found = standing.stand(monkeypatch)
    standing.carried(monkeypatch, tmp_path)
    monkeypatch.setitem(standing.ANSWERS, "imports.find", {"there": True})
    monkeypatch.setitem(standing.ANSWERS, "imports.stage", FOUND)
    monkeypatch.setitem(standing.ANSWERS, "imports.compare", {"counts": {"chat": 3}})
    monkeypatch.setitem(standing.ANSWERS, "imports.documents", {"files": 1, "knowledge": 1, "left": []})
    verdict(monkeypatch, Outcome.ok("fine"))
    return found


def test_an_import_in_its_order(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["import", "/srv/old", "--json", "--yes"]) == 0
    data = told(capsys)["data"]
    assert data["holds"] == FOUND["holds"]
    assert data["documents"]["files"] == 1
    done = steps(box)
    order = ["imports.find", "imports.stage", "restore.swap", "secrets.fill", "imports.started", "box.activate"]
    places = [done.index(name) for name in order]
    assert places == sorted(places)
    after = ["imports.documents", "imports.compare", "restore.finish", "qdrant.drop"]
    assert [name for name in done if name in after] == after
    assert done.index("imports.documents") > max(i for i, name in enumerate(done) if name == "box.activate")
    assert "restore.revert" not in done
    assert spec(box, "restore.swap")["units"] == ["ownstack-open-webui"], "the others go on"
    new = spec(box, "imports.documents")["qdrant"]["new"]
    assert new.startswith("open-webui-import-")
    assert spec(box, "qdrant.drop")["prefixes"] == ["open-webui"], "what the box had indexed before"
    assert any(new.encode() in data for _, data in box.seen.files) or new in "".join(box.seen.commands)


def test_an_n8n_gets_a_key_for_the_kit_and_leaves_the_vectors(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(standing.ANSWERS, "imports.stage", {**FOUND, "kind": "n8n", "label": "n8n"})
    key = tmp_path / "key"
    key.write_text(WORD + "\n")
    assert run(["import", "/srv/old", "--yes", "--key-file", str(key)]) == 0
    out = capsys.readouterr()
    assert "mara@example.org" in out.out
    done = steps(box)
    assert done.index("imports.started") < done.index("imports.api_key") < done.index("box.activate")
    assert not {"imports.documents", "qdrant.drop"} & set(done)
    assert spec(box, "restore.swap")["units"] == ["ownstack-n8n"]
    assert WORD not in "\n".join(box.seen.commands) + out.out + out.err
    assert [path.endswith("/word") for path, data in box.seen.files if WORD.encode() in data] == [True]


def test_one_that_does_not_verify_is_taken_back(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict(monkeypatch, Outcome.failed("no sign-in"))
    assert run(["import", "/srv/old", "--json", "--yes"]) == 1
    error = told(capsys)["error"]
    assert error["code"] == "import-reverted"
    assert "no sign-in" in error["message"]
    done = steps(box)
    assert "restore.finish" not in done
    back = done.index("restore.revert")
    assert "secrets.fill" in done[back:]
    assert "box.activate" in done[back:]
    assert spec(box, "qdrant.drop")["prefixes"] == [spec(box, "imports.documents")["qdrant"]["new"]]


def test_a_fault_of_ours_leaves_no_box_with_half_of_an_import(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> None:
        raise ValueError("of ours")

    monkeypatch.setattr("ownstack.verify.runner.verify", broken)
    assert run(["import", "/srv/old", "--json", "--yes"]) == 1
    error = told(capsys)["error"]
    assert error["code"] == "import-reverted"
    assert "a fault of ownstack (ValueError: of ours)" in error["message"]
    assert "restore.revert" in steps(box)


def test_without_consent_what_was_laid_ready_goes_again(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["import", "/srv/old", "--json"]) == 2
    assert told(capsys)["error"]["code"] == "usage"
    done = steps(box)
    assert "restore.revert" in done
    assert "restore.swap" not in done


def test_what_lies_here_is_uploaded_and_goes_afterwards(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(standing.ANSWERS, "imports.find", {"there": False})
    assert run(["import", str(flows(tmp_path / "volume")), "--json", "--yes"]) == 0
    capsys.readouterr()
    done = steps(box)
    assert done.index("imports.received") < done.index("imports.stage") < done.index("artifacts.remove")
    assert spec(box, "imports.stage")["path"] == "/var/lib/ownstack/work/import"
    assert any(path.startswith("/var/lib/ownstack/work/import.tar") for path, _ in box.seen.files)


def test_a_full_disk_here_is_told_as_that(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(standing.ANSWERS, "imports.find", {"there": False})
    monkeypatch.setattr("ownstack.runner.imports.pack", full)
    assert run(["import", str(flows(tmp_path / "volume")), "--json", "--yes"]) == 1
    error = told(capsys)["error"]
    assert error["code"] == "import-copy"
    assert "TMPDIR" in error["hint"]
    assert "imports.stage" not in steps(box)


def test_a_cut_off_import_is_named_and_taken_back(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ownstack.engine import preflight

    cut = box.state.model_copy(update={"work": {"restore": {"status": "swapped", "import": "n8n"}}})
    box.state = cut
    assert run(["status"]) == 0
    assert "an import was cut off" in capsys.readouterr().out
    monkeypatch.setattr(preflight, "read_state", lambda session, layout: cut.model_copy(update={"work": {}}))
    assert run(["up", "--yes", "--json"]) == 0
    assert "restore.revert" in steps(box)
    assert "an import was cut off: the box is as it was" in capsys.readouterr().err


def test_an_import_that_was_cut_off_before_it_changed_anything_is_named_too(
    box: Box, capsys: pytest.CaptureFixture[str]
) -> None:
    work = {"restore": {"status": "staging", "clean": False, "import": "n8n"}}
    box.state = box.state.model_copy(update={"work": work})
    assert run(["up", "--yes", "--json"]) == 0
    assert "restore.revert" in steps(box)
    assert "an import was cut off: what it had laid ready" in capsys.readouterr().err


def test_passwords_of_imported_accounts_are_nobodys_here(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = {**(box.state.manifest or {}), "imported": {"n8n": {"owner": "mara@example.org"}}}
    box.state = box.state.model_copy(update={"manifest": manifest})
    assert run(["password"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("open_webui: sign in as owner@")
    assert lines[1] == "n8n: its accounts were imported: sign in as you did there"
    assert run(["password", "--reset", "--yes", "--json", "n8n"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["data"]["accounts"]
    assert (row["user"], row["imported"]) == ("mara@example.org", False)
    assert spec(box, "box.write_manifest")["values"]["imported"]["n8n"]["reset"]
