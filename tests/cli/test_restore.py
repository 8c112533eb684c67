"""`restore` as a command: what it refuses, in which order it works, what it does when a part fails."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import pytest

from ownstack.cli import run
from ownstack.engine import preflight
from ownstack.engine.session import Session
from ownstack.verify.check import Outcome
from tests.cli import standing
from tests.cli.backing import ABOUT, BOX, WORD, box, word
from tests.cli.standing import Box, spec, specs, steps, told, verdict
from tests.unit import machines

__all__ = ["box", "word"]


def test_a_restore_in_its_order(box: Box, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["restore", "/mnt/b.tar", "--json", "--yes", "--passphrase-file", word]) == 0
    data = told(capsys)["data"]
    assert data["holds"] == ABOUT["holds"]
    assert [check["status"] for check in data["checks"]] == ["ok"]
    done = steps(box)
    order = ["backup.find", "backup.verify", "restore.stage", "restore.swap", "secrets.fill", "box.control",
             "restore.vectors", "restore.models", "box.activate"]  # fmt: skip
    places = [done.index(name) for name in order]
    assert places == sorted(places)
    assert done.index("restore.finish") > max(i for i, name in enumerate(done) if name == "box.activate")
    assert "restore.revert" not in done
    stopped = spec(box, "restore.swap")["units"]
    assert "ownstack-n8n" in stopped
    assert "ownstack-ollama" not in stopped
    assert WORD not in "\n".join(box.seen.commands)


@pytest.mark.parametrize(
    ("services", "versions", "exchanged", "records"),
    [
        (["open_webui"], {"open-webui": "0.1", "qdrant": "1.0"}, ["open_webui", "qdrant"], []),
        (["n8n"], {"n8n": "1.0"}, ["n8n"], ["n8n-content.json"]),
    ],
)
def test_what_is_not_in_the_backup_stays_as_it_is(
    services: list[str], versions: dict[str, str], exchanged: list[str], records: list[str], box: Box, word: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A box that has more than the one of the backup had: with an empty folder in its place the rest would be lost."""
    about = {**ABOUT, "services": services, "versions": versions, "box": {**BOX, "vectors": "open-webui-other"}}
    monkeypatch.setitem(standing.ANSWERS, "backup.verify", about)
    assert run(["restore", "/mnt/b.tar", "--yes", "--passphrase-file", word]) == 0
    for step in ("restore.stage", "restore.swap"):
        assert [one["name"] for one in spec(box, step)["services"]] == exchanged
        assert spec(box, step)["records"] == records
    left = {"open_webui", "n8n", "qdrant"} - set(exchanged)
    said = capsys.readouterr().err
    assert {name for name in left if f"{name} is not in the backup: its data stays" in said} == left


MARA, JO = {"owner": "mara@example.org"}, {"owner": "jo@example.org"}


