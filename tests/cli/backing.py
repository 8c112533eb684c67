"""What a box and a backup of it say, for the commands that make one and put it back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ownstack.verify.check import Outcome
from tests.cli import standing
from tests.cli.standing import Box, verdict

WORD = "four words in a row"
BOX: dict[str, Any] = {"vectors": "open-webui", "models": [], "imported": {}, "old_vectors": [], "own_collections": []}
ABOUT: dict[str, Any] = {
    "file": "/mnt/b.tar", "created": "20261101T020304Z", "hostname": "old", "kit_version": "0.1.0", "versions": {},
    "bytes": 9, "parts": 4, "holds": {"accounts": 2, "chats": 3}, "opened": True, "models": [],
    "services": ["open_webui", "n8n"], "box": BOX,
}  # fmt: skip
MADE = {"file": "/mnt/b.tar", "bytes": 2**20, "holds": {"chats": 3}, "removed": [], "seconds": 1.0, "models": [],
        "without_models": ""}  # fmt: skip


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Box:
    """A box whose backup is made, looked into, found and restored."""
    found = standing.stand(monkeypatch)
    standing.carried(monkeypatch, tmp_path)
    monkeypatch.setitem(standing.ANSWERS, "backup.make_outliving", MADE)
    monkeypatch.setitem(standing.ANSWERS, "backup.verify", ABOUT)
    monkeypatch.setitem(standing.ANSWERS, "backup.find", {"file": "/mnt/b.tar"})
    monkeypatch.setitem(standing.ANSWERS, "restore.models", {"models": []})
    verdict(monkeypatch, Outcome.ok("fine"))
    return found


@pytest.fixture
def word(tmp_path: Path) -> str:
    """A file with the passphrase."""
    path = tmp_path / "word"
    path.write_text(WORD + "\n")
    return str(path)
