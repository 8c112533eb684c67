"""Notes of a half-fetched blob after a crash: what can be read goes on, what cannot is fetched anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ownstack.runner.ollama_parts import mend

BLOB = "sha256-" + "a" * 64
STEP, TOTAL = 1000, 2500


@pytest.fixture
def blobs(tmp_path: Path) -> Path:
    """Three parts of a blob, as Ollama leaves them."""
    with (tmp_path / f"{BLOB}-partial").open("wb") as stream:
        stream.truncate(TOTAL)
    for number, (part, done) in enumerate(((STEP, 1000), (STEP, 400), (500, 0))):
        note = {"N": number, "Offset": number * STEP, "Size": part, "Completed": done}
        (tmp_path / f"{BLOB}-partial-{number}").write_text(json.dumps(note))
    return tmp_path


def notes(blobs: Path) -> dict[str, str]:
    return {path.name[-1]: path.read_text() for path in sorted(blobs.glob("*-partial-*"))}


def test_whole_notes_stay_as_they_are(blobs: Path) -> None:
    before = notes(blobs)
    assert mend(str(blobs)) == []
    assert notes(blobs) == before
    assert mend(str(blobs / "absent")) == []


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("left", ["", '{"N":1,"Off', "\0" * 40, "[]", '{"N":1}', '"x"'])
def test_a_note_that_was_cut_off_is_fetched_anew_alone(blobs: Path, number: int, left: str) -> None:
    before = notes(blobs)
    (blobs / f"{BLOB}-partial-{number}").write_text(left)
    assert mend(str(blobs)) == [BLOB]
    after = notes(blobs)
    assert json.loads(after[str(number)]) == {**json.loads(before[str(number)]), "Completed": 0}
    assert {k: v for k, v in after.items() if k != str(number)} == {k: v for k, v in before.items() if k != str(number)}
    assert mend(str(blobs)) == []


@pytest.mark.parametrize("case", ["all", "no file", "gap", "other size"])
def test_where_too_little_is_known_the_blob_begins_anew(blobs: Path, case: str) -> None:
    (blobs / f"{BLOB}-partial-1").write_text("")
    other = blobs / ("sha256-" + "b" * 64 + "-partial-0")
    other.write_text(json.dumps({"N": 0, "Offset": 0, "Size": 7, "Completed": 3}))
    if case == "all":
        for number in (0, 2):
            (blobs / f"{BLOB}-partial-{number}").write_text("")
    elif case == "no file":
        (blobs / f"{BLOB}-partial").unlink()
    elif case == "gap":
        (blobs / f"{BLOB}-partial-0").unlink()
    else:
        (blobs / f"{BLOB}-partial").write_bytes(bytes(2600))
    assert mend(str(blobs)) == [BLOB]
    assert list(blobs.glob(f"{BLOB}-partial-*")) == []
    assert other.exists()


def test_a_link_is_not_written_through(blobs: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (blobs / f"{BLOB}-partial-1").unlink()
    (blobs / f"{BLOB}-partial-1").symlink_to(outside)
    with pytest.raises(OSError, match="symbolic link"):
        mend(str(blobs))
    assert outside.read_text() == "mine"
