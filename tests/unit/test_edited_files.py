"""Files that somebody edited: noticed, kept, shown without secrets, given up when asked for."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from ownstack.runner import files, secrets
from ownstack.runner.core import Event

VALUE = "CanaryValueThatNobodyMaySee"


def silent(event: Event) -> None:
    """Nobody listens."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "secrets"
    found.mkdir(0o700)
    secrets.write_secret(str(found), "key", VALUE)
    return found


@pytest.fixture
def record(tmp_path: Path) -> str:
    return str(tmp_path / "files.sha256")


def fill(folder: Path, path: Path, content: str, record: str, **more: Any) -> bool:
    item = {"path": str(path), "content": content, "mode": "0640", "owner": "", "group": ""}
    spec = {"secrets_dir": str(folder), "files": [item], "record": record, **more}
    return bool(secrets.fill(spec, silent)["changed"])


def test_an_edited_one_is_kept_and_ours_lies_beside(folder: Path, tmp_path: Path, record: str) -> None:
    path, new = tmp_path / "env", tmp_path / "env.ownstack-new"
    assert fill(folder, path, "a=@@secret:key@@\n", record)
    assert files.edited(record) == []
    path.write_text("a=mine\n")
    path.chmod(0o666)
    assert files.edited(record) == [str(path)]
    assert fill(folder, path, "a=@@secret:key@@\n", record, dry=True)
    assert not new.exists()
    assert fill(folder, path, "a=@@secret:key@@\n", record)
    assert not fill(folder, path, "a=@@secret:key@@\n", record)
    assert (path.read_text(), new.read_text()) == ("a=mine\n", f"a={VALUE}\n")
    assert {stat.S_IMODE(one.stat().st_mode) for one in (path, new)} == {0o640}
    os.replace(new, path)
    assert files.edited(record) == []
    assert not fill(folder, path, "a=@@secret:key@@\n", record)


def test_another_secret_is_no_edit(folder: Path, tmp_path: Path, record: str) -> None:
    path = tmp_path / "env"
    fill(folder, path, "a=@@secret:key@@\n", record)
    secrets.write_secret(str(folder), "key", "other")
    assert fill(folder, path, "a=@@secret:key@@\n", record)
    assert path.read_text() == "a=other\n"
    assert VALUE not in Path(record).read_text()


def test_what_was_never_recorded_is_ours(folder: Path, tmp_path: Path, record: str) -> None:
    """A box of a version that kept no record."""
    path = tmp_path / "env"
    path.write_text("of an older version\n")
    assert fill(folder, path, "new\n", record)
    assert path.read_text() == "new\n"


def test_cut_off_before_the_file_is_written_the_old_one_is_ours(folder: Path, tmp_path: Path, record: str) -> None:
    path = tmp_path / "env"
    fill(folder, path, "1\n", record)
    files.remember(record, str(path), hashlib.sha256(b"2\n").hexdigest())
    assert files.edited(record) == []
    assert fill(folder, path, "2\n", record)
    assert path.read_text() == "2\n"


def test_a_deleted_one_comes_back(folder: Path, tmp_path: Path, record: str) -> None:
    path = tmp_path / "env"
    fill(folder, path, "1\n", record)
    path.write_text("theirs\n")
    fill(folder, path, "1\n", record)
    path.unlink()
    assert files.edited(record) == []
    assert fill(folder, path, "1\n", record)
    assert not path.with_name("env.ownstack-new").exists()


def test_the_difference_is_shown_without_secrets(folder: Path, tmp_path: Path) -> None:
    plain, secret = tmp_path / "plain", tmp_path / "secret"
    plain.write_text(f"same\nmine with {VALUE}\n")
    secret.write_text(f"a={VALUE}\nmine=1\n")
    spec = {
        "secrets_dir": str(folder),
        "files": [
            {"path": str(plain), "content": "same\nours\n"},
            {"path": str(secret), "content": "a=@@secret:key@@\n"},
        ],
    }
    found = files.differences(spec, silent)
    assert VALUE not in str(found)
    first, second = found["data"]["files"]
    assert first["diff"].splitlines()[-2:] == ["-mine with ***", "+ours"]
    assert second == {"path": str(secret), "diff": ""}
    assert not found["changed"]


def test_who_gives_theirs_up_keeps_it_beside(folder: Path, tmp_path: Path, record: str) -> None:
    path, old = tmp_path / "env", tmp_path / "env.ownstack-old"
    fill(folder, path, "1\n", record)
    spec = {"record": record, "paths": [str(path), str(tmp_path / "never")]}
    assert not files.give_up(spec, silent)["changed"]
    path.write_text("theirs\n")
    assert files.give_up(spec, silent)["data"]["paths"] == [str(path)]
    assert (path.read_text(), old.read_text()) == ("theirs\n", "theirs\n")
    assert files.edited(record) == []
    assert fill(folder, path, "2\n", record)
    assert (path.read_text(), old.read_text()) == ("2\n", "theirs\n")
    assert files.edited(record) == []
    path.write_text("theirs\n")  # the same edit again is one again
    assert files.edited(record) == [str(path)]


def test_a_link_or_a_folder_in_its_place_is_not_read(tmp_path: Path, record: str) -> None:
    files.remember(record, str(tmp_path / "link"), "0" * 64)
    files.remember(record, str(tmp_path / "folder"), "0" * 64)
    (tmp_path / "link").symlink_to("/etc/passwd")
    (tmp_path / "folder").mkdir()
    assert files.edited(record) == []
