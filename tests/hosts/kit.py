"""`./ownstack` as a person calls it: from this machine for a host, or inside a local box."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .commands import CommandError, Result, run
from .host import Host
from .local import LocalBox

CHECKOUT = Path(__file__).parents[2]
SERVICES = ("qdrant", "ollama", "open-webui", "n8n")
READY = ("http://127.0.0.1:6333/readyz", "http://127.0.0.1:8080/ready", "http://127.0.0.1:5678/healthz/readiness")
LEFT_OUT = (".git", ".venv*", "__pycache__", ".*_cache", ".hypothesis")
PROCESS = ("Id", "MainPID", "NRestarts", "ExecMainStartTimestampMonotonic", "ActiveState")


def packed() -> bytes:
    """The checkout as a fresh clone of it would be: without environments and caches (and without history)."""
    argv = ["tar", "-c", *[f"--exclude={name}" for name in LEFT_OUT], "-C", str(CHECKOUT), "."]
    return subprocess.run(argv, capture_output=True, check=True).stdout


@dataclass
class Ownstack:
    """Calls the launcher of a checkout; `options` are added to every call (`--mirror`, ...)."""

    box: Host | LocalBox
    user: str = "root"
    checkout: Path = CHECKOUT
    variables: dict[str, str] = field(default_factory=dict)
    toml: str = ""  # what the settings file says

    def argv(self, *words: str) -> list[str]:
        # by name: a clone has another address, and is the same host to whoever calls it
        where = ["--host", f"{self.user}@{self.box.hostname}"] if isinstance(self.box, Host) else []
        return [str(self.checkout / "ownstack"), *words, *where]

    @property
    def settings(self) -> str:
        """The settings file of these calls: never the one of whoever runs the tests."""
        return "/tmp/ownstack.toml" if isinstance(self.box, LocalBox) else str(self.box.folder / "ownstack.toml")

    @property
    def environment(self) -> dict[str, str]:
        return self.box.caller(OWNSTACK_CONFIG=self.settings, NO_COLOR="1", **self.variables)

    def _prepared(self, *words: str) -> list[str]:
        """The program line, with the settings file written."""
        argv = self.argv(*words)
        if isinstance(self.box, LocalBox):
            self.box.run(f"cat > {self.settings}", data=self.toml)
            return self.box.argv_of(argv)
        Path(self.settings).write_text(self.toml)
        return argv

    def __call__(self, *words: str, check: bool = True, data: str | None = None, timeout_s: float = 1500) -> Result:
        """Run a command. Raises CommandError when it fails and `check` is true."""
        argv = self._prepared(*words)
        result = run(*argv, check=False, data=data, env=self.environment, cwd=Path("/"), timeout_s=timeout_s)
        if check and result.returncode:
            raise CommandError(["ownstack", *words], result)
        return result

    def json(self, *words: str, check: bool = True) -> Any:
        """The `data` of a command's JSON envelope. Raises CommandError when the envelope says that it failed."""
        result = self(*words, "--json", check=False)
        try:
            envelope = json.loads(result.stdout)
        except ValueError:
            raise CommandError(["ownstack", *words], result) from None
        if check and (not envelope["ok"] or result.returncode):
            raise CommandError(["ownstack", *words], result)
        return envelope["data"]

    @contextlib.contextmanager
    def opened(self, page: str = "open-webui") -> Iterator[str]:
        """The address that `ownstack open` prints, while it is open."""
        argv = self._prepared("open", "--no-browser", page)
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd="/",
            env=self.environment, start_new_session=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()
            process.wait(10)

    def first_password(self, role: str) -> tuple[str, str]:
        """Name and first password of the box's owner in a service. Never print them."""
        row = next(row for row in self.json("password")["accounts"] if row["service"] == role)
        return row["user"], self.box.output(f"cat {row['file']}")


def wait_ready(box: Host | LocalBox, urls: Sequence[str] = READY, timeout_s: float = 240) -> float:
    """Wait until all pages answer after a boot; the seconds that it took."""
    start = time.monotonic()
    asks = " && ".join(f"curl -sf -o /dev/null {url}" for url in urls)
    # looks again and again on the box: to log in for each look would take longer than to look
    wait = f"until {asks}; do [ $(date +%s) -lt $end ] || exit 1; sleep 0.3; done"
    if box.run(f"end=$(($(date +%s) + {timeout_s:.0f})); {wait}", check=False).returncode:
        raise TimeoutError(f"not ready within {timeout_s} s: {box.run(asks, check=False)}")
    return time.monotonic() - start


def own_vectors(host: Host) -> None:
    """Qdrant's storage in the clone's own layer: Qdrant renames what it deletes, and a folder of the frozen layer
    cannot be renamed (overlay without redirects)."""
    own = "cd /var/lib/ownstack/qdrant && cp -a storage own && rm -rf storage && mv own storage"
    host.run(f"systemctl stop ownstack-qdrant && {own} && systemctl start ownstack-qdrant")
    wait_ready(host)


def processes(host: Host, prefix: str = "ownstack") -> str:
    """Process ids and start times of the box's services: equal texts mean that nothing was restarted."""
    units = [f"{prefix}-{service}.service" for service in SERVICES]
    return host.output(f"systemctl show {' '.join(units)} {' '.join(f'-p {name}' for name in PROCESS)}")
