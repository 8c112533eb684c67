"""Vectors of a Qdrant that is too old for the one here: they stay in the backup, and documents are indexed anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import RunError

if TYPE_CHECKING:
    from ..plan import Plan


def apart(about: dict[str, Any], plan: Plan) -> str:
    """The version of that Qdrant; "" where the vectors are loaded as they are, or there are none."""
    from ..engine import backups

    return backups.apart(about.get("versions", {}), plan)


def remakable(about: dict[str, Any], plan: Plan) -> None:
    """Raises RunError where vectors would be left out that nothing here can make anew.

    Which collections there are is known only of a backup that was opened; how many are not Open WebUI's, of any.
    """
    then = apart(about, plan)
    names = about.get("box", {}).get("own_collections", [])
    own = ", ".join(names) if names else str(about.get("own_collections") or "")
    if then and own:
        raise RunError(
            f"the backup holds collections of your own ({own}) from Qdrant {then}, whose data goes one minor version "
            f"at a time, and here is {_here(plan)}",
            hint="restore it with the ownstack of that time, then `ownstack upgrade` takes them along; "
            "nothing was changed",
            code="backup-collections",
        )


def reindexing(about: dict[str, Any], plan: Plan) -> str:
    """What becomes of the documents' vectors; "" where they are loaded as they are."""
    then = apart(about, plan)
    if not then or "open_webui" not in about["services"]:
        return ""
    return (
        f"documents, files of chats and memories are indexed anew: their vectors are of Qdrant {then}, whose data goes "
        f"one minor version at a time, and here is {_here(plan)}"
    )


def old_vectors(about: dict[str, Any], plan: Plan, now: dict[str, Any]) -> list[str] | None:
    """Beginnings of collections that are there and nobody needs, for `up --prune`. now: the box's manifest."""
    box = about["box"]
    if "qdrant" not in about["versions"] or not plan.has("qdrant"):
        return now.get("old_vectors")
    there = set() if apart(about, plan) else {*box["old_vectors"], box["vectors"]}
    return sorted(there - {plan.vectors, ""}) or None


def _here(plan: Plan) -> str:
    from ..engine import backups

    return backups.versions(plan)["qdrant"]


def indexed(documents: dict[str, Any]) -> list[str]:
    """What was indexed anew, in words, and what could not be."""
    if not documents:
        return []
    found = f"indexed anew: {documents['files']} documents, {documents['memories']} memories"
    return [found, f"not indexed: {', '.join(documents['left'])}"] if documents["left"] else [found]
