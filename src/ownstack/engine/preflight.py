"""What is asked before anything changes: which sources answer, what stands on the box, becoming root."""

from __future__ import annotations

import json
import shutil
import urllib.parse
from typing import Any

from pyinfra.api.command import QuoteString, StringCommand

from ..data import Data
from ..errors import ConfigError, RunError
from ..hardware.report import HardwareReport
from ..plan import Layout
from ..settings import Settings
from ..state import BoxState, SourceReport
from .session import Session, read_result, step_command

MODEL_REGISTRY = "registry.ollama.ai"

# python where there is one, else curl or wget; all hosts at once, five seconds at most
ASK = r"""
command -v python3 >/dev/null 2>&1 && exec python3 -c '
import sys, threading, urllib.error, urllib.request
def ask(host):
    try:
        urllib.request.urlopen(urllib.request.Request(host, method="HEAD"), timeout=5)
        reason = ""
    except urllib.error.HTTPError:
        reason = ""
    except Exception as error:
        why = getattr(error, "reason", error)
        reason = str(getattr(why, "strerror", "") or why or "no answer")
    sys.stdout.write(host + "\t" + " ".join(reason.split()) + "\n")
for host in sys.argv[1:]:
    threading.Thread(target=ask, args=(host,)).start()
' "$@"
ask() {
  if command -v curl >/dev/null 2>&1; then
    curl -sS -m 5 -o /dev/null -I "$1" 2>&1 | head -n 1
  elif command -v wget >/dev/null 2>&1; then
    wget -q -T 5 -t 1 --spider "$1" 2>&1 || [ $? = 8 ] || echo "no answer"
  else
    n=${1#*://}; n=${n%%/*}; getent hosts "${n%%:*}" >/dev/null || echo "the name does not resolve"
  fi
}
for h in "$@"; do (r=$(ask "$h" | head -n 1); printf '%s\t%s\n' "$h" "$r") & done; wait
"""


def ask_sources(session: Session, data: Data, settings: Settings) -> SourceReport:
    """Which vendors' hosts answer from the target. With a mirror nothing else is asked."""
    mirror = settings.base.sources.mirror
    ollama = settings.role("ollama")
    registry = ollama.registry or MODEL_REGISTRY
    address = f"{'http' if ollama.registry_insecure else 'https'}://{registry}/"
    hosts = [] if mirror else [f"https://{host}/" for host in data.vendor_hosts()]
    if not mirror or ollama.registry:
        hosts.append(address)
    if not hosts:
        return SourceReport(models="a mirror replaces the network, and it names no model registry (`ollama.registry`)")
    command = StringCommand("sh", "-c", QuoteString(ASK), "sh", *[QuoteString(host) for host in hosts])
    _, out, _ = session.command(command, timeout=40, root=False)
    found = dict(line.split("\t", 1) for line in out.splitlines() if "\t" in line)
    answers = {host: found.get(host, "no answer") for host in hosts}
    models = answers.pop(address)
    vendors = {urllib.parse.urlsplit(host).netloc: reason for host, reason in answers.items()}
    return SourceReport(target=vendors, controller={} if mirror else registries(), models=models)


def registries() -> dict[str, str]:
    """Package registries that this machine has a client for. Whether they answer shows when they are used."""
    return {
        "pypi": "",
        "npm": "",
        "go": "",
        "debian": "" if shutil.which("apt-get") else "this machine has no apt-get",
    }


GET = r"""
if command -v python3 >/dev/null 2>&1; then
  python3 -c 'import sys, urllib.request
print(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())' "$1"
elif command -v curl >/dev/null 2>&1; then curl -sS -m 10 "$1"
else wget -q -T 10 -O - "$1"; fi
"""


def read_existing(session: Session, url: str) -> dict[str, Any]:
    """Version and models of an Ollama that is not ours, asked from the target; empty where it does not answer."""
    found: dict[str, Any] = {}
    for path in ("/api/version", "/api/tags"):
        command = StringCommand("sh", "-c", QuoteString(GET), "sh", QuoteString(url.rstrip("/") + path))
        rc, out, _ = session.command(command, timeout=30, root=False)
        try:
            found |= json.loads(out) if rc == 0 else {}
        except ValueError:
            return {}
    if "version" not in found:
        return {}
    return {
        "existing_ollama": str(found["version"]),
        "existing_models": tuple(sorted(str(model["name"]) for model in found.get("models") or ())),
    }


def read_state(session: Session, layout: Layout) -> BoxState:
    """What the box records of itself; the empty state where none stands."""
    runner = f"{layout.current('base')}/runner"
    step = step_command(runner, "box.state", state_spec(layout))
    rc, out, err = session.command(StringCommand("[ -x", QuoteString(runner), "] || exit 3;", step), timeout=None)
    gone = rc == 3
    if not gone:
        session.layout_runner = runner
        try:
            data = read_result("box.state", rc, out, err)["data"]
        except RunError as error:
            if error.code != RunError.code:
                raise
            data = {}  # it gave no answer at all: a damaged runner, which `up` brings anew
        if data.get("manifest"):
            names = ("manifest", "releases", "services", "work", "unfinished", "holder", "recovered", "edited")
            return BoxState(**{name: data[name] for name in names if name in data})
    rc, out, _ = session.command(StringCommand("cat", QuoteString(layout.manifest)))
    if rc != 0:
        return BoxState()
    try:
        manifest: dict[str, Any] = json.loads(out)
    except ValueError as error:
        raise ConfigError(
            f"{layout.manifest} on {session.target} is damaged: {error}",
            hint="move it aside and run `ownstack up`: data and secrets are kept",
        ) from error
    return BoxState(manifest={"plan": None, **manifest}, gone=gone)


def state_spec(layout: Layout) -> dict[str, Any]:
    return {
        "manifest": layout.manifest,
        "opt": layout.opt,
        "run_dir": f"{layout.var}/run",
        "active_dir": f"{layout.var}/active",
        "journal": f"{layout.var}/journal.jsonl",
        "prefix": layout.prefix,
        "written": layout.written,
    }


def become_root(session: Session, report: HardwareReport, password: str | None) -> None:
    """Use sudo where the login user is not root. A password is tried once, and never more than once."""
    kind = report.host.sudo
    if kind == "root":
        return
    if kind == "passwordless":
        session.use_sudo()
        return
    if kind == "none" or password is None:
        raise RunError(
            f"{report.host.user} needs a password for sudo on {session.target}"
            if kind != "none"
            else f"{report.host.user} cannot use sudo on {session.target}",
            hint='run with a terminal to be asked, or `--sudo-password-file FILE`; or set `scope = "user"`',
            code="no-sudo",
        )
    session.use_sudo(password)
    if not session.sudo_works():
        raise RunError(
            f"sudo on {session.target} refused the password of {report.host.user}",
            hint="it was tried once; run again with the right one",
            code="wrong-sudo-password",
        )
