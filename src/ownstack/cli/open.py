"""`ownstack open`: the browser, through an SSH tunnel where the box is elsewhere."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import ConfigError, RunError, UnreachableError
from .output import emit_json, fail, note, say
from .site import open_site, read_settings, target_options

if TYPE_CHECKING:
    from ..engine.session import Target
    from ..plan import Plan

ROLES = {"open-webui": "open_webui", "n8n": "n8n"}


def free_port(wanted: int) -> int:
    """`wanted` where nothing here listens on it, else a free one."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise RunError("no free port on this machine")


def ssh_command(target: Target, forwards: list[tuple[int, int]]) -> list[str]:
    """The ssh command that forwards local ports to the box's loopback, as the user's own ssh would."""
    command = ["ssh", "-N", "-o", "ExitOnForwardFailure=yes", "-o", "BatchMode=yes"]
    if target.ssh_config:
        command += ["-F", target.ssh_config]
    if target.port:
        command += ["-p", str(target.port)]
    for local, remote in forwards:
        command += ["-L", f"127.0.0.1:{local}:127.0.0.1:{remote}"]
    return [*command, "--", f"{target.user}@{target.hostname}" if target.user else target.hostname]


def tunnel(target: Target, forwards: list[tuple[int, int]]) -> subprocess.Popen[bytes]:
    """Start the tunnel and wait until it carries. Raises RunError with ssh's own words."""
    if shutil.which("ssh") is None:
        raise RunError("there is no ssh program here", hint="install OpenSSH's client")
    process = subprocess.Popen(ssh_command(target, forwards), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    for _ in range(150):
        if process.poll() is not None:
            words = process.stderr.read().decode().strip() if process.stderr else ""
            raise RunError(f"the tunnel to {target.name} ended: {words}", hint=f"try `ssh {target.name}` by hand")
        with socket.socket() as probe:
            probe.settimeout(0.5)
            if probe.connect_ex(("127.0.0.1", forwards[0][0])) == 0:
                return process
        time.sleep(0.1)
    process.terminate()
    raise RunError(f"the tunnel to {target.name} does not answer")


def remote_ports(plan: Plan, role: str) -> list[int]:
    """The port asked for first, then those of the other pages, which link to each other."""
    wanted = [plan.role(role).ports["port"]]
    return wanted + [plan.role(name).ports["port"] for name in ROLES.values() if name != role and plan.has(name)]


@click.command()
@target_options
@click.option("--no-browser", is_flag=True, help="Only print the address (and keep the tunnel open).")
@click.argument("page", type=click.Choice(list(ROLES)), default="open-webui")
def open(
    host: str | None, config_file: str | None, sets: tuple[str, ...], sudo_password_file: Path | None,
    as_json: bool, verbose: int, no_browser: bool, page: str,
) -> int:  # fmt: skip
    """Open Open WebUI (or n8n) in the browser; for a box elsewhere through an SSH tunnel."""
    from ..engine.session import Target

    settings = read_settings(config_file, sets, host=host)
    with open_site(settings, sudo_password_file) as site:
        plan = site.recorded_plan()
    role = ROLES[page]
    if not plan.has(role):
        raise ConfigError(f"{page} is not part of this box", hint="`ownstack config set roles` changes what is")
    target = Target.parse(settings.base.host, os.environ.get("OWNSTACK_SSH_CONFIG", ""))
    ports = remote_ports(plan, role)
    if target.local:
        return _show(f"http://127.0.0.1:{ports[0]}/", as_json, no_browser)
    forwards = [(free_port(port), port) for port in ports]
    for end in (signal.SIGTERM, signal.SIGHUP):  # ended in any way, the tunnel goes too
        signal.signal(end, signal.default_int_handler)
    process = tunnel(target, forwards)
    try:
        _show(f"http://127.0.0.1:{forwards[0][0]}/", as_json, no_browser)
        n8n = plan.role("n8n").ports["port"] if plan.has("n8n") else 0
        for local, remote in forwards:
            if remote == n8n != local:  # port 5678 is taken here, and n8n knows only its own
                note(f"n8n shows its webhooks with port {remote}; from here they are at http://127.0.0.1:{local}/")
        note("The tunnel stays open until you press Ctrl-C.")
        process.wait()
        words = process.stderr.read().decode(errors="replace").strip() if process.stderr else ""
        message = f"the tunnel to {target.name} ended{': ' if words else ''}{words}"
        error = UnreachableError(message, hint="run the same command again: it makes a new one")
        return fail("open", False, error, error.exit_code)  # the one envelope has been printed
    except KeyboardInterrupt:
        note("")
    finally:
        process.terminate()
    return 0


def _show(address: str, as_json: bool, no_browser: bool) -> int:
    if as_json:
        emit_json("open", {"address": address})
    else:
        say(address)
    sys.stdout.flush()
    if (
        not no_browser
        and not as_json
        and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or sys.platform == "darwin")
    ):
        webbrowser.open(address)
    return 0
