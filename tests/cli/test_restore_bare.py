"""`restore` onto a new machine: which backup it makes a box for, with which settings, and when it makes none."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import pytest

from ownstack.cli import restore, restore_bare, run
from ownstack.cli.site import read_settings
from ownstack.engine import preflight
from ownstack.engine.session import MARK, Session, Target
from ownstack.errors import RunError
from ownstack.runner import backup
from ownstack.state import BoxState
from tests.cli import standing
from tests.cli.backing import ABOUT, BOX, box, word
from tests.cli.standing import Box, specs, steps, told
from tests.fixtures.small_box import SmallBox
from tests.unit import machines

__all__ = ["box", "word"]


def bare_machine(
    box: Box, monkeypatch: pytest.MonkeyPatch, names: list[str], about: dict[str, Any] | None = None
) -> None:
    """Nothing stands on it; a folder of it has these backups, which say this of themselves."""
    box.state = BoxState()
    real = standing.runner
    whole = {"schema": 1, "settings": {}, **ABOUT, **(about or {})}

    def answer(text: str) -> list[str] | None:
        if "ls -1 -- /mnt/usb" in text:
            return names
        if "manifest.json" in text and "tar -xOf" in text:
            return [json.dumps(whole)] if about is not None else ["", f"{MARK}2"]
        return real(text)

    def asked(site: Any, plan: Any, listen: Any) -> None:
        raise RunError("made", code="made")

    monkeypatch.setattr(standing, "runner", answer)
    monkeypatch.setattr(restore, "made", asked)


def small_backup(tmp_path: Path, **more: Any) -> str:
    """A real one, on this machine."""
    small = SmallBox(tmp_path / "small", "first")
    return str(backup.make(small.make_spec(versions={}, **more), lambda event: None)["data"]["file"])


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("several", [True, False])
def test_a_new_machine_is_not_made_into_one_of_several_boxes(
    several: bool, there: bool, box: Box, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    names = [f"ownstack-box-{letter * 12}-20260101T000000Z.tar" for letter in ("ab" if several else "a")]
    settings = {"network.n8n": "internet", "sources.mirror": "https://foreign.example"}
    bare_machine(box, monkeypatch, names if there else [], {"settings": settings})
    folder = Path("/mnt/usb")
    if not there:
        folder = Path(small_backup(tmp_path, mark="a" * 12)).parent
        for name in names[1:]:
            (folder / name).write_text("x")
    assert run(["restore", str(folder), "--yes", "--json", "--passphrase-file", word]) == 1
    error = told(capsys)["error"]
    assert error["code"] == ("several-boxes" if several else "made")
    assert steps(box) == []
    if there and not several:
        assert run(["restore", str(folder), "--yes", "--passphrase-file", word]) == 1
        said = capsys.readouterr().err
        assert 'settings in the backup: network.n8n = "internet"\n' in said, "those of a place do not come along"


@pytest.mark.parametrize(
    ("about", "code"),
    [
        ({}, "made"),
        ({"versions": {"n8n": "99.0"}}, "backup-newer"),
        ({"services": ["open_webui", "spare_role"]}, "role-missing"),
        ({"schema": 99}, "backup-schema"),
        ({"settings": {"roles": ["ollama", "models", "open_webui", "qdrant"]}}, "role-missing"),
        (None, "backup-damaged"),
    ],
)
@pytest.mark.parametrize("where", ["/mnt/usb", "/mnt/usb/a.tar"])
def test_what_cannot_be_restored_makes_no_box_of_a_new_machine(
    where: str, about: dict[str, Any] | None, code: str, box: Box, word: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The settings of a backup that lies on that machine count too: with them it has no n8n."""
    names = [where] if where.endswith(".tar") else [f"ownstack-box-{'a' * 12}-20260101T000000Z.tar"]
    bare_machine(box, monkeypatch, names, about)
    assert run(["restore", where, "--yes", "--json", "--passphrase-file", word]) == 1
    error = told(capsys)["error"]
    assert error["code"] == code, error
    assert steps(box) == [], "nothing was changed"


