"""Unpacking of archives, bounded to the folder they belong in."""

from __future__ import annotations

import fnmatch
import lzma
import os
import shutil
import stat
import subprocess
import tarfile
import zipfile
import zlib
from typing import IO, Any, cast

from .core import StepError


def inner(name: str, strip: int, include: list[str]) -> str | None:
    """The name that an archive's member gets, or None where it is left out.

    Raises StepError for a name that would leave the folder.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or name.startswith("/"):
        raise StepError(f"the archive names a file outside its folder: {name!r}", code="unpack-unsafe")
    kept = "/".join(parts[strip:])
    if not kept:
        return None
    if include and not any(
        fnmatch.fnmatch(kept, pattern) or kept.startswith(pattern.rstrip("*")) for pattern in include
    ):
        return None
    return kept


def unpack(archive: str, folder: str, rule: dict[str, Any]) -> None:
    """Unpack `archive` into `folder` by an artefact's `unpack` table.

    rule: format (tar.gz, tar.xz, tar.zst, zip, raw), strip, include, to (sub-folder), name and mode (raw).
    """
    target = os.path.realpath(os.path.join(folder, rule.get("to", "")))
    os.makedirs(target, exist_ok=True)
    try:
        _unpack(archive, target, rule)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        raise StepError(f"the archive is damaged: {error}", hint="run again", code="unpack-broken") from error


def _unpack(archive: str, target: str, rule: dict[str, Any]) -> None:
    form = rule["format"]
    strip, include = int(rule.get("strip", 0)), list(rule.get("include", []))
    if form == "raw":
        path = os.path.join(target, rule["name"])
        shutil.copyfile(archive, path)
        os.chmod(path, int(rule.get("mode", "755"), 8))
    elif form == "zip":
        _zip(archive, target, strip, include, rule.get("executable", []))
    elif form == "tar.zst":
        _zstd(archive, target, strip, include)
    elif form in ("tar.gz", "tar.xz", "tar"):
        with tarfile.open(archive, "r:*") as tar:
            _tar(tar, target, strip, include)
    else:
        raise StepError(f"unknown archive format {form!r}")


def _tar(tar: tarfile.TarFile, target: str, strip: int, include: list[str]) -> None:
    for member in tar:
        name = inner(member.name, strip, include)
        if name is None:
            continue
        path = os.path.join(target, name)
        if member.isdir():
            bounded(path, target)
            os.makedirs(path, exist_ok=True)
            continue
        _clear(path, target)
        if member.issym():
            _link(member.linkname, path, target)
        elif member.islnk():
            source = os.path.join(target, inner(member.linkname, strip, []) or "")
            bounded(source, target)
            os.link(source, path)
        elif member.isfile():
            with cast("IO[bytes]", tar.extractfile(member)) as stream, open(path, "wb") as out:
                shutil.copyfileobj(stream, out, 1 << 20)
            os.chmod(path, member.mode & 0o755 | stat.S_IRUSR | stat.S_IWUSR)
        else:
            raise StepError(f"the archive holds a special file: {member.name!r}", code="unpack-unsafe")


def bounded(path: str, target: str) -> None:
    """Raises StepError where `path` lies outside `target` once the links on its way are followed."""
    if not (os.path.realpath(path) + "/").startswith(target + "/"):
        raise StepError(f"the archive names a file outside its folder: {path!r}", code="unpack-unsafe")


def _clear(path: str, target: str) -> None:
    """Make the folder of `path` and take away a link or file that an earlier member left there."""
    bounded(os.path.dirname(path), target)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.islink(path) or os.path.isfile(path):
        os.unlink(path)


def _link(destination: str, path: str, target: str) -> None:
    """A link whose words stay inside, seen from where it really lies: links over links may lie elsewhere."""
    whole = os.path.normpath(os.path.join(os.path.realpath(os.path.dirname(path)), destination))
    if os.path.isabs(destination) or not (whole + "/").startswith(target + "/"):
        raise StepError(f"the archive holds a link that leaves its folder: {destination!r}", code="unpack-unsafe")
    os.symlink(destination, path)


def _zstd(archive: str, target: str, strip: int, include: list[str]) -> None:
    program = shutil.which("zstd") or shutil.which("unzstd")
    if program is None:
        raise StepError(
            "zstd is needed to unpack this archive", hint="install the system package zstd", code="need-zstd"
        )
    process = subprocess.Popen([program, "-dc", archive], stdout=subprocess.PIPE)
    try:
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            _tar(tar, target, strip, include)
    finally:
        if process.stdout is not None:
            process.stdout.close()
        code = process.wait()
    if code not in (0, -13):  # -13: we closed the pipe behind the tar's end mark
        raise StepError(f"zstd ended with {code}", code="unpack-broken")


def _zip(archive: str, target: str, strip: int, include: list[str], executable: list[str]) -> None:
    with zipfile.ZipFile(archive) as held:
        for info in held.infolist():
            name = inner(info.filename, strip, include)
            if name is None or info.is_dir():
                continue
            path = os.path.join(target, name)
            _clear(path, target)
            with held.open(info) as stream, open(path, "wb") as out:
                shutil.copyfileobj(stream, out, 1 << 20)
            runs = (info.external_attr >> 16) & 0o100 or any(fnmatch.fnmatch(name, p) for p in executable)
            os.chmod(path, 0o755 if runs else 0o644)


STEPS: dict[str, Any] = {}
