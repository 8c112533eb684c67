"""An Ollama that was there before the box, in whatever way it was installed: how it stands, to be compared."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tests.e2e.conftest import Mirror
from tests.hosts import Host
from tests.hosts.kit import Ownstack

URL = "http://127.0.0.1:11434"
READY = f"for i in $(seq 100); do curl -sf -o /dev/null {URL}/api/version && break; sleep 0.1; done"
SHOWN = ("ActiveState", "UnitFileState", "UnitFilePreset", "Environment", "EnvironmentFiles", "DropInPaths")
PLACES = ("FragmentPath", "ExecStart")


@dataclass(frozen=True)
class Theirs:
    """The service ollama of a host. `places`: all that is its own; `user`: whose service it is, root for the system."""

    box: Host
    places: str
    user: str = "root"

    def show(self, *names: str) -> str:
        whose = "" if self.user == "root" else "--user "
        words = " ".join(f"-p {name}" for name in names)
        return self.box.output(f"systemctl {whose}show ollama {words}", user=self.user)

    def seen(self) -> str:
        """Every file of it: bytes, owner, mode and time; whether it runs, with which settings, and its models."""
        self.box.run(READY)
        program = [line.partition(" ;")[0] for line in self.show(*PLACES).splitlines()]  # without when it was started
        return "\n".join(
            [
                self.box.output(
                    f"find {self.places} -printf '%p %y %m %u:%g %T@ %l\\n' | sort;"
                    f"find {self.places} -type f -exec sha256sum {{}} + | sort"
                ),
                *program,
                self.show(*SHOWN),
                self.box.output("getent passwd ollama || true"),
                # of those made in the same second any may come first
                *sorted(json.dumps(model, sort_keys=True) for model in self.models()),
            ]
        )

    def models(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.box.output(f"curl -s {URL}/api/tags"))["models"]
        return found

    def added(self, before: str) -> set[str]:
        """Files and folders that are not as they were in `before`."""
        changed = set(self.seen().splitlines()) ^ set(before.splitlines())
        return {line.split()[0] for line in changed if line.startswith("/")}

    def pid(self) -> str:
        return self.show("MainPID").partition("=")[2]

    def variables(self) -> dict[str, str]:
        """What the running engine was started with."""
        text = self.box.output(f"tr '\\0' '\\n' < /proc/{self.pid()}/environ")
        return dict(line.partition("=")[::2] for line in text.splitlines())

    def listens(self) -> set[str]:
        """The addresses at which it answers."""
        rows = self.box.output("ss -Hltn 'sport = 11434' | awk '{print $4}'").splitlines()
        return {row.rpartition(":")[0] for row in rows}

    def adopting(self, mirror: Mirror, user: str = "root") -> Ownstack:
        """Calls with settings by which it is adopted, with the models that it has."""
        made = mirror.ownstack(self.box)
        made.user = user
        names = [model["name"] for model in self.models()]
        (chat,) = [name for name in names if name.startswith("smollm2:135m-q8_0")]
        (embedding,) = [name for name in names if name.startswith("all-minilm")]
        made.toml = (
            f'roles = ["models"]\n[sources]\nmirror = "{mirror.files.url}"\n[ollama]\nuse = "adopt"\n'
            f'[models]\nchat = "{chat}"\nembedding = "{embedding}"\n'
        )
        return made