@pytest.mark.parametrize(
    ("here", "held", "services", "noted"),
    [
        ({}, {"n8n": MARA}, ["open_webui", "n8n"], {"n8n": MARA}),
        ({"n8n": MARA}, {}, ["open_webui", "n8n"], {}),
        ({"n8n": MARA, "open_webui": JO}, {"n8n": JO}, ["n8n"], {"n8n": JO, "open_webui": JO}),
        ({"open_webui": JO}, {"open_webui": MARA, "n8n": MARA}, ["n8n"], {"open_webui": JO, "n8n": MARA}),
        ({"n8n": MARA}, {"n8n": MARA}, ["n8n"], None),
    ],
)
def test_whose_accounts_were_imported_comes_with_their_data(
    here: dict[str, Any], held: dict[str, Any], services: list[str], noted: dict[str, Any] | None, box: Box, word: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """`ownstack password` would name a first password that does not count."""
    box.state = box.state.model_copy(update={"manifest": {**(box.state.manifest or {}), "imported": here}})
    about = {**ABOUT, "services": services, "box": {**BOX, "imported": held}}
    monkeypatch.setitem(standing.ANSWERS, "backup.verify", about)
    assert run(["restore", "/mnt/b.tar", "--json", "--yes", "--passphrase-file", word]) == 0
    told = [one["values"]["imported"] for one in specs(box, "box.write_manifest") if "imported" in one["values"]]
    assert told == ([] if noted is None else [noted])
    done = steps(box)
    assert done.index("restore.finish") > max(i for i, name in enumerate(done) if name == "box.write_manifest")


def test_a_restore_that_does_not_verify_is_taken_back(
    box: Box, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict(monkeypatch, Outcome.failed("no sign-in"))
    assert run(["restore", "/mnt/b.tar", "--json", "--yes", "--passphrase-file", word]) == 1
    error = told(capsys)["error"]
    assert error["code"] == "restore-reverted"
    assert "no sign-in" in error["message"]
    done = steps(box)
    assert "restore.finish" not in done
    back = done.index("restore.revert")
    assert "secrets.fill" in done[back:]
    assert "box.activate" in done[back:]
    assert "files.give_up" not in done[back:], "files that somebody edited were put back with the keys that they hold"


def test_an_edited_file_that_held_replaced_keys_is_named(
    box: Box, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = "/etc/ownstack/n8n/env"
    monkeypatch.setitem(standing.ANSWERS, "files.give_up", {"paths": [path]})
    assert run(["restore", "/mnt/b.tar", "--yes", "--passphrase-file", word]) == 0
    assert f"{path} was edited by hand" in capsys.readouterr().err


def test_where_the_way_back_fails_too_the_first_fault_is_told(
    box: Box, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fault, real = {"event": "error", "code": "disk-full", "message": "no room aside", "hint": "free"}, standing.runner
    monkeypatch.setattr(
        standing, "runner", lambda text: [json.dumps(fault)] if "restore.revert" in text else real(text)
    )
    verdict(monkeypatch, Outcome.failed("no sign-in"))
    assert run(["restore", "/mnt/b.tar", "--json", "--yes", "--passphrase-file", word]) == 1
    error = told(capsys)["error"]
    assert (error["code"], error["hint"].split(": ")[0]) == ("disk-full", "free; then run `ownstack up`")
    assert error["message"].startswith("no room aside (on the way back, after this: open-webui-account: no sign-in")


def test_a_fault_of_ours_leaves_no_box_with_half_of_a_backup(
    box: Box, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> None:
        raise ValueError("of ours")

    monkeypatch.setattr("ownstack.verify.runner.verify", broken)
    assert run(["restore", "/mnt/b.tar", "--json", "--yes", "--passphrase-file", word]) == 1
    error = told(capsys)["error"]
    assert error["code"] == "restore-reverted"
    assert "a fault of ownstack (ValueError: of ours)" in error["message"]
    assert "restore.revert" in steps(box)


def test_an_identity_that_is_not_there_is_told_before_anything_is_made(
    box: Box, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["restore", "/mnt/b.tar", "--json", "--yes", "--identity", "/nowhere/identity"]) == 2
    assert "/nowhere/identity" in told(capsys)["error"]["message"]
    assert box.seen.commands == []


def test_an_identity_may_come_through_a_pipe(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"AGE-SECRET-KEY-1")
    os.close(writing)
    sent: list[str] = []
    private = Session.private

    def keep(self: Session, text: str) -> Any:
        sent.append(text)
        return private(self, text)

    monkeypatch.setattr(Session, "private", keep)
    assert run(["restore", "/mnt/b.tar", "--json", "--yes", "--identity", f"/dev/fd/{reading}"]) == 0
    os.close(reading)
    assert sent == ["AGE-SECRET-KEY-1"]


@pytest.mark.parametrize("fault", ["", "checks", "newer"])
def test_what_was_uploaded_for_a_restore_goes_whatever_becomes_of_it(
    fault: str, box: Box, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = "/var/lib/ownstack/work/restore-b.tar"
    monkeypatch.setitem(standing.ANSWERS, "backup.find", {"file": path})
    if fault == "newer":
        monkeypatch.setitem(standing.ANSWERS, "backup.verify", {**ABOUT, "versions": {"n8n": "99.0"}})
    if fault == "checks":
        verdict(monkeypatch, Outcome.failed("no sign-in"))
    assert run(["restore", path, "--json", "--yes", "--passphrase-file", word]) == (1 if fault else 0)
    assert steps(box)[-1] == "artifacts.remove"
    assert spec(box, "artifacts.remove")["paths"] == [path]


@pytest.mark.parametrize(
    ("about", "code"),
    [
        ({"versions": {"n8n": "99.0"}}, "backup-newer"),
        ({"versions": {"qdrant": "99.0"}}, "backup-newer"),
        ({"services": ["open_webui", "spare_role"]}, "role-missing"),
        ({"services": ["n8n"], "versions": {"qdrant": "1.0"}}, "backup-vectors"),
    ],
)
def test_what_the_box_cannot_read_is_refused_beforehand(
    about: dict[str, Any], code: str, box: Box, word: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setitem(standing.ANSWERS, "backup.verify", {**ABOUT, **about})
    assert run(["restore", "/mnt/b.tar", "--json", "--yes", "--passphrase-file", word]) == 1
    assert told(capsys)["error"]["code"] == code
    assert not [name for name in steps(box) if name.startswith("restore.")]


def test_a_backup_that_is_nowhere_is_told(
    box: Box, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(standing.ANSWERS, "backup.find", {"file": ""})
    assert run(["restore", "/mnt/none", "--json", "--yes", "--passphrase-file", word]) == 2
    assert told(capsys)["error"]["code"] == "no-backup"


def test_another_embedding_model_indexes_documents_anew(
    box: Box, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = machines.plan(box.report)
    embedding = plan.model("embedding")
    assert embedding is not None
    mine = embedding.model_dump(mode="json")
    same = {**BOX, "vectors": "open-webui-before", "models": [mine]}
    monkeypatch.setitem(standing.ANSWERS, "backup.verify", {**ABOUT, "box": same})
    assert run(["restore", "/mnt/b.tar", "--json", "--yes", "--passphrase-file", word]) == 0
    assert "open_webui.reindex" not in steps(box)
    assert any("open-webui-before" in data.decode("utf-8", "replace") for _, data in box.seen.files) or any(
        "open-webui-before" in command for command in box.seen.commands
    )
    other = {**BOX, "models": [{**mine, "tag": "other:1"}]}
    monkeypatch.setitem(standing.ANSWERS, "backup.verify", {**ABOUT, "box": other})
    assert run(["restore", "/mnt/b.tar", "--json", "--yes", "--passphrase-file", word]) == 0
    assert spec(box, "open_webui.reindex")["qdrant"]["old"] == "open-webui"
    assert spec(box, "open_webui.reindex")["carried"]
    assert steps(box).index("open_webui.vectors") < steps(box).index("open_webui.reindex")
    capsys.readouterr()


@pytest.mark.parametrize(("status", "shown"), [("swapped", True), ("reverted", False), ("done", False)])
def test_status_tells_of_a_restore_that_was_cut_off(
    status: str, shown: bool, box: Box, capsys: pytest.CaptureFixture[str]
) -> None:
    box.state = box.state.model_copy(update={"work": {"restore": {"status": status}}})
    assert run(["status"]) == 0
    assert ("restore" in capsys.readouterr().out) == shown


def test_the_next_up_takes_back_what_was_cut_off(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = box.state.model_copy(update={"work": {"restore": {"status": "swapped"}}})
    box.state = cut
    monkeypatch.setattr(preflight, "read_state", lambda session, layout: cut.model_copy(update={"work": {}}))
    assert run(["up", "--yes", "--json"]) == 0
    done = steps(box)
    assert done.index("restore.revert") < done.index("box.write_manifest")
    assert "as it was before it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "step"),
    [
        (["restore", "/mnt/b.tar", "--passphrase-file"], "restore.stage"),
        (["import", "/srv/old"], "imports.stage"),
        (["backup", "--passphrase-file"], "backup.make_outliving"),
        (["backup", "--every", "day", "--passphrase-file"], "backup.arm"),
        (["backup", "--every", "never"], "box.write_manifest"),
        (["password", "--reset"], "n8n.password_reset"),
        (["models", "pull", "another:1b"], "ollama.pull_start"),
    ],
)
def test_an_upgrade_that_was_cut_off_ends_before_anything_else_is_changed(
    words: list[str], step: str, box: Box, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next `up` would put back what the upgrade had copied, and what came meanwhile were gone."""
    standing.cut_off(monkeypatch, box, "n8n")
    monkeypatch.setitem(standing.ANSWERS, "imports.find", {"there": True})
    monkeypatch.setitem(standing.ANSWERS, "backup.place", {"elsewhere": True})
    more = [word] if words[-1] == "--passphrase-file" else []
    run([*words, *more, "--json", *([] if words[0] == "backup" else ["--yes"])])
    done = steps(box)
    assert step in done[done.index("snapshots.revert") :]
    assert step not in done[: done.index("snapshots.revert")]


@pytest.mark.parametrize(
    ("state", "asked"),
    [
        ({"status": "staging", "clean": False}, True),
        ({"status": "done", "clean": False}, True),
        ({"status": "done", "clean": True}, False),
        ({"status": "done"}, False),
    ],
)
def test_the_next_up_takes_away_what_a_restore_had_laid_ready(
    state: dict[str, Any], asked: bool, box: Box, capsys: pytest.CaptureFixture[str]
) -> None:
    box.state = box.state.model_copy(update={"work": {"restore": state}})
    assert run(["up", "--yes", "--json"]) == 0
    assert ("restore.revert" in steps(box)) == asked
    assert ("what it had laid ready" in capsys.readouterr().err) == asked


def test_which_box_it_is_decides_on_what_a_folder_means(box: Box, word: str) -> None:
    from ownstack.engine.backups import mark

    plan = machines.plan(box.report)
    assert run(["restore", "/mnt/usb", "--yes", "--passphrase-file", word]) == 0
    assert spec(box, "backup.find") == {"path": "/mnt/usb", "mark": mark(plan)}
    assert re.fullmatch("[0-9a-f]{12}", mark(plan))
    elsewhere = plan.model_copy(update={"layout": plan.layout.model_copy(update={"var": "/home/anna/box"})})
    assert mark(elsewhere) != mark(plan), "two boxes of one machine"
    host = plan.host.model_copy(update={"machine_id_hash": ""})
    assert mark(plan.model_copy(update={"host": host})) == ""
    assert run(["backup", "--to", "/mnt/usb", "--passphrase-file", word]) == 0
    assert spec(box, "backup.make_outliving")["mark"] == mark(plan)
