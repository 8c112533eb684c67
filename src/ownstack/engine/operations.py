"""The kit's own pyinfra operations. Each finds out by one fact what is to do and yields nothing when nothing is.

They stand where pyinfra's own fall short: `files.download` checks a hash after the move, `server.shell` always
counts as a change, a secret in a template is written as a mask, and each fact costs a round trip.
"""

from __future__ import annotations

import hashlib
import io
import shlex
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Any

from pyinfra.api.command import FileUploadCommand, QuoteString, StringCommand
from pyinfra.api.operation import operation
from pyinfra.context import host, state

from ..plan import ChosenArtifact, ConfigFile, Plan, Service
from ..runner.files import NEW
from . import carry, units, zipapp
from .ahead import ask
from .facts import Accounts, PathStates, StepState
from .session import step_command

Commands = Generator[StringCommand | FileUploadCommand, None, None]


@dataclass(frozen=True)
class Directory:
    """A folder. With `deep` all that is in it changes hands with it: accounts may come back with other numbers.

    `shared`: it may be there already, its owner's, and is then left as it is.
    """

    path: str
    mode: str = "0755"
    owner: str = ""
    group: str = ""
    deep: bool = False
    shared: bool = False


@dataclass(frozen=True)
class Account:
    """A system account with a group of its own name. It has no shell and no password."""

    name: str
    home: str
    groups: tuple[str, ...] = ()


def _owner(item: Directory | ConfigFile) -> str:
    """What `chown` is told; each of the two may be left as it is."""
    return f"{item.owner}:{item.group}" if item.group else item.owner


def _owned(item: Directory | ConfigFile, now: dict[str, str]) -> bool:
    return now["owner"] == (item.owner or now["owner"]) and now["group"] == (item.group or now["group"])


def _mode(text: str) -> str:
    return text.lstrip("0") or "0"


@operation()
def accounts(wanted: Iterable[Account]) -> Commands:
    """Make accounts and join them to those of the named groups that exist here."""
    have = ask(Accounts)
    noop = True
    for account in wanted:
        if account.name in have["users"] and account.name not in have["groups"]:
            noop = False  # the number stays: files belong to it
            number = StringCommand('"$(id -g ', QuoteString(account.name), ')"', _separator="")
            yield StringCommand("groupadd", "--system", "--gid", number, QuoteString(account.name))
        if account.name not in have["users"]:
            noop = False
            group = [] if account.name in have["groups"] else ["--user-group"]
            if not group:
                group = ["--gid", account.name]
            yield StringCommand(
                "useradd", "--system", *group, "--no-create-home", "--home-dir", QuoteString(account.home),
                "--shell", "/usr/sbin/nologin", "--comment", "ownstack", QuoteString(account.name),
            )  # fmt: skip
        missing = [g for g in account.groups if g in have["groups"] and account.name not in have["groups"][g]]
        if missing:
            noop = False
            yield StringCommand("usermod", "--append", "--groups", ",".join(missing), QuoteString(account.name))
    if noop:
        host.noop("all accounts exist")


@operation()
def directories(wanted: list[Directory]) -> Commands:
    """Make folders with their mode and owner, parents first."""
    states = ask(PathStates, paths=[item.path for item in wanted])
    noop = True
    for item, now in zip(wanted, states, strict=True):
        if item.shared and now["kind"] == "directory":
            continue
        if now["kind"] != "directory":
            noop = False
            yield StringCommand("mkdir", "-p", "-m", _mode(item.mode), QuoteString(item.path))
        if not _owned(item, now):
            noop = False
            # with -R the folder itself comes last, so that a run that was cut off is noticed
            option = "-Rh" if item.deep and now["kind"] == "directory" else "-h"
            yield StringCommand("chown", option, QuoteString(_owner(item)), QuoteString(item.path))
        if now["mode"] != _mode(item.mode):
            noop = False
            yield StringCommand("chmod", _mode(item.mode), QuoteString(item.path))
    if noop:
        host.noop("all folders are right")


