"""What other data would change, in words and as data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..data import Data, load_data, rows, version_key
from ..kit import data_from, data_in_use
from ..settings import ROLE_NAMES

Changes = dict[str, Any]


def compare(folder: Path, serial: int) -> Changes:
    """What the data in `folder` change against those in use.

    versions: [{name, variant, old, new}] (old or new empty: added, gone), packages: names whose version stays and
    whose packages differ, floors: [{name, old, new, why}], models, cards, profiles: {added, removed, changed},
    hosts: new ones that programs come from, checked: [old, new].
    """
    old = load_data(ROLE_NAMES)
    now = data_in_use()
    with data_from(folder, serial):
        new = load_data(ROLE_NAMES)
    before, after = _variants(old), _variants(new)
    return {
        "serial": [now.serial, serial],
        "checked": [old.floors.checked.isoformat(), new.floors.checked.isoformat()],
        "versions": [
            {"name": key[0], "variant": key[1], "old": _version(before, key), "new": _version(after, key)}
            for key in sorted({*before, *after})
            if _version(before, key) != _version(after, key)
        ],
        "packages": sorted(
            {
                key[0]
                for key in before.keys() & after.keys()
                if _version(before, key) == _version(after, key) and before[key] != after[key]
            }
        ),
        "floors": [
            {
                "name": name,
                "old": old.floors.floor.get(name, ""),
                "new": new.floors.floor.get(name, ""),
                "why": new.floors.why.get(name, ""),
            }
            for name in sorted({*old.floors.floor, *new.floors.floor})
            if old.floors.floor.get(name) != new.floors.floor.get(name)
        ],
        "models": _sets(
            {tag: entry.raw for tag, entry in old.fit.catalogue.entries.items()},
            {tag: entry.raw for tag, entry in new.fit.catalogue.entries.items()},
        ),
        "ranks": old.fit.ranks != new.fit.ranks,
        "cards": _sets(
            {f"{card.name} {card.memory >> 20} MiB": card for card in old.fit.cards.cards},
            {f"{card.name} {card.memory >> 20} MiB": card for card in new.fit.cards.cards},
        ),
        "profiles": _sets({p.name: p for p in old.fit.profiles}, {p.name: p for p in new.fit.profiles}),
        "hosts": sorted(set(new.vendor_hosts()) - set(old.vendor_hosts())),
    }


def _variants(data: Data) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (artifact["name"], variant["id"]): variant
        for artifacts in data.artifacts.values()
        for artifact in artifacts
        for variant in rows(artifact)
    }


def _version(variants: dict[tuple[str, str], dict[str, Any]], key: tuple[str, str]) -> str:
    return str(variants[key]["version"]) if key in variants else ""


def _sets(old: dict[str, Any], new: dict[str, Any]) -> dict[str, list[str]]:
    return {
        "added": sorted(new.keys() - old.keys()),
        "removed": sorted(old.keys() - new.keys()),
        "changed": sorted(name for name in old.keys() & new.keys() if old[name] != new[name]),
    }


def lines(changes: Changes) -> list[str]:
    """The same for people."""
    told = [f"data {changes['serial'][0]} -> {changes['serial'][1]}, pins checked on {changes['checked'][1]}"]
    rows: dict[tuple[str, str, str], list[str]] = {}
    for one in changes["versions"]:
        rows.setdefault((one["name"], one["old"], one["new"]), []).append(one["variant"])
    for (name, old, new), variants in rows.items():
        told.append(f"{name} {old or '(new)'} -> {new or '(gone)'} ({', '.join(variants)})")
    told += [f"{name}: same version, other packages or files" for name in changes["packages"]]
    for floor in changes["floors"]:
        lower = version_key(floor["new"] or "0") < version_key(floor["old"] or "0")
        told.append(
            f"security floor of {floor['name']} {'LOWERED ' if lower else ''}{floor['old'] or 'none'} -> "
            f"{floor['new'] or 'none'}" + (f": {floor['why']}" if floor["why"] else "")
        )
    for kind, word in (("models", "models"), ("cards", "cards"), ("profiles", "hardware profiles")):
        for what, names in changes[kind].items():
            if names:
                more = f" and {len(names) - 8} more" if len(names) > 8 else ""
                told.append(f"{word} {what}: {', '.join(names[:8])}{more}")
    if changes["ranks"]:
        told.append("the order of preference among models")
    told += [f"programs would come from another host too: {host}" for host in changes["hosts"]]
    return told
