"""Unpacking: every format, and archives that want out of their folder."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import stat
import subprocess
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from ownstack.runner.core import StepError
from ownstack.runner.unpack import unpack

# name, content or link target, kind, mode
Member = tuple[str, str, bytes, int]
FILE, LINK, HARD, FOLDER, FIFO = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE
TREE: list[Member] = [
    ("top/", "", FOLDER, 0o755),
    ("top/bin/", "", FOLDER, 0o755),
    ("top/bin/program", "#!/bin/sh\n", FILE, 0o755),
    ("./top/share/read.me", "words", FILE, 0o644),
    ("top/bin/alias", "program", LINK, 0o777),
    ("top/bin/same", "top/bin/program", HARD, 0o755),
]


def tar(members: list[Member]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for name, content, kind, mode in members:
            info = tarfile.TarInfo(name)
            info.type, info.mode = kind, mode
            if kind in (LINK, HARD):
                info.linkname = content
                made.addfile(info)
            else:
                info.size = len(content)
                made.addfile(info, io.BytesIO(content.encode()))
    return out.getvalue()


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-cq"], input=data, capture_output=True, check=True).stdout


def packed(data: bytes, form: str) -> bytes:
    if form == "tar.gz":
        return gzip.compress(data)
    if form == "tar.xz":
        return lzma.compress(data)
    return zstd(data) if form == "tar.zst" else data


def run(tmp_path: Path, data: bytes, form: str, **rule: Any) -> Path:
    archive = tmp_path / "archive"
    archive.write_bytes(data)
    folder = tmp_path / "in" / "folder"
    folder.mkdir(parents=True, exist_ok=True)
    unpack(str(archive), str(folder), {"format": form, **rule})
    return folder


def refused(tmp_path: Path, data: bytes, form: str = "tar", **rule: Any) -> StepError:
    before = outside(tmp_path)
    with pytest.raises(StepError) as caught:
        run(tmp_path, data, form, **rule)
    assert outside(tmp_path) == before
    return caught.value


def outside(tmp_path: Path) -> set[str]:
    """All that lies beside the folder that is unpacked into."""
    return {str(p) for p in tmp_path.rglob("*") if "folder" not in p.parts} - {
        str(tmp_path / "archive"), str(tmp_path / "in")
    }  # fmt: skip


@pytest.mark.parametrize("form", ["tar", "tar.gz", "tar.xz", "tar.zst"])
def test_each_tar_gives_the_same_tree(form: str, tmp_path: Path) -> None:
    folder = run(tmp_path, packed(tar(TREE), form), form, strip=1)
    assert (folder / "bin/program").read_text() == "#!/bin/sh\n"
    assert stat.S_IMODE((folder / "bin/program").stat().st_mode) == 0o755
    assert stat.S_IMODE((folder / "share/read.me").stat().st_mode) == 0o644
    assert os.readlink(folder / "bin/alias") == "program"
    assert (folder / "bin/same").stat().st_ino == (folder / "bin/program").stat().st_ino


def test_only_what_is_included_and_below_the_named_folder(tmp_path: Path) -> None:
    folder = run(tmp_path, tar(TREE), "tar", strip=1, include=["share/*"], to="sub")
    assert [str(p.relative_to(folder)) for p in sorted(folder.rglob("*")) if p.is_file()] == ["sub/share/read.me"]


def test_nothing_may_be_written_by_others_or_run_as_another(tmp_path: Path) -> None:
    folder = run(tmp_path, tar([("file", "x", FILE, 0o6777)]), "tar")
    assert stat.S_IMODE((folder / "file").stat().st_mode) == 0o755


def test_raw_is_one_program(tmp_path: Path) -> None:
    folder = run(tmp_path, b"program", "raw", name="qdrant", to="bin")
    assert (folder / "bin/qdrant").read_bytes() == b"program"
    assert os.access(folder / "bin/qdrant", os.X_OK)


def zipped(*names: str, mode: int = 0) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        for name in names:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            made.writestr(info, "content")
    return out.getvalue()


def test_zip(tmp_path: Path) -> None:
    folder = run(tmp_path, zipped("w/a/run", "w/a/text", "w/b/"), "zip", strip=1, executable=["a/run"])
    assert stat.S_IMODE((folder / "a/run").stat().st_mode) == 0o755
    assert stat.S_IMODE((folder / "a/text").stat().st_mode) == 0o644
    assert refused(tmp_path, zipped("../evil"), "zip").code == "unpack-unsafe"
    assert refused(tmp_path, zipped("/evil"), "zip").code == "unpack-unsafe"


ESCAPES: dict[str, list[Member]] = {
    "parent": [("../evil", "x", FILE, 0o644)],
    "deep-parent": [("a/b/../../../evil", "x", FILE, 0o644)],
    "absolute": [("/tmp/ownstack-evil", "x", FILE, 0o644)],
    "parent-folder": [("../evil/", "", FOLDER, 0o755)],
    "absolute-link": [("link", "/etc", LINK, 0o777)],
    "parent-link": [("link", "..", LINK, 0o777), ("link/evil", "x", FILE, 0o644)],
    # each link alone stays inside by its words; together they lead out
    "link-over-link": [
        ("a/b/c", "../..", LINK, 0o777),
        ("a/b/c/d", "../..", LINK, 0o777),
        ("d/evil", "x", FILE, 0o644),
    ],
    "link-over-link-alone": [("a/b/c", "../..", LINK, 0o777), ("a/b/c/d", "../..", LINK, 0o777)],
    "folder-over-link": [
        ("a/b/c", "../..", LINK, 0o777),
        ("a/b/c/d", "../..", LINK, 0o777),
        ("d/evil/", "", FOLDER, 0o755),
    ],
    "hard-link": [("same", "../../outside", HARD, 0o644)],
    "hard-link-over-link": [
        ("a/b/c", "../..", LINK, 0o777),
        ("a/b/c/d", "../..", LINK, 0o777),
        ("same", "d/outside", HARD, 0o644),
    ],
    "pipe": [("pipe", "", FIFO, 0o644)],
    "device": [("null", "", tarfile.CHRTYPE, 0o666)],
}


@pytest.mark.parametrize("case", ESCAPES)
def test_an_archive_that_wants_out_is_refused(case: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/outside").write_text("not yours")
    (tmp_path / "outside").write_text("not yours")
    assert refused(tmp_path, tar(ESCAPES[case])).code == "unpack-unsafe"
    assert (tmp_path / "in/outside").stat().st_nlink == 1
    assert not Path("/tmp/ownstack-evil").exists()


def test_a_file_over_a_link_takes_the_links_place(tmp_path: Path) -> None:
    folder = run(
        tmp_path,
        tar([("real", "kept", FILE, 0o644), ("name", "real", LINK, 0o777), ("name", "new", FILE, 0o644)]),
        "tar",
    )
    assert (folder / "real").read_text() == "kept"
    assert (folder / "name").read_text() == "new"


@pytest.mark.parametrize("form", ["tar", "tar.gz", "tar.xz", "tar.zst", "zip"])
@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_damaged_archive_is_an_error_with_a_name(form: str, damage: str, tmp_path: Path) -> None:
    members: list[Member] = [(f"file{i}", os.urandom(3000).hex(), FILE, 0o644) for i in range(20)]
    data = zipped("a", "b") if form == "zip" else packed(tar(members), form)
    error = refused(tmp_path, data[: len(data) // 2] if damage == "cut" else b"not an archive" * 100, form)
    assert error.code == "unpack-broken"


def test_an_unknown_format_and_a_missing_zstd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "rar" in refused(tmp_path, b"", "rar").message
    data = zstd(tar(TREE))
    monkeypatch.setenv("PATH", "/nowhere")
    error = refused(tmp_path, data, "tar.zst")
    assert error.code == "need-zstd"
    assert "zstd" in error.hint
