"""pyinfra facts that read much at once: each separate fact costs a round trip."""

from __future__ import annotations

import json
from typing import Any

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.facts import FactBase

from .session import step_command

# with $OWNSTACK_WRITTEN, a record of `files.sha256` (see runner/files.py): was this content ever written by us?
PATHS_SCRIPT = r"""
ours() {
  [ -n "$OWNSTACK_WRITTEN" ] && [ -f "$OWNSTACK_WRITTEN" ] || return 0
  p="$1" h="$2" awk '
    substr($0, 67) != ENVIRON["p"] { next }
    /^-/ { seen = 0; same = 0; next }
    { seen = 1; if (substr($0, 1, 64) == ENVIRON["h"]) same = 1 }
    END { if (seen) print same ? "ours" : "edited" }' "$OWNSTACK_WRITTEN"
}
for p in "$@"; do
  if [ -L "$p" ]; then printf 'link\t%s\t\t\t\n' "$(readlink "$p")"
  elif [ -d "$p" ]; then printf 'directory\t%s\t\n' "$(stat -c '%a	%U	%G' "$p")"
  elif [ -f "$p" ]; then
    h=$(sha256sum < "$p" | cut -c1-64)
    printf 'file\t%s\t%s\t%s\n' "$(stat -c '%a	%U	%G' "$p")" "$h" "$(ours "$p" "$h")"
  else printf 'none\t\t\t\t\n'; fi
done
"""


class PathStates(FactBase[list[dict[str, str]]]):
    """Kind, mode, owner, group and sha256 of many paths, in the order asked.

    With the record of what was written (`Layout.written`) also whether that was `ours`, or was `edited` since.
    """

    def command(self, paths: list[str], written: str = "") -> StringCommand:
        told = [StringCommand("OWNSTACK_WRITTEN=", QuoteString(written), _separator="")] if written else []
        return StringCommand(*told, "sh", "-c", QuoteString(PATHS_SCRIPT), "sh", *[QuoteString(path) for path in paths])

    def process(self, output: list[str]) -> list[dict[str, str]]:
        found = []
        for line in output:
            kind, mode, owner, group, digest, whose = (*line.split("\t"), "", "", "", "", "")[:6]
            now = {"kind": kind, "mode": mode, "owner": owner, "group": group, "sha256": digest, "whose": whose}
            found.append(now)
        return found


class StepState(FactBase[dict[str, Any]]):
    """Whether a runner step has anything to do, found by its dry run.

    Where the runner is not there yet, everything is still to do.
    """

    @staticmethod
    def default() -> dict[str, Any]:
        """What is taken where the runner says nothing at all: it is damaged."""
        return dict(NOTHING_KNOWN)

    def command(self, runner: str, step: str, spec: dict[str, Any]) -> StringCommand:
        dry = step_command(runner, step, {**spec, "dry": True})
        return StringCommand("if", "[", "-x", QuoteString(runner), "]; then", dry, "|| true; else echo; fi")

    def process(self, output: list[str]) -> dict[str, Any]:
        for line in reversed(output):
            if line.startswith('{"event":'):
                return state_of(json.loads(line)) or NOTHING_KNOWN
        return NOTHING_KNOWN


NOTHING_KNOWN: dict[str, Any] = {"changed": True, "data": {}}


def state_of(event: dict[str, Any]) -> dict[str, Any] | None:
    """What the last event of a dry run says; None for an event that is not the last."""
    if event["event"] == "result":
        return {"changed": event["changed"], "data": event["data"]}
    if event["event"] == "error":
        return {"changed": True, "data": {}, "error": event}
    return None


class StepStates(FactBase[list[dict[str, Any]]]):
    """The same for many steps, `[name, specification]` each, by one start of the runner; in the order asked."""

    def command(self, runner: str, steps: list[list[Any]]) -> StringCommand:
        self.number = len(steps)
        dry = step_command(runner, "dry.steps", {"steps": steps})
        return StringCommand("if", "[", "-x", QuoteString(runner), "]; then", dry, "|| true; else echo; fi")

    def process(self, output: list[str]) -> list[dict[str, Any]]:
        for line in reversed(output):
            if line.startswith('{"event": "result"'):
                events = json.loads(line)["data"].get("events")
                if events is not None:
                    return [state_of(event) or NOTHING_KNOWN for event in events]
        return [NOTHING_KNOWN] * self.number


class Accounts(FactBase[dict[str, Any]]):
    """Names of accounts and groups, and the groups each of our accounts is in."""

    def command(self) -> str:
        return "getent passwd | cut -d: -f1 | sed 's/^/user /'; getent group | sed 's/^/group /'"

    def process(self, output: list[str]) -> dict[str, Any]:
        users: set[str] = set()
        groups: dict[str, set[str]] = {}
        for line in output:
            kind, _, rest = line.partition(" ")
            if kind == "user":
                users.add(rest)
            elif kind == "group":
                name, _, _, members = [*rest.split(":"), "", "", ""][:4]
                groups[name] = {member for member in members.split(",") if member}
        return {"users": users, "groups": groups}