@operation()
def config_files(wanted: list[ConfigFile], plan: Plan | None = None) -> Commands:
    """Write files that hold no secret: uploaded under a temporary name, then renamed with mode and owner.

    With the plan of the box a file that somebody edited is kept, and ours lies beside it (see runner/files.py).
    """
    if not wanted:
        host.noop("no files")
        return
    paths = [name for item in wanted for name in (item.path, f"{item.path}{NEW}")]
    record = plan.layout.written if plan is not None else ""
    states = ask(PathStates, paths=paths, written=record)
    noop = True
    for item, now, beside in zip(wanted, states[::2], states[1::2], strict=True):
        digest = hashlib.sha256(item.content.encode()).hexdigest()
        same = now["kind"] == "file" and now["sha256"] == digest
        kept = now.get("whose") == "edited" and not same
        right = _owned(item, now) and now["mode"] == _mode(item.mode)
        if kept and not right:
            noop = False
            yield from _settled(item, item.path)
        if not kept and beside["kind"] == "file":
            noop = False
            yield StringCommand("rm", "-f", QuoteString(f"{item.path}{NEW}"))
        place, there = (f"{item.path}{NEW}", beside) if kept else (item.path, now)
        if there["kind"] == "file" and there["sha256"] == digest and (kept or right):
            continue
        noop = False
        yield from _written(record, item, place, digest)
    if noop:
        host.noop("all files are right")


def _settled(item: ConfigFile, path: str) -> Commands:
    if _owner(item):
        yield StringCommand("chown", QuoteString(_owner(item)), QuoteString(path))
    yield StringCommand("chmod", _mode(item.mode), QuoteString(path))


def _written(record: str, item: ConfigFile, place: str, digest: str) -> Commands:
    """Recorded first: cut off in between, both the old and the new content are known as ours."""
    part = f"{place}.part"
    yield FileUploadCommand(io.BytesIO(item.content.encode()), part, remote_temp_filename=host.get_temp_filename(part))
    yield from _settled(item, part)
    if record:
        line = QuoteString(f"{digest}  {item.path}")
        yield StringCommand("printf", "'%s\\n'", line, ">>", QuoteString(record))
    yield StringCommand("mv", "-f", QuoteString(part), QuoteString(place))


@operation()
def step(plan: Plan, step_name: str, spec: dict[str, Any]) -> Commands:
    """A runner step as an operation: nothing to do when the step's dry run says so."""
    runner = units.runner_python(plan)
    now = ask(StepState, runner=runner, step=step_name, spec=spec)
    if not now["changed"]:
        host.noop(f"{step_name}: nothing to do")
        return
    yield step_command(runner, step_name, spec)


def outliving(plan: Plan, step_name: str, spec: dict[str, Any]) -> StringCommand:
    """The command of a long step: it goes on when the connection drops, and the next run is attached to it."""
    told = {
        "step": step_name, "spec": spec, "run_dir": units.run_dir(plan), "manager": plan.manager,
        "unit": plan.layout.unit("step"), "runner": units.runner_python(plan),
    }  # fmt: skip
    return step_command(units.runner_python(plan), "journal.outlive", told)


@operation()
def release(plan: Plan, artifact: ChosenArtifact, component: str = "") -> Commands:
    """One release below `opt/<component>/releases`, and the `current` link to it.

    What does not come from the target's own network was obtained on the controller before (see `carry`).
    """
    runner = units.runner_python(plan)
    spec = release_spec(plan, artifact, component or artifact.name)
    now = ask(StepState, runner=runner, step="artifacts.release", spec=spec)
    if not now["changed"]:
        host.noop(f"{artifact.name} {artifact.version} is there")
        return
    if artifact.way == "carry" and now["data"].get("needs_files", True):
        if not state.is_executing:  # a preview obtains nothing
            yield step_command(runner, "artifacts.release", spec)
            return
        file = carry.held(artifact)
        path = f"{plan.layout.var}/work/{file.sha256}"
        spec["parts"][0].update(sha256=file.sha256, path=path)
        yield FileUploadCommand(str(file.path), path, remote_temp_filename=host.get_temp_filename(path))
        yield step_command(runner, "artifacts.release", spec)
        yield StringCommand("rm", "-f", QuoteString(path))
        return
    yield step_command(runner, "artifacts.release", spec)


def release_spec(plan: Plan, artifact: ChosenArtifact, component: str) -> dict[str, Any]:
    """The specification of `artifacts.release`."""
    layout = plan.layout
    part: dict[str, Any] = {
        "sha256": artifact.sha256,
        "size": artifact.size_bytes,
        "unpack": artifact.details["unpack"],
    }
    if artifact.way == "target":
        part["url"] = artifact.url
    parts = [part]
    if "overlay" in artifact.details:  # an archive that lies over the first (Ollama's ROCm engine)
        over = artifact.details["overlay"]
        parts.append({"url": over["url"], "sha256": over["sha256"], "size": over.get("size"), "unpack": over["unpack"]})
    return {
        "name": artifact.name,
        "version": artifact.version,
        "release": layout.release(component, artifact.version, artifact.digest),
        "current": layout.current(component),
        "work": f"{layout.var}/work",
        "mirror": plan.mirror,
        "parts": parts,
    }


