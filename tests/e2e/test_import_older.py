"""Data of older versions moves into the pinned ones: their services bring it up to date on the copy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.conftest import Mirror, Provisioned
from tests.e2e.older_box import Older, plan_of, versions
from tests.e2e.test_backup import works
from tests.e2e.test_import import state
from tests.e2e.test_open_webui import sign_in, web
from tests.hosts import Network, older
from tests.hosts.kit import own_vectors

pytestmark = pytest.mark.slow


def test_data_of_older_versions_moves_in(
    network: Network, debian12: Provisioned, mirror: Mirror, older_box: Older, tmp_path: Path
) -> None:
    """Open WebUI 0.11.4 and n8n 2.40.7, from folders of another machine that stand still."""
    there = older_box.layer / "var/lib/ownstack"
    secrets = older_box.layer / "etc/ownstack/secrets"
    with debian12.clone(network, "import-older") as box:
        own_vectors(box)
        ownstack, plan = mirror.ownstack(box), plan_of(box)
        now = versions(box)
        assert all(now[name] != older.VERSIONS[name] for name in ("open_webui", "n8n"))
        # their workflow asks Qdrant with the key of there
        box.run("cat > /etc/ownstack/secrets/qdrant_api_key", data=(secrets / "qdrant_api_key").read_text())
        ownstack("up", "--yes", "--no-verify")
        accounts = {row["service"]: row for row in ownstack.json("password")["accounts"]}
        owner, file = (accounts["open_webui"][name] for name in ("user", "file"))
        before = state(there / "open_webui"), state(there / "n8n/.n8n")
        web_ui = ownstack.json("import", str(there / "open_webui"), "--yes")
        flows = ownstack.json(
            "import", str(there / "n8n/.n8n"), "--yes", "--key-file", str(secrets / "n8n_encryption_key")
        )
        print(f"imported in {web_ui['seconds']} and {flows['seconds']} s: {web_ui['holds']}, {flows['holds']}")
        assert (state(there / "open_webui"), state(there / "n8n/.n8n")) == before, "the source was read only"
        assert web_ui["documents"] == {"files": 1, "knowledge": 1, "memories": 0, "left": []}
        assert flows["holds"]["credentials"] >= 2
        assert {check["status"] for check in ownstack.json("verify")["checks"]} == {"ok"}
        status, token = sign_in(box, plan, owner, (secrets / Path(file).name).read_text().strip())
        assert status == 200, "with the password of there"
        chat = web(box, plan, "GET", f"/api/v1/chats/{older_box.data['chat']}", token=token)[1]
        assert chat["title"] == "the boat house"
        query = {"collection_names": [older_box.data["base"]], "query": "What is the word of the house?", "k": 1}
        found = web(box, plan, "POST", "/api/v1/retrieval/query/collection", query, token)[1]
        assert "harbour-4711" in json.dumps(found)
        assert works(box, plan, True), "the stored credential was decrypted"
