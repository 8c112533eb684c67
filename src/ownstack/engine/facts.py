"""pyinfra facts that read much at once: each separate fact costs a round trip."""

from __future__ import annotations

import json
from typing import Any

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.facts import FactBase

from .session import step_command

# one program for all of a kind: a few for each path would take longer than everything else that a run looks at.
# With $OWNSTACK_WRITTEN, a record of `files.sha256` (see runner/files.py): was this content ever written by us?
PATHS_SCRIPT = r"""
n=$# kinds= states= sums=
for p in "$@"; do
  if [ -L "$p" ]; then k="link	$(readlink "$p")"
  elif [ -d "$p" ]; then k=directory; set -- "$@" "$p"
  elif [ -f "$p" ]; then if [ -r "$p" ]; then k=file; else k=closed; fi; set -- "$@" "$p"
  else k=none; fi
  kinds="$kinds$k
"
done
shift "$n"
[ $# = 0 ] || states=$(stat -c '%a	%U	%G' -- "$@")
n=$#
for p in "$@"; do if [ -f "$p" ] && [ -r "$p" ]; then set -- "$@" "$p"; fi; done
shift "$n"
[ $# = 0 ] || sums=$(sha256sum -- "$@")
export kinds states sums
LC_ALL=C exec awk '
BEGIN {
  many = split(ENVIRON["kinds"], kind, "\n") - 1
  stated = split(ENVIRON["states"], state, "\n")
  summed = split(ENVIRON["sums"], sum, "\n")
  for (i = 1; i <= summed; i++) {
    sub(/^\\/, "", sum[i])
    sum[i] = substr(sum[i], 1, 64)
    asked[ARGV[i]] = 1
  }
  record = ENVIRON["OWNSTACK_WRITTEN"]
  while (record != "" && (getline line < record) > 0) {
    path = substr(line, 67)
    if (!(path in asked)) continue
    if (line ~ /^-/) { age[path]++; seen[path] = 0 }
    else { seen[path] = 1; written[path, age[path] + 0, substr(line, 1, 64)] = 1 }
  }
  for (i = 1; i <= many; i++) {
    if (kind[i] ~ /^link/) print kind[i] "\t\t\t"
    else if (kind[i] == "none") print "none\t\t\t\t"
    else if (kind[i] == "directory") print "directory\t" state[++s] "\t"
    else if (kind[i] == "closed") print "file\t" state[++s] "\t\t"
    else {
      path = ARGV[++f]
      whose = seen[path] ? ((path, age[path] + 0, sum[f]) in written ? "ours" : "edited") : ""
      print "file\t" state[++s] "\t" sum[f] "\t" whose
    }
  }
  exit s + 0 != stated || f + 0 != summed
}' "$@"
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
