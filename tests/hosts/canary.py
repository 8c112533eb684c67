"""Looks for a box's secrets where none may stand.

On a host, as root: `python3 canary.py look|watch ...`.

`look` searches the journal, /var/log, what the kit wrote and what systemd tells of units.
`watch STOP` looks at the command line and the environment of all processes, every 40 ms or so, until the file STOP is
there; it makes the file STOP.on when it has begun. A service may hold its own secrets in its environment, which root
and its own user alone can read: the environments of users in OWNERS are left out.

Prints JSON: a list of [place, name of the secret]; values are never printed. A secret counts as found plain, in base64
and percent-encoded. Standard library only, Python 3.9.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pwd
import subprocess
import sys
import time
import urllib.parse

SECRETS = "/etc/ownstack/secrets"
FOLDERS = (
    "/var/log",
    "/var/lib/ownstack/log",
    "/var/lib/ownstack/run",
    "/var/lib/ownstack/work",
    "/opt/ownstack/base",
    "/tmp",
)
FILES = ("/var/lib/ownstack/manifest.json", "/var/lib/ownstack/models.json")
OWNERS = ("ownstack-ollama", "ownstack-open-webui", "ownstack-qdrant", "ownstack-n8n")
LISTING = f"cd {SECRETS} && for name in *; do printf '%s %s\\n' $name $(cat $name); done"
LIMIT = 4 << 20  # larger files are programs
PAUSE_S, LONGEST_S = 0.03, 900


def needles(values: dict[str, str]) -> list[tuple[str, bytes]]:
    """(name, bytes to look for) of each secret in each form."""
    found = []
    for name, value in values.items():
        raw = value.encode()
        forms = {raw, urllib.parse.quote(value, safe="").encode()}
        for shift in range(3):  # base64 of it wherever it begins
            text = base64.b64encode(b"\0" * shift + raw)
            forms.add(text[(4 if shift else 0) : len(text) - 4])
        found += [(name, form) for form in forms]
    return found


def of(listing: str) -> dict[str, str]:
    """The secrets of a host by name, from what LISTING prints there. Never print them."""
    return dict(line.split(" ", 1) for line in listing.splitlines())


def secrets() -> dict[str, str]:
    """What is there now; an `up` that has only begun has made none yet."""
    values = {}
    with contextlib.suppress(OSError):
        for name in os.listdir(SECRETS):
            with open(os.path.join(SECRETS, name), encoding="utf-8") as stream:
                values[name] = stream.read().strip()
    return {name: value for name, value in values.items() if value}


def hits(place: str, data: bytes, wanted: list[tuple[str, bytes]]) -> set[tuple[str, str]]:
    return {(place, name) for name, form in wanted if form in data}


def look(wanted: list[tuple[str, bytes]]) -> set[tuple[str, str]]:
    journal = subprocess.run(["journalctl", "--no-pager", "-o", "export"], capture_output=True, check=True).stdout
    units = subprocess.run(["systemctl", "show", "ownstack-*"], capture_output=True, check=True).stdout
    found = hits("journal", journal, wanted) | hits("units", units, wanted)
    paths = [*FILES]
    for folder in FOLDERS:
        for place, _, names in os.walk(folder):
            paths += [os.path.join(place, name) for name in names]
    for path in paths:
        with contextlib.suppress(OSError):
            if os.path.isfile(path) and not os.path.islink(path) and os.path.getsize(path) < LIMIT:
                if "/log/journal/" in path or path.endswith("canary.py"):
                    continue
                with open(path, "rb") as stream:
                    found |= hits(path, stream.read(), wanted)
    return found


def processes(wanted: list[tuple[str, bytes]], own: set[int]) -> set[tuple[str, str]]:
    words, variables = [], []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError):
            with open(f"/proc/{entry}/cmdline", "rb") as stream:
                words.append(stream.read())
            if os.stat(f"/proc/{entry}").st_uid not in own:
                with open(f"/proc/{entry}/environ", "rb") as stream:
                    variables.append(stream.read())
    return hits("argv", b"\0".join(words), wanted) | hits("environment", b"\0".join(variables), wanted)


def owners() -> set[int]:
    return {entry.pw_uid for entry in pwd.getpwall() if entry.pw_name in OWNERS}


def watch(stop: str) -> set[tuple[str, str]]:
    """Secrets may be made meanwhile: they are read again and again too."""
    found: set[tuple[str, str]] = set()
    last: dict[str, str] = {}
    wanted: list[tuple[str, bytes]] = []
    end = time.monotonic() + LONGEST_S
    while not os.path.exists(stop) and time.monotonic() < end:
        now = secrets()
        if now != last:
            last, wanted = now, wanted + needles(now)
        found |= processes(wanted, owners())
        with open(f"{stop}.on", "w"):
            time.sleep(PAUSE_S)
    return found


if __name__ == "__main__":
    result = look(needles(secrets())) if sys.argv[1] == "look" else watch(sys.argv[2])
    print(json.dumps(sorted(result)))
