"""The second engine of a pull: short-lived, under its own account, with its own store and nothing else to write."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import signal
import socket
import stat
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

from . import ollama_parts
from .core import Spec, StepError
from .detached import alive, born
from .http import wait_ready
from .managers import call

HARDENING = (
    "NoNewPrivileges=true", "ProtectSystem=strict", "PrivateTmp=true", "PrivateDevices=true", "ProtectClock=true",
    "ProtectControlGroups=true", "ProtectHostname=true", "ProtectKernelLogs=true", "ProtectKernelModules=true",
    "ProtectKernelTunables=true", "ProtectProc=invisible", "RestrictNamespaces=true", "RestrictRealtime=true",
    "RestrictSUIDSGID=true", "LockPersonality=true", "RemoveIPC=true", "CapabilityBoundingSet=", "UMask=0077",
    "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX", "SystemCallArchitectures=native", "MemoryDenyWriteExecute=true",
    "SystemCallFilter=@system-service", "SystemCallErrorNumber=EPERM", "LimitCORE=0",
    "IPAccounting=true",  # and how many bytes went through it
)  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Ended(SystemExit):
    """This process was told to end, as at a shutdown."""


@contextlib.contextmanager
def ended_in_order() -> Iterator[None]:
    """Let SIGTERM end what is under way as an error would: streams are closed, engines told. Raises Ended."""

    def end(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
        raise Ended(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class PullEngine:
    """Context manager: the address of a running engine whose store is `<staging>/models`; `source` is its registry.

    spec: program, manager, unit, account (empty: as this account), environment (proxy variables).
    """

    def __init__(self, spec: Spec, staging: str, source: str) -> None:
        self.spec = spec
        self.source = source
        self.staging = staging
        self.unit = f"{spec['unit']}-engine"
        self.process: subprocess.Popen[bytes] | None = None
        self.system = spec["manager"] == "systemd"

    def __enter__(self) -> str:
        self._folders()
        self._end_stale()
        ollama_parts.mend(f"{self.staging}/models/blobs")
        port = free_port()
        environment = {
            "HOME": f"{self.staging}/home",
            "TMPDIR": f"{self.staging}/home",
            "PATH": "/usr/bin:/bin",
            "OLLAMA_HOST": f"127.0.0.1:{port}",
            "OLLAMA_MODELS": f"{self.staging}/models",
            "OLLAMA_NOPRUNE": "1",
            "OLLAMA_NO_CLOUD": "1",
            **_proxies(self.spec.get("environment", {})),
        }
        command = [self.spec["program"], "serve"]
        if self.system:
            self._unit(command, environment)
        else:
            self._child(command, environment)
        url = f"http://127.0.0.1:{port}"
        try:
            wait_ready(f"{url}/api/version", 60, "the pulling engine")
        except BaseException:
            self.__exit__()
            raise
        return url

    def __exit__(self, kind: type[BaseException] | None = None, *rest: object) -> None:
        if kind is not None and issubclass(kind, Ended):
            # nobody listens any more, so it is writing down how far each part has come
            ollama_parts.settled(f"{self.staging}/models/blobs")
            if self.system and inside_unit(self.spec["unit"]):
                return  # the manager ends it after this process, and waiting for that would wait for ever
        if self.system:
            call(["systemctl", "stop", f"{self.unit}.service"], check=False)
        elif self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        with contextlib.suppress(OSError):
            os.unlink(self._pid_file())

    def _pid_file(self) -> str:
        return f"{self.spec['run_dir']}/{self.unit}.pid"

    def _folders(self) -> None:
        """`<staging>` belongs to the pulling account; what an earlier pull fetched stays and is continued."""
        account = self.spec.get("account", "")
        folders = (self.staging, f"{self.staging}/models", f"{self.staging}/home")
        for path in folders:
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                raise StepError(f"{path} is not a folder", hint="take it away and run `ownstack up` again")
        if not account:
            return
        try:
            entry = pwd.getpwnam(account)
        except KeyError as error:
            hint = "run `ownstack up` again: it makes the accounts"
            raise StepError(f"there is no account {account}", hint=hint) from error
        for path in folders:
            os.chown(path, entry.pw_uid, entry.pw_gid, follow_symlinks=False)

    def _end_stale(self) -> None:
        """An engine that a killed pull has left behind."""
        if self.system:
            call(["systemctl", "stop", f"{self.unit}.service"], check=False)
            call(["systemctl", "reset-failed", f"{self.unit}.service"], check=False)
            return
        with contextlib.suppress(OSError, ValueError):
            with open(self._pid_file(), encoding="ascii") as stream:
                pid, _, mark = stream.read().partition(" ")
            if alive(int(pid), mark):
                os.kill(int(pid), signal.SIGTERM)

    def _unit(self, command: list[str], environment: dict[str, str]) -> None:
        account = self.spec["account"]
        rules = [*HARDENING, f"User={account}", f"Group={account}", f"WorkingDirectory={self.staging}", "Type=exec"]
        home = self.staging.startswith(("/home/", "/root/", "/run/user/"))
        rules.append(f"{'BindPaths' if home else 'ReadWritePaths'}={self.staging}")
        rules.append(f"ProtectHome={'tmpfs' if home else 'true'}")
        if inside_unit(self.spec["unit"]):  # ends with the pull, however that ends
            # before: then it ends after the pull, which has told it to write down what it has
            rules += [f"BindsTo={self.spec['unit']}.service", f"Before={self.spec['unit']}.service"]
        line = [
            "systemd-run",
            "--quiet",
            "--collect",
            f"--unit={self.unit}",
            # the system's journal says with these words when the window opened and closed
            f"--description=pull of {self.spec['tag']} from {self.source}",
            *[f"--property={rule}" for rule in rules],
        ]
        line += [f"--setenv={key}={value}" for key, value in environment.items()]
        call([*line, "--", *command])

    def _child(self, command: list[str], environment: dict[str, str]) -> None:
        account = self.spec.get("account", "")
        as_other: dict[str, Any] = {}
        if account and os.getuid() == 0:
            entry = pwd.getpwnam(account)
            as_other = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        with open(f"{self.spec['run_dir']}/{self.unit}.log", "wb") as out:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=self.staging, env=environment,
                umask=0o077, **as_other,
            )  # fmt: skip
        with open(self._pid_file(), "w", encoding="ascii") as note:
            note.write(f"{self.process.pid} {born(self.process.pid)}")


def inside_unit(unit: str) -> bool:
    """Whether this process is the unit's own: a pull may also run in the foreground."""
    try:
        with open("/proc/self/cgroup", encoding="utf-8") as stream:
            return f"/{unit}.service" in stream.read()
    except OSError:
        return False


def _proxies(environment: dict[str, str]) -> dict[str, str]:
    """Only what a pull behind a proxy needs."""
    allowed = ("HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE")
    refused = [key for key in environment if key not in allowed or re.search(r"[\x00-\x1f]", environment[key])]
    if refused:
        raise StepError(f"the pulling engine takes no {', '.join(refused)}", hint=f"only {', '.join(allowed)}")
    return dict(environment)


def remove_staging(models: str) -> None:
    """Take away what interrupted pulls left in a store."""
    for name in os.listdir(models) if os.path.isdir(models) else []:
        if name.startswith(".pull-"):
            path = os.path.join(models, name)
            shutil.rmtree(path, ignore_errors=True) if os.path.isdir(path) else os.unlink(path)
