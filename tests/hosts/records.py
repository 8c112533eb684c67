"""What a box holds, as counts: rows of every table, points of every collection, the models, and the names of files.

Left out is where n8n itself counts what ran and notes what was published; it offers no way to take that back.
"""

from __future__ import annotations

import json
from typing import Any

from .host import Host

# what services write while they run, and the vector database's own order within a collection
ALIVE = r"-name '*-wal' -o -name '*-shm' -o -name '*.log' -o -path '*/wal/*' -o -path '*/segments/*'"
PLACES = "/opt/ownstack /etc/ownstack /var/lib/ownstack /tmp /var/tmp /dev/shm /run/ownstack*"
STATISTICS = ("insights_", "workflow_statistics", "workflow_publication_outbox")
COUNT = r"""
import glob, json, sqlite3, urllib.request
rows = {}
for path in ("/var/lib/ownstack/open_webui/webui.db", "/var/lib/ownstack/n8n/.n8n/database.sqlite"):
    base = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    for (table,) in base.execute("select name from sqlite_master where type = 'table'").fetchall():
        rows[f"{path}: {table}"] = base.execute(f'select count(*) from "{table}"').fetchone()[0]
key = open("/etc/ownstack/secrets/qdrant_api_key").read().strip()
def ask(path, body=None):
    head = {"api-key": key, "content-type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request("http://127.0.0.1:6333" + path, data, head)
    return json.load(urllib.request.urlopen(asked))["result"]
names = [one["name"] for one in ask("/collections")["collections"]]
points = {name: ask(f"/collections/{name}/points/count", {"exact": True})["count"] for name in names}
tags = json.load(urllib.request.urlopen("http://127.0.0.1:11434/api/tags"))["models"]
print(json.dumps({"rows": rows, "points": points, "models": sorted(one["name"] for one in tags)}))
"""


def records(host: Host) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(host.run("python3 -", data=COUNT).stdout)
    found["rows"] = {
        name: count for name, count in found["rows"].items() if not name.rpartition(" ")[2].startswith(STATISTICS)
    }
    listed = host.output(f"find {PLACES} -xdev \\( {ALIVE} \\) -prune -o -print 2>/dev/null || true")
    found["files"] = sorted(listed.splitlines())
    return found
