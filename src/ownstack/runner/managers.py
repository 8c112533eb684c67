"""The process managers: systemd, systemd for one user, supervisord. One small set of verbs for all."""

from __future__ import annotations

import os
import subprocess
import time
from typing import Any

from .core import StepError

Run = dict[str, str]


def call(command: list[str], check: bool = True, env: dict[str, str] | None = None) -> str:
    """Run a program without a terminal; its output. Raises StepError with the last lines on failure."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "LC_ALL": "C", **(env or {})},
    )
    if check and done.returncode != 0:
        tail = "\n".join(done.stdout.splitlines()[-8:])
        raise StepError(f"{' '.join(command[:4])} ended with {done.returncode}: {tail}")
    return done.stdout


def shown(ctl: list[str], units: list[str], *names: str) -> list[Run]:
    """Properties of units by their full names, in the order asked. `ctl`: systemctl and how it is called."""
    text = call([*ctl, "show", "-p", ",".join(names), "--", *units], check=False)
    blocks = [block for block in text.strip().split("\n\n") if block]
    return [dict(line.partition("=")[::2] for line in block.splitlines()) for block in blocks]


class Systemd:
    """The system's manager, or with `user` the one of the account that runs this."""

    def __init__(self, user: bool = False) -> None:
        self.ctl = ["systemctl", "--user"] if user else ["systemctl"]
        if user:
            os.environ.setdefault("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")

    def status(self, units: list[str]) -> list[dict[str, Any]]:
        if not units:
            return []
        names = ("ActiveState", "SubState", "UnitFileState", "MainPID", "NRestarts", "NeedDaemonReload")
        found = shown(self.ctl, [f"{u}.service" for u in units], *names)
        return [
            {
                "active": item.get("ActiveState") == "active",
                "state": f"{item.get('ActiveState', 'unknown')} ({item.get('SubState', '')})",
                "enabled": item.get("UnitFileState") == "enabled",
                "pid": int(item.get("MainPID") or 0),
                "restarts": int(item.get("NRestarts") or 0),
                "reload": item.get("NeedDaemonReload") == "yes",
            }
            for item in found
        ]

    def prepare(self, units: list[str]) -> None:
        call([*self.ctl, "daemon-reload"])
        call([*self.ctl, "enable", "--quiet", *[f"{u}.service" for u in units]])

    def start(self, units: list[str]) -> None:
        call([*self.ctl, "reset-failed", *[f"{u}.service" for u in units]], check=False)
        call([*self.ctl, "start", "--no-block", *[f"{u}.service" for u in units]])

    def restart(self, units: list[str]) -> None:
        call([*self.ctl, "reset-failed", *[f"{u}.service" for u in units]], check=False)
        call([*self.ctl, "restart", *[f"{u}.service" for u in units]])

    def stop(self, units: list[str]) -> None:
        call([*self.ctl, "stop", *[f"{u}.service" for u in units]], check=False)

    def forget(self, units: list[str]) -> None:
        """After the unit files are gone."""
        call([*self.ctl, "daemon-reload"], check=False)
        call([*self.ctl, "reset-failed", *[f"{u}.service" for u in units]], check=False)

    def disable(self, units: list[str]) -> None:
        call([*self.ctl, "disable", "--quiet", *[f"{u}.service" for u in units]], check=False)


class Supervisor:
    """supervisord, started by the kit, for hosts whose process 1 is not systemd."""

    def __init__(self, bin_dir: str, config: str) -> None:
        self.daemon = [os.path.join(bin_dir, "supervisord"), "-c", config]
        self.ctl = [os.path.join(bin_dir, "supervisorctl"), "-c", config]
        self.config = config

    def running(self) -> bool:
        if not os.path.exists(self.ctl[0]):
            return False
        text = call([*self.ctl, "pid"], check=False).strip()
        return text.isdigit()

    def _ensure(self) -> None:
        if self.running():
            return
        call(self.daemon)
        for _ in range(100):
            if self.running():
                return
            time.sleep(0.1)
        raise StepError("supervisord did not start", hint=f"see the log beside {self.config}")

    def status(self, units: list[str]) -> list[dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        if self.running():
            for line in call([*self.ctl, "status"], check=False).splitlines():
                words = line.split()
                if len(words) < 2:
                    continue
                pid = int(words[3].rstrip(",")) if len(words) > 3 and words[2] == "pid" else 0
                found[words[0]] = {
                    "active": words[1] == "RUNNING",
                    "state": words[1].lower(),
                    "enabled": True,
                    "pid": pid,
                    "restarts": 0,
                    "reload": False,
                }
        missing = {"active": False, "state": "stopped", "enabled": False, "pid": 0, "restarts": 0, "reload": False}
        return [found.get(unit, dict(missing)) for unit in units]

    def prepare(self, units: list[str]) -> None:
        self._ensure()
        call([*self.ctl, "reread"])
        call([*self.ctl, "update", *units])

    def start(self, units: list[str]) -> None:
        self._ensure()
        call([*self.ctl, "start", *units], check=False)

    def restart(self, units: list[str]) -> None:
        self._ensure()
        call([*self.ctl, "restart", *units], check=False)

    def stop(self, units: list[str]) -> None:
        if self.running():
            call([*self.ctl, "stop", *units], check=False)

    def disable(self, units: list[str]) -> None:
        pass

    def forget(self, units: list[str]) -> None:
        if self.running():
            call([*self.ctl, "reread"], check=False)
            call([*self.ctl, "update"], check=False)

    def shutdown(self) -> None:
        if self.running():
            call([*self.ctl, "shutdown"], check=False)
            for _ in range(200):
                if not self.running():
                    return
                time.sleep(0.1)


def manager(spec: dict[str, Any]) -> Any:
    """The manager that a specification names: {"manager": ..., "supervisor": {"bin", "config"}}."""
    kind = spec["manager"]
    if kind == "supervisord":
        return Supervisor(spec["supervisor"]["bin"], spec["supervisor"]["config"])
    return Systemd(user=kind == "systemd-user")
