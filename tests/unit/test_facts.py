"""The state of many paths, by the script that a host runs."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from ownstack.engine.facts import PathStates
from ownstack.engine.session import Session, Target

HOSTILE = ["plain", "it's $x", "back\\slash", "eq=1", "-n", "tab\tname", "ä ü", "100%s"]


def states(paths: list[str], written: str = "") -> list[dict[str, str]]:
    with Session(Target()) as session:
        rc, out, err = session.command(PathStates().command(paths, written))
    assert not rc, err
    return PathStates().process(out.split("\n"))


def test_kind_mode_owner_and_content_in_the_order_asked(tmp_path: Path) -> None:
    for name in HOSTILE:
        (tmp_path / name).write_text(f"{name}\n")
        (tmp_path / name).chmod(0o640)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder").chmod(0o2750)
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "dangling").symlink_to("it's nowhere")
    names = ["none", "link", *HOSTILE[::-1], "folder", "dangling", "plain"]
    found = states([str(tmp_path / name) for name in names])
    assert len(found) == len(names)
    of = dict(zip(names, found, strict=True))
    owner = {"owner": tmp_path.owner(), "group": tmp_path.group()}
    for name in HOSTILE:
        digest = hashlib.sha256(f"{name}\n".encode()).hexdigest()
        assert of[name] == {"kind": "file", "mode": "640", **owner, "sha256": digest, "whose": ""}
    assert of["folder"] == {"kind": "directory", "mode": "2750", **owner, "sha256": "", "whose": ""}
    assert (of["link"]["kind"], of["link"]["mode"]) == ("link", "folder")
    assert (of["dangling"]["kind"], of["dangling"]["mode"]) == ("link", "it's nowhere")
    assert of["none"]["kind"] == "none"


@pytest.mark.parametrize("name", HOSTILE)
def test_whose_a_file_is(tmp_path: Path, name: str) -> None:
    path, record = tmp_path / name, tmp_path / "files.sha256"
    path.write_text("now")
    now, old, forget = hashlib.sha256(b"now").hexdigest(), "0" * 64, "-" * 64

    def whose(*lines: str) -> str:
        record.write_text("".join(f"{line}  {path}\n{old}  {tmp_path}/other\n" for line in lines))
        return states([str(tmp_path / "none"), str(path)], str(record))[1]["whose"]

    assert whose(now) == whose(now, old) == whose(old, now) == whose(old, forget, now) == "ours"
    assert whose(old) == whose(now, forget, old) == "edited"
    assert whose() == whose(now, forget) == whose(old, forget) == ""
    os.unlink(record)
    assert states([str(path)], str(record))[0]["whose"] == ""
