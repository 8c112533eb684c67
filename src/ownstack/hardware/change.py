"""What changed in a machine since its plan was made, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from .report import HardwareReport


def describe_change(old: HardwareReport | Iterable[str], new: HardwareReport) -> list[str]:
    """One sentence for each change that matters for the plan; none where the fingerprints agree.

    `old` is a report, or what `HardwareReport.matters` said when the plan was made.
    """
    lines = old.matters() if isinstance(old, HardwareReport) else tuple(old)
    before, after = [line.split("|") for line in lines], [line.split("|") for line in new.matters()]
    if not before:
        return []
    changes = describe_gpus(before, after)
    for left, right in zip(rows(before, "cpu"), rows(after, "cpu"), strict=False):
        if left != right:
            changes.append(f"processor {left[1]} ({left[2]} threads) replaced by {right[1]} ({right[2]} threads)")
    for left, right in zip(rows(before, "memory"), rows(after, "memory"), strict=False):
        if left[1] != right[1]:
            limited = " (limited by the container)" if right[2] else ""
            word = "grew" if int(right[1]) > int(left[1]) else "shrank"
            changes.append(f"memory {word} from {left[1]} to {right[1]} GiB{limited}")
    return changes + [f"{problem.id}: {problem.message}" for problem in new.fatal]


def rows(lines: list[list[str]], kind: str) -> list[list[str]]:
    return [line for line in lines if line[0] == kind]


def describe_gpus(before: list[list[str]], after: list[list[str]]) -> list[str]:
    """Cards that went, came, or took another's place."""
    left, right = (Counter(gpu_text(line[2], int(line[4])) for line in rows(lines, "gpu")) for lines in (before, after))
    gone, come = list((left - right).elements()), list((right - left).elements())
    changes = [f"{old} replaced by {new}" for old, new in zip(gone, come, strict=False)]
    changes += [f"{name} is gone" for name in gone[len(come) :]]
    changes += [f"{name} was added" for name in come[len(gone) :]]
    return changes


def gpu_text(name: str, gib: int) -> str:
    """A GPU as people call it: name and nameplate memory ("RTX 3060 12 GB")."""
    for word in ("NVIDIA ", "GeForce ", "AMD ", "Intel "):
        name = name.removeprefix(word)
    size = f"{gib} GB" if gib else ""
    return name if not size or size.replace(" ", "") in name.replace(" ", "") else f"{name} {size}"


def models_changed(old: Iterable[str], new: Iterable[str]) -> str:
    """What new hardware means for the models, by their tags: "3 models would change"; empty where none does."""
    before, after = set(old), set(new)
    count = len(after ^ before) if len(after) != len(before) else len(after - before)
    return f"{count} model{'s' if count > 1 else ''} would change" if count else ""
