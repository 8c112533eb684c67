"""The zipapp's `__main__`. Python would compile the modules of an archive anew at each start, which takes longer than
most steps; so they are compiled once, and kept.

What was compiled lies beside the archive, for one version of Python. It counts for exactly the archive that it was made
of, and only where its sum is right; else it is made anew, where this account may write there.
"""

from __future__ import annotations

import contextlib
import functools
import marshal
import os
import sys
import zipimport
import zlib
from typing import Any

PACKAGE = "ownstack_runner"


def beside(archive: str) -> str:
    return f"{archive}.{sys.implementation.cache_tag}"


def made_of(archive: str) -> bytes:
    """What the file begins with where it counts."""
    now = os.stat(archive)
    return b"%x %d %d\n" % (sys.hexversion, now.st_size, now.st_mtime_ns)


def kept(archive: str) -> dict[str, bytes]:
    """Module -> its code, as `marshal` writes it; empty where nothing is kept that counts."""
    head = made_of(archive)
    try:
        with open(beside(archive), "rb") as stream:
            data = stream.read()
    except OSError:
        return {}
    body = data[len(head) + 4 :]
    if not data.startswith(head + zlib.crc32(body).to_bytes(4, "big")):
        return {}
    found: dict[str, bytes] = marshal.loads(body)  # noqa: S302 - who can write it can write the archive too
    return found


def keep(archive: str) -> dict[str, bytes]:
    """Compile all modules and keep them. Who may not write there leaves it to Python to compile what is used."""
    import tempfile
    import zipfile

    folder, codes = os.path.dirname(archive), {}
    if not os.access(folder, os.W_OK):
        return {}
    with zipfile.ZipFile(archive) as files:
        for name in files.namelist():
            if name.startswith(PACKAGE + "/"):
                code = compile(files.read(name), f"{archive}/{name}", "exec", dont_inherit=True)
                codes[name[: -len(".py")].replace("/__init__", "").replace("/", ".")] = marshal.dumps(code)
    body = marshal.dumps(codes)
    with contextlib.suppress(OSError):
        handle, part = tempfile.mkstemp(dir=folder)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(made_of(archive) + zlib.crc32(body).to_bytes(4, "big") + body)
            os.chmod(part, 0o644)  # whoever runs a step reads it
            os.replace(part, beside(archive))
        except OSError:
            os.unlink(part)
    return codes


def use(archive: str) -> None:
    """Let the modules of the archive be imported as they were compiled."""
    codes = kept(archive) or keep(archive)
    read = functools.cache(lambda name: marshal.loads(codes[name]))  # noqa: S302 - see above

    class Compiled(zipimport.zipimporter):
        def get_code(self, fullname: str) -> Any:
            return read(fullname) if fullname in codes else super().get_code(fullname)

        def get_filename(self, fullname: str) -> str:  # the inherited one compiles the module
            return str(read(fullname).co_filename) if fullname in codes else super().get_filename(fullname)

    for place in (archive, f"{archive}/{PACKAGE}"):
        sys.path_importer_cache[place] = Compiled(place)


if __name__ == "__main__":
    use(sys.path[0])
    from ownstack_runner.__main__ import main  # type: ignore[import-not-found]

    sys.exit(main(sys.argv[1:]))
