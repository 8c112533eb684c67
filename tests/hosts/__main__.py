"""Test hosts by hand: see the package's docstring."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from . import Host, Network, Options, purge
from .image import SUITES, layers


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hosts")
    parser.add_argument("what", choices=["image", "demo", "shell", "purge"])
    parser.add_argument("suite", nargs="?", default="bookworm", choices=SUITES)
    parser.add_argument("--no-python", action="store_true")
    parser.add_argument("--locale", default="C.UTF-8")
    parser.add_argument("--sudo", default="free", choices=["free", "password", "none"])
    named = parser.parse_args()
    start = time.monotonic()

    def lap(what: str) -> None:
        print(f"{time.monotonic() - start:6.2f} s  {what}", flush=True)

    for gone in purge():
        lap(f"removed the leftovers of {gone}")
    if named.what == "purge":
        return 0
    options = Options(suite=named.suite, python=not named.no_python, locale=named.locale, sudo=named.sudo)
    layers(options.suite, python=options.python, locale=options.locale)
    lap("image ready")
    if named.what == "image":
        return 0
    with Network.open() as network, Host(network, "demo", options) as host:
        lap("created")
        host.boot()
        lap(f"booted: {host.output('systemctl is-system-running; cat /etc/debian_version')}".replace("\n", ", "))
        if named.what == "shell":
            return subprocess.call(host.ssh()) if sys.stdin.isatty() else _script(host)
        lap(host.output("apt-get update 2>&1 | tail -1"))
    lap("removed")
    return 0


def _script(host: Host) -> int:
    """Without a terminal the shell's commands come from standard input."""
    return subprocess.call([*host.ssh(), "sh", "-s"])


if __name__ == "__main__":
    sys.exit(main())