def service_list(plan: Plan, services: list[Service], files: list[ConfigFile]) -> dict[str, Any]:
    """The specification of `box.activate` and `box.control`."""
    return {
        **units.process(plan),
        "active_dir": units.active_dir(plan),
        "services": [units.service_spec(plan, service, files) for service in services],
    }


@operation()
def runner(plan: Plan, python: str) -> Commands:
    """The runner and the wrapper that starts it with the chosen Python."""
    digest = hashlib.sha256(zipapp.runner_zipapp() + python.encode()).hexdigest()
    layout = plan.layout
    release = layout.release("base", plan.kit_version, digest)
    current = layout.current("base")
    wanted = f"releases/{release.rsplit('/', 1)[1]}"
    words = f"{shlex.quote(python)} -I {shlex.quote(release)}/runner.pyz"
    wrapper = f'#!/bin/sh\nPYTHONDONTWRITEBYTECODE=1 exec {words} "$@"\n'
    parts = (("runner.pyz", zipapp.runner_zipapp(), "644"), ("runner", wrapper.encode(), "755"))
    states = ask(PathStates, paths=[*[f"{release}/{name}" for name, _, _ in parts], current])
    # by its bytes: all else on the box is looked at and mended by the runner, so nothing else would mend it
    sound = all(
        now["sha256"] == hashlib.sha256(data).hexdigest() for now, (_, data, _) in zip(states[:2], parts, strict=True)
    )
    if sound and states[2]["kind"] == "link" and states[2]["mode"] == wanted:
        host.noop("the runner is there")
        return
    yield StringCommand("mkdir", "-p", QuoteString(release))
    for name, data, mode in parts:
        path = f"{release}/{name}"
        yield FileUploadCommand(io.BytesIO(data), path, remote_temp_filename=host.get_temp_filename(path))
        yield StringCommand("chmod", mode, QuoteString(path))
    yield StringCommand("ln", "-sfn", QuoteString(wanted), QuoteString(f"{current}.new"))
    yield StringCommand("mv", "-T", QuoteString(f"{current}.new"), QuoteString(current))


@operation()
def bootstrap_python(plan: Plan, artifact: ChosenArtifact) -> Commands:
    """Python for a host that has none: unpacked by tar, because the runner itself needs it."""
    release = plan.layout.release("python", artifact.version, artifact.digest)
    if ask(PathStates, paths=[f"{release}/.ownstack-release.json"])[0]["kind"] == "file":
        host.noop("Python is there")
        return
    if not state.is_executing:
        yield StringCommand("true")
        return
    file = carry.held(artifact)
    path = f"{plan.layout.var}/work/{file.sha256}"
    strip = str(int(artifact.details["unpack"].get("strip", 0)))
    yield FileUploadCommand(str(file.path), path, remote_temp_filename=host.get_temp_filename(path))
    yield StringCommand("echo", QuoteString(f"{file.sha256}  {path}"), "| sha256sum -c -")
    yield StringCommand("rm", "-rf", QuoteString(f"{release}.new"), "&&", "mkdir", "-p", QuoteString(f"{release}.new"))
    yield StringCommand(
        "tar", "-xzf", QuoteString(path), "-C", QuoteString(f"{release}.new"), "--strip-components", strip
    )
    note = '{"name": "python", "version": "' + artifact.version + '"}'
    yield StringCommand("echo", QuoteString(note), ">", QuoteString(f"{release}.new/.ownstack-release.json"))
    yield StringCommand("mv", "-T", QuoteString(f"{release}.new"), QuoteString(release))
    yield StringCommand(
        "ln", "-sfn", QuoteString(f"releases/{release.rsplit('/', 1)[1]}"), QuoteString(plan.layout.current("python"))
    )
    yield StringCommand("rm", "-f", QuoteString(path))


@operation()
def packages(plan: Plan, wanted: list[str]) -> Commands:
    """System packages by the host's own package manager.

    Which were added is recorded, so that `down --purge` takes them back.
    """
    have = ask(PathStates, paths=[f"/usr/bin/{name}" for name in wanted])
    missing = [name for name, state in zip(wanted, have, strict=True) if state["kind"] == "none"]
    if not missing:
        host.noop("all system packages are there")
        return
    names = [QuoteString(name) for name in missing]
    yield StringCommand(
        "export DEBIAN_FRONTEND=noninteractive;",
        "if command -v apt-get >/dev/null; then",
        "apt-get -q -o DPkg::Lock::Timeout=300 update && apt-get -q -y -o DPkg::Lock::Timeout=300",
        "--no-install-recommends install", *names,
        "; elif command -v dnf >/dev/null; then dnf -q -y install", *names,
        "; elif command -v pacman >/dev/null; then pacman -S --noconfirm --needed", *names,
        "; elif command -v zypper >/dev/null; then zypper -n install --no-recommends", *names,
        "; else echo 'no known package manager' >&2; exit 1; fi",
    )  # fmt: skip
    note = {"path": plan.layout.manifest, "values": {"packages_added": missing}}
    yield step_command(units.runner_python(plan), "box.write_manifest", note)


