"""The weekly maintenance gives back the room that old executions took in n8n's database."""

from __future__ import annotations

import json

from tests.e2e.conftest import Mirror
from tests.e2e.test_backup import dump
from tests.hosts import Host

FILE = "/var/lib/ownstack/n8n/.n8n/database.sqlite"
# as many old executions would leave it: room that nothing uses
FILL = """
import sqlite3
work = sqlite3.connect("/var/lib/ownstack/n8n/.n8n/database.sqlite", timeout=60)
work.execute("CREATE TABLE for_the_test (text TEXT)")
work.executemany("INSERT INTO for_the_test VALUES (?)", [("x" * 4000,)] * 10000)
work.commit()
work.execute("DROP TABLE for_the_test")
work.commit()
print(work.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone())
"""


def test_the_timer_makes_the_database_smaller_and_n8n_goes_on(common: Host, mirror: Mirror) -> None:
    ownstack = mirror.ownstack(common)
    assert "ownstack-maintain.timer" in common.output("systemctl list-timers --all --no-legend")
    common.run("python3 -", data=FILL)
    before, size = dump(common), int(common.output(f"stat -c %s {FILE}"))
    assert size > 35 << 20
    common.run("systemctl start ownstack-maintain.service")
    assert int(common.output(f"stat -c %s {FILE}")) < size - (30 << 20)
    assert dump(common) == before
    assert common.output(f"stat -c '%U %a' {FILE}*").startswith("ownstack-n8n ")
    assert common.output("find /var/lib/ownstack/n8n ! -user ownstack-n8n") == ""
    assert common.output("systemctl is-active ownstack-n8n") == "active"
    found = json.loads(ownstack("status", "--json").stdout)["data"]["maintenance"]
    assert found["did"] == "vacuumed"
    assert "made smaller" in ownstack("status").stdout
    pid = common.output("systemctl show ownstack-n8n -p MainPID")
    common.run("systemctl start ownstack-maintain.service")
    assert common.output("systemctl show ownstack-n8n -p MainPID") == pid, "nothing to win: n8n is not stopped"
