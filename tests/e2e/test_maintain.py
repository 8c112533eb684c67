"""The weekly maintenance gives back the room that old executions took in n8n's database."""

from __future__ import annotations

import json
import time

import pytest

from tests.e2e.conftest import Mirror
from tests.e2e.older_box import plan_of
from tests.e2e.test_backup import dump
from tests.hosts import Host
from tests.hosts.kit import wait_ready

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


# runs that ended so many hours ago, as n8n writes them down
RUNS = """
import sqlite3, sys
work = sqlite3.connect("/var/lib/ownstack/n8n/.n8n/database.sqlite", timeout=60)
(flow,) = work.execute("SELECT id FROM workflow_entity").fetchone()
for hours in sys.argv[1:]:
    when = work.execute("SELECT strftime('%Y-%m-%d %H:%M:%f', 'now', ?)", (f"-{hours} hours",)).fetchone()[0]
    columns = '"workflowId", finished, mode, status, "startedAt", "stoppedAt", "createdAt"'
    row = (flow, 1, "webhook", "success", when, when, when)
    made = work.execute(f"INSERT INTO execution_entity ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", row).lastrowid
    work.execute("INSERT INTO execution_data VALUES (?, '{}', '[]', NULL)", (made,))
    print(made)
work.commit()
"""
LEFT = """
import sqlite3
work = sqlite3.connect("file:/var/lib/ownstack/n8n/.n8n/database.sqlite?mode=ro", uri=True, timeout=60)
for table, column in (("execution_entity", "id"), ("execution_data", '"executionId"')):
    print(*(row[0] for row in work.execute(f"SELECT {column} FROM {table} ORDER BY 1")))
"""
# n8n looks each hour, and removes what it has marked an hour before; here it does so all the time
OFTEN = """
[Service]
Environment=EXECUTIONS_DATA_PRUNE_SOFT_DELETE_INTERVAL=0.05 EXECUTIONS_DATA_PRUNE_HARD_DELETE_INTERVAL=0.05
Environment=EXECUTIONS_DATA_HARD_DELETE_BUFFER=0
"""


@pytest.mark.slow
def test_runs_older_than_the_setting_go_by_themselves(common: Host) -> None:
    hours = plan_of(common).role("n8n").settings["keep_executions_hours"]
    drop_in = "/run/systemd/system/ownstack-n8n.service.d/often.conf"
    made = common.run(f"python3 - {hours + 1} {hours - 1}", data=RUNS).stdout.split()
    common.run(f"mkdir -p {drop_in.rpartition('/')[0]}; cat > {drop_in}", data=OFTEN)
    try:
        common.run("systemctl daemon-reload; systemctl restart ownstack-n8n")
        end = time.monotonic() + 90
        while made[0] in common.run("python3 -", data=LEFT).stdout.split():
            assert time.monotonic() < end, "it did not go"
            time.sleep(1)
        for line in common.run("python3 -", data=LEFT).stdout.splitlines():
            assert made[1] in line.split(), "one that is younger stays"
    finally:
        common.run(f"rm {drop_in}; systemctl daemon-reload; systemctl restart ownstack-n8n")
        wait_ready(common)