@pytest.mark.parametrize(
    ("make", "rc", "code"),
    [("nothing", 2, "no-backup"), ("an empty folder", 2, "no-backup"), ("a damaged file", 1, "backup-damaged")],
)
def test_no_box_is_made_for_a_backup_that_is_none(
    make: str, rc: int, code: str, box: Box, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A wrong name was told when the new machine had been made into a box, some minutes later."""
    bare_machine(box, monkeypatch, [])
    path = tmp_path / "mine"
    if make == "an empty folder":
        path.mkdir()
    if make == "a damaged file":
        path.write_text("x" * 5000)
    assert run(["restore", str(path), "--yes", "--json", "--passphrase-file", word]) == rc
    error = told(capsys)["error"]
    assert error["code"] == code
    assert str(path) in error["message"]
    assert steps(box) == []


@pytest.mark.parametrize("earlier", [False, True])
def test_data_that_an_earlier_box_left_is_not_replaced_unasked(
    earlier: bool, box: Box, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `down`: the programs are gone, what people wrote is there."""
    before, questions = box.state, []

    def made(site: Any, plan: Any, listen: Any) -> Any:
        site.state = before
        return site.recorded_plan()

    def confirm(question: str, yes: bool, as_json: bool) -> None:
        if not yes:
            questions.append(question.split()[0])

    bare_machine(box, monkeypatch, ["/mnt/usb/a.tar"], {})
    if earlier:
        box.state = machines.box(machines.plan(box.report), installed=False)
    monkeypatch.setattr(restore, "made", made)
    monkeypatch.setattr(restore, "confirm", confirm)
    assert run(["restore", "/mnt/usb/a.tar", "--passphrase-file", word]) == 0
    assert questions == (["Make", "Put"] if earlier else ["Make"])


def test_on_a_new_machine_imported_accounts_are_known_as_that(
    box: Box, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, imported = box.state, {"n8n": {"owner": "mara@example.org"}}

    def made(site: Any, plan: Any, listen: Any) -> Any:
        site.state = before
        return site.recorded_plan()

    bare_machine(box, monkeypatch, ["/mnt/usb/a.tar"], {})
    monkeypatch.setattr(restore, "made", made)
    monkeypatch.setitem(standing.ANSWERS, "backup.verify", {**ABOUT, "box": {**BOX, "imported": imported}})
    assert run(["restore", "/mnt/usb/a.tar", "--yes", "--json", "--passphrase-file", word]) == 0
    assert imported in [one["values"].get("imported") for one in specs(box, "box.write_manifest")]


def test_a_box_that_was_made_for_a_backup_which_does_not_open_is_told(
    box: Box, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = box.state
    bare_machine(box, monkeypatch, ["/mnt/usb/a.tar"], {})
    real = standing.runner

    def answer(text: str) -> list[str] | None:
        if "backup.verify" not in text:
            return real(text)
        refused = {"event": "error", "code": "wrong-passphrase", "message": "it cannot be opened", "hint": "no change"}
        return [json.dumps(refused)]

    def made(site: Any, plan: Any, listen: Any) -> Any:
        site.state = before
        return site.recorded_plan()

    monkeypatch.setattr(standing, "runner", answer)
    monkeypatch.setattr(restore, "made", made)
    assert run(["restore", "/mnt/usb/a.tar", "--yes", "--json", "--passphrase-file", word]) == 1
    error = told(capsys)["error"]
    assert error["code"] == "wrong-passphrase"
    assert "stands, empty" in error["hint"]


@pytest.mark.parametrize("where", ["on the machine", "here"])
def test_a_new_machine_gets_a_box_with_the_settings_of_the_backup(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "use": "code",
        "network.n8n": "internet",
        "folders.notes.path": "/srv/n",
        "folders.notes.service": "n8n",
    }
    file = small_backup(tmp_path, settings=settings)
    if where == "here":
        monkeypatch.setattr(restore_bare, "_there", lambda site, path: "")
    with Session(Target()) as session:
        site: Any = types.SimpleNamespace(session=session)
        for path in (file, str(Path(file).parent)):
            held = restore_bare.settings_in(restore_bare.described(site, path), path)
            found = read_settings(None, ("use=rag",), below=held)
            assert found.base.network.n8n == "internet"
            assert found.base.folders["notes"].path == "/srv/n"
            assert found.base.use == "rag", "what is given here wins"
            assert found.origins["network.n8n"] == "backup"
    assert restore_bare.settings_in({}, file) == {}
    with pytest.raises(RunError, match="its settings cannot be read"):
        restore_bare.settings_in({"settings": ["x"]}, file)


def test_a_file_on_the_machine_that_is_no_backup_is_told(tmp_path: Path) -> None:
    (tmp_path / "it's mine.tar").write_text("x" * 5000)
    with Session(Target()) as session, pytest.raises(RunError) as caught:
        restore_bare.described(types.SimpleNamespace(session=session), str(tmp_path / "it's mine.tar"))  # type: ignore[arg-type]
    assert caught.value.code == "backup-damaged"
    assert "it's mine.tar is damaged: it is no backup" in caught.value.message


def test_an_engine_that_only_the_backup_names_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    site: Any = types.SimpleNamespace(session=None, state=BoxState(), plan=lambda: site.state.existing_ollama)
    monkeypatch.setattr(preflight, "read_existing", lambda session, url: {"existing_ollama": f"0.34.2 at {url}"})
    for use, found in (("own", ""), ("existing", "0.34.2 at http://127.0.0.1:11434")):
        site.settings = read_settings(None, (), below={"ollama.use": use})
        made: Any = restore_bare.planned(site)
        assert made == found
