"""Secrets: made once, readable by one account only, and never told."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ownstack.runner import __main__ as entry
from ownstack.runner import secrets
from ownstack.runner.core import Event, StepError

WANTED = [
    {"name": "key", "kind": "token", "length": 43},
    {"name": "salt", "kind": "hex", "length": 63},
    {"name": "password", "kind": "password", "length": 20},
]


def silent(event: Event) -> None:
    """Nobody listens."""


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """The steps set the process's umask; other tests keep theirs."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "secrets"
    made.mkdir(mode=0o700)
    return made


def spec(folder: Path) -> dict[str, Any]:
    return {"secrets_dir": str(folder), "secrets": WANTED}


def test_each_kind_has_its_letters_and_length() -> None:
    for _ in range(50):
        assert re.fullmatch(r"[A-Za-z0-9]{43}", secrets.make("token", 43))
        assert re.fullmatch(r"[0-9a-f]{63}", secrets.make("hex", 63))
        word = secrets.make("password", 8)
        assert re.fullmatch(r"(?=.*[a-z])(?=.*[A-Z])(?=.*[0-9])[A-Za-z0-9]{8}", word)
    assert len({secrets.make("token", 43) for _ in range(100)}) == 100


def test_secrets_are_made_once_for_their_owner_alone(folder: Path) -> None:
    assert secrets.ensure({**spec(folder), "dry": True}, silent)["changed"]
    assert list(folder.iterdir()) == []
    assert secrets.ensure(spec(folder), silent)["data"]["made"] == ["key", "salt", "password"]
    values = {path.name: path.read_text() for path in folder.iterdir()}
    assert sorted(values) == ["key", "password", "salt"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert not secrets.ensure(spec(folder), silent)["changed"]
    more = {**spec(folder), "secrets": [*WANTED, {"name": "later", "kind": "token", "length": 20}]}
    assert secrets.ensure(more, silent)["data"]["made"] == ["later"]
    assert {name: (folder / name).read_text() for name in values} == values


def test_an_empty_secret_is_never_made_anew_while_it_may_be_in_use(folder: Path) -> None:
    (folder / "key").write_text("")
    secrets.ensure(spec(folder), silent)
    assert (folder / "key").read_text() == ""


def opening(folder: Path, data: Path) -> dict[str, Any]:
    """The first secret opens data, as n8n's key does."""
    opens = {
        "data": [str(data / "config"), str(data / "database.sqlite")],
        "held_in": [str(data / "config"), "encryptionKey"], "code": "n8n-key",
    }  # fmt: skip
    return {"secrets_dir": str(folder), "secrets": [{**WANTED[0], "services": ["n8n"], "opens": opens}, *WANTED[1:]]}


@pytest.mark.parametrize(
    ("name", "text", "copy"),
    [
        ("config", '{"encryptionKey": "CANARY"}', True),
        ("config", "{", False),
        ("config", "[]", False),
        ("database.sqlite", "rows", False),
    ],
)
def test_what_opens_data_is_never_made_anew_while_the_data_is_there(
    name: str, text: str, copy: bool, folder: Path, tmp_path: Path
) -> None:
    data, active = tmp_path / "n8n", tmp_path / "active"
    for path in (data, active):
        path.mkdir()
    (active / "n8n").touch()
    (data / name).write_text(text)
    told = {**opening(folder, data), "active_dir": str(active)}
    for spec in ({**told, "dry": True}, told):
        with pytest.raises(StepError, match="no other one is made") as caught:
            secrets.ensure(spec, silent)
        assert caught.value.code == "n8n-key"
        assert f"put the right key back into {folder}/key" in caught.value.hint
        assert (f"`encryptionKey` in {data}/config" in caught.value.hint) == copy
        assert "CANARY" not in caught.value.hint + caught.value.message
        assert list(folder.iterdir()) == [], "nothing was made at all"
        assert (active / "n8n").exists(), "what runs is not started anew"
    (folder / "key").write_text("put back\n")
    assert secrets.ensure(told, silent)["data"]["made"] == ["salt", "password"]
    assert (folder / "key").read_text() == "put back\n"


def test_what_opens_data_is_made_where_there_is_no_data_yet(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "n8n").mkdir()
    assert "key" in secrets.ensure(opening(folder, tmp_path / "n8n"), silent)["data"]["made"]


@pytest.mark.parametrize("name", ["../key", "a/b", "", "Key", "key\n", ".hidden"])
def test_names_are_plain(name: str, folder: Path) -> None:
    with pytest.raises(StepError):
        secrets.write_secret(str(folder), name, "x")
    assert list(folder.iterdir()) == []


def test_what_was_stored_is_read_and_what_is_missing_is_named(folder: Path) -> None:
    secrets.write_secret(str(folder), "api_key", "value-1")
    assert secrets.read_secret(str(folder), "api_key") == "value-1"
    with pytest.raises(StepError) as caught:
        secrets.read_secret(str(folder), "other")
    assert caught.value.code == "secret-missing"
    assert "other" in caught.value.message


def filled(folder: Path, path: Path, content: str, mode: str = "0640", **changes: Any) -> dict[str, Any]:
    item = {"path": str(path), "content": content, "mode": mode, "owner": "", "group": ""}
    return {"secrets_dir": str(folder), "files": [item], **changes}


def test_files_are_filled_with_their_mode_and_only_when_they_differ(folder: Path, tmp_path: Path) -> None:
    secrets.write_secret(str(folder), "key", "VALUE")
    path = tmp_path / "config"
    wanted = filled(folder, path, "a=@@secret:key@@\nb=@@secret:key@@ @@ secret:key\n")
    assert secrets.fill({**wanted, "dry": True}, silent)["changed"]
    assert not path.exists()
    assert secrets.fill(wanted, silent) == {"changed": True, "data": {"files": [str(path)]}}
    assert path.read_text() == "a=VALUE\nb=VALUE @@ secret:key\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert not secrets.fill(wanted, silent)["changed"]
    path.chmod(0o644)
    assert secrets.fill(wanted, silent)["changed"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    secrets.write_secret(str(folder), "key", "OTHER")
    assert secrets.fill({**wanted, "dry": True}, silent)["changed"]
    assert secrets.fill(wanted, silent)["changed"]
    assert "OTHER" in path.read_text()


def test_a_service_starts_anew_when_its_file_gets_another_secret(folder: Path, tmp_path: Path) -> None:
    """The plan is the same then: only the mark of the service that runs says that it has read another one."""
    mark, path, record = tmp_path / "active/qdrant", tmp_path / "config", str(tmp_path / "written")
    mark.parent.mkdir()
    services = ["qdrant", "never-started"]
    wanted = filled(folder, path, "@@secret:key@@", services=services, active_dir=str(mark.parent), record=record)
    secrets.write_secret(str(folder), "key", "VALUE")
    secrets.fill(wanted, silent)
    mark.write_text("fingerprint")
    path.chmod(0o644)
    assert secrets.fill(wanted, silent)["changed"]
    assert mark.exists(), "the same content: it goes on"
    secrets.write_secret(str(folder), "key", "OTHER")
    assert secrets.fill({**wanted, "dry": True}, silent)["changed"]
    assert mark.exists()
    secrets.fill(wanted, silent)
    assert not mark.exists()
    mark.write_text("fingerprint")
    path.write_text("of its owner")
    secrets.write_secret(str(folder), "key", "THIRD")
    assert secrets.fill(wanted, silent)["changed"]
    assert mark.exists(), "an edited file stays, and what has read it goes on"


def test_a_file_that_its_owner_keeps_elsewhere_starts_nothing_anew(folder: Path, tmp_path: Path) -> None:
    """A link to a file with the planned content is left as it is: each `up` would restart the service."""
    mark, path, record = tmp_path / "active/qdrant", tmp_path / "config", str(tmp_path / "written")
    mark.parent.mkdir()
    wanted = filled(folder, path, "@@secret:key@@", services=["qdrant"], active_dir=str(mark.parent), record=record)
    secrets.write_secret(str(folder), "key", "VALUE")
    secrets.fill(wanted, silent)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    mark.write_text("fingerprint")
    assert not secrets.fill(wanted, silent)["changed"]
    assert mark.exists()


def test_owner_and_group_are_part_of_the_state(folder: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: gives a file to another account")
    secrets.write_secret(str(folder), "key", "VALUE")
    wanted = filled(folder, tmp_path / "config", "@@secret:key@@")
    wanted["files"][0].update(owner="nobody", group="daemon")
    assert secrets.fill(wanted, silent)["changed"]
    assert (tmp_path / "config").owner() == "nobody"
    assert (tmp_path / "config").group() == "daemon"
    assert not secrets.fill(wanted, silent)["changed"]
    os.chown(tmp_path / "config", 0, -1)
    assert secrets.fill(wanted, silent)["changed"]


def test_a_mark_without_its_secret_writes_nothing(folder: Path, tmp_path: Path) -> None:
    wanted = filled(folder, tmp_path / "config", "key=@@secret:never@@")
    assert secrets.fill({**wanted, "dry": True}, silent)["changed"]
    with pytest.raises(StepError):
        secrets.fill(wanted, silent)
    assert not (tmp_path / "config").exists()


def test_no_moment_in_which_others_may_read(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The temporary file too is closed to others, from its first byte on."""
    secrets.write_secret(str(folder), "key", "VALUE")
    seen: list[int] = []
    fsync = os.fsync

    def watched(handle: int) -> None:
        if stat.S_ISREG(os.fstat(handle).st_mode):
            seen.append(stat.S_IMODE(os.fstat(handle).st_mode))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watched)
    os.umask(0)
    secrets.fill(filled(folder, tmp_path / "config", "@@secret:key@@", "0600"), silent)
    assert seen == [0o600]


def test_no_event_of_the_steps_holds_a_value(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill = filled(folder, tmp_path / "config", "@@secret:key@@ @@secret:salt@@ @@secret:password@@")
    missing = filled(folder, tmp_path / "other", "@@secret:key@@ @@secret:never@@")
    for step, given in (("secrets.ensure", spec(folder)), ("secrets.fill", fill), ("secrets.fill", missing)):
        monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(given)))
        entry.main([step])
    told = capsys.readouterr()
    assert '"event": "error"' in told.out
    for path in folder.iterdir():
        assert path.read_text().strip() not in told.out + told.err
    assert (folder / "key").read_text().strip() in (tmp_path / "config").read_text()


def test_only_services_that_read_a_lost_secret_start_anew(folder: Path, tmp_path: Path) -> None:
    active = tmp_path / "active"
    active.mkdir()
    for name in ("reader", "other"):
        (active / name).touch()
    wanted = [{**WANTED[0], "services": ["reader", "never_ran"]}, {**WANTED[1], "services": ["other"]}]
    told = {"secrets_dir": str(folder), "secrets": wanted, "active_dir": str(active)}
    (folder / "salt").write_text("1\n")
    secrets.ensure({**told, "dry": True}, silent)
    assert len(list(active.iterdir())) == 2
    assert secrets.ensure(told, silent)["data"]["made"] == ["key"]
    assert [path.name for path in active.iterdir()] == ["other"]


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.EROFS, "read-only"),
        (errno.ENOSPC, "disk-full"),
        (errno.EPERM, "not-permitted"),
        (errno.EFBIG, "file-too-large"),
    ],
)
def test_what_the_machine_refuses_is_no_fault_of_ours(
    number: int, code: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(spec: Any, emit: Any) -> Any:
        raise OSError(number, os.strerror(number), "/there")

    monkeypatch.setattr(entry, "find", lambda name: refused)
    assert entry.main(["secrets.ensure", "--json", "{}"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["event"], told["code"]) == ("error", code)
    assert "'/there'" in told["message"]
    assert "run again" in told["hint"]