@operation()
def python_env(plan: Plan, component: str, lock: str, version: str = "") -> Commands:
    """A Python environment from a hash-locked file, as a release of `component` that its lock's hash names."""
    digest = hashlib.sha256(lock.encode()).hexdigest()
    spec = {
        "name": component,
        "version": version or digest[:8],
        "release": plan.layout.release(component, version or "env", digest),
        "current": plan.layout.current(component),
        "lock": f"{plan.layout.var}/work/{component}-{digest[:16]}.lock",
        "python": plan.role("base").settings["python"],
        "uv": f"{plan.layout.current('uv')}/bin/uv",
        "mirror": plan.mirror,
        "cache": f"{plan.layout.var}/work/uv-cache",
    }
    run = units.runner_python(plan)
    if not ask(StepState, runner=run, step="python_env.install", spec=spec)["changed"]:
        host.noop(f"the environment of {component} is there")
        return
    path = str(spec["lock"])
    yield FileUploadCommand(io.BytesIO(lock.encode()), path, remote_temp_filename=host.get_temp_filename(path))
    yield outliving(plan, "python_env.install", spec)
    yield StringCommand("rm", "-f", QuoteString(path))


# folders of a user that `up` makes where they are not there; deepest first, and only empty ones go
ON_THE_WAY = (".config/systemd/user", ".config/systemd", ".config", ".local/share", ".local/state", ".local")


def _way(plan: Plan) -> tuple[str, str]:
    """The user's home, and the record of those folders that were not there before the first `up`."""
    return plan.layout.etc.removesuffix("/.config/ownstack"), f"{plan.layout.var}/on-the-way"


@operation()
def note_the_way(plan: Plan, seen: dict[str, list[str]]) -> Commands:
    """Note which folders of a user's home are not there yet. A box that stands without that note is an older one.

    seen: an empty one. What the preview saw counts: the journal makes some of them before this is carried out.
    """
    home, record = _way(plan)
    ways = [f"{home}/{path}" for path in ON_THE_WAY]
    noted, stands, *states = ask(PathStates, paths=[record, plan.layout.manifest, *ways])
    if "file" in (noted["kind"], stands["kind"]):
        host.noop("it is noted")
        return
    now = [path for path, state in zip(ON_THE_WAY, states, strict=True) if state["kind"] != "directory"]
    missing = seen.setdefault("missing", now)
    yield StringCommand("mkdir", "-p", QuoteString(plan.layout.var))
    yield StringCommand("echo", QuoteString(" ".join(missing)), ">", QuoteString(record))


@operation()
def farewell(plan: Plan, purge: bool, accounts: list[Account], packages: list[str]) -> Commands:
    """The last step of `down`: programs, and with `purge` every folder, secret, account and package of ours."""
    layout = plan.layout
    yield StringCommand("rm", "-rf", QuoteString(layout.opt), QuoteString(f"{layout.var}/work"))
    if not purge:
        return
    above = layout.opt.rpartition("/")[0]
    if above.endswith("/ownstack"):  # a user's programs lie one folder deeper
        yield StringCommand("rmdir", "--ignore-fail-on-non-empty", QuoteString(above))
    away = StringCommand("rm", "-rf", QuoteString(layout.var), QuoteString(layout.etc))
    if plan.system:
        yield away
    else:
        home, record = _way(plan)
        made = StringCommand("made=$(cat", QuoteString(record), "2>/dev/null || echo", *ON_THE_WAY, ");")
        yield StringCommand(made, away, "&& { cd", QuoteString(home), "&& rmdir $made 2>/dev/null || true; }")
    have = ask(Accounts)
    for account in accounts:
        if account.name in have["users"]:
            yield StringCommand("userdel", QuoteString(account.name))
    if packages:
        names = [QuoteString(name) for name in packages]
        # nothing else: what the host's package manager holds for unneeded may still be its owner's
        yield StringCommand(
            "export DEBIAN_FRONTEND=noninteractive; if command -v apt-get >/dev/null; then",
            "apt-get -q -y -o DPkg::Lock::Timeout=300 purge", *names,
            "; elif command -v dnf >/dev/null; then dnf -q -y remove", *names,
            "; elif command -v pacman >/dev/null; then pacman -Rs --noconfirm", *names,
            "; elif command -v zypper >/dev/null; then zypper -n remove", *names, "; fi",
        )  # fmt: skip
