"""The locks of the older kit, which upgrades in the end-to-end tests start from."""

from __future__ import annotations

import json
import re

from tests.hosts import lab, older


def test_the_locks_name_the_versions_that_upgrades_start_from() -> None:
    packages = json.loads((older.FOLDER / "n8n/package-lock.json").read_text())["packages"]
    assert packages["node_modules/n8n"]["version"] == older.VERSIONS["n8n"]
    lock = (older.FOLDER / "open_webui/requirements.lock").read_text()
    assert f"\nopen-webui=={older.VERSIONS['open_webui']} " in lock
    assert f"github.com/ollama/ollama v{older.VERSIONS['ollama']} " in (older.FOLDER / "ollama/go.mod").read_text()


def test_they_are_older_than_what_the_kit_installs() -> None:
    today = {artifact["name"]: artifact for role in ("open_webui", "n8n", "ollama") for artifact in tables(role)}
    for name, version in older.VERSIONS.items():
        rows = today[name.replace("_", "-")]["variant"]
        assert all(tuple(map(int, row["version"].split("."))) > tuple(map(int, version.split("."))) for row in rows)


def tables(role: str) -> list[lab.Row]:
    return lab.table(lab.KIT / "roles" / role / "artifacts.toml")


def test_every_package_has_its_hash_and_no_address() -> None:
    packages = json.loads((older.FOLDER / "n8n/package-lock.json").read_text())["packages"]
    assert all("integrity" in row and "resolved" not in row for key, row in packages.items() if key)
    text = (older.FOLDER / "open_webui/requirements.lock").read_text()
    pinned = re.findall(r"(?m)^[a-z0-9][^=\n]*==.*\n((?: +--hash=sha256:[0-9a-f]{64}.*\n?)+)", text)
    assert len(pinned) == len(re.findall(r"(?m)^[a-z0-9]", text))
    assert "://" not in text
