#!/usr/bin/env python3
"""Make and sign the bundle that `ownstack upgrade --self` takes.

    python -m tools.bundle key FILE              a new secret key without a password, 0600; prints the public one
    python -m tools.bundle make FOLDER --key FILE [--comment TEXT]
                                                 ownstack-data.tar.gz and its .minisig, made of this checkout's data

`minisign -G -W -s FILE` makes such a key too, and `minisign -Vm ownstack-data.tar.gz -P RW...` checks what was made.
The serial stands in roles/data.toml: raise it first. The key must lie outside of the checkout.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src")]

from ownstack.bundle import check, minisign, pack  # noqa: E402
from ownstack.bundle.files import own_files  # noqa: E402
from ownstack.bundle.source import NAME, SIGNATURE  # noqa: E402
from ownstack.errors import ConfigError, OwnstackError  # noqa: E402


def outside(path: Path) -> Path:
    """A secret never lies in the checkout, where it could be committed."""
    if path.resolve().is_relative_to(ROOT):
        raise ConfigError(f"{path} lies in the checkout", hint="keep the key elsewhere")
    return path


def new_key(path: Path) -> minisign.PublicKey:
    """Write a new secret key. Raises FileExistsError rather than overwrite one."""
    key = minisign.SecretKey.make()
    handle = os.open(outside(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="ascii") as stream:
        stream.write(key.text())
    return key.public


def make(folder: Path, secret: Path, comment: str = "") -> Path:
    """Pack this kit's data into `folder`, signed; what users' programs check is checked first. Gives the path."""
    key = minisign.SecretKey.parse(outside(secret).read_text(encoding="ascii"))
    content = pack.pack({name: path.read_bytes() for name, path in own_files().items()})
    about, files = pack.unpack(content)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    signature = minisign.sign(content, key, comment or f"ownstack data {about['serial']}, needs {about['needs']}")
    check.look(files, int(about["serial"]))
    path.write_bytes(content)
    (folder / f"{NAME}{SIGNATURE}").write_text(signature, encoding="utf-8")
    return path


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("key").add_argument("file", type=Path)
    making = commands.add_parser("make")
    making.add_argument("folder", type=Path)
    making.add_argument("--key", type=Path, required=True)
    making.add_argument("--comment", default="")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "key":
            print(new_key(chosen.file).text)
        else:
            path = make(chosen.folder, chosen.key, chosen.comment)
            print(f"{path}, {path.stat().st_size} bytes, and {path.name}{SIGNATURE}")
    except (OwnstackError, OSError, minisign.SignatureError) as error:
        print(f"error: {getattr(error, 'message', error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
