"""What a host is compared by before `up` and after `down --purge`: the parts that are commands of their own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.hosts import footprint

RULES = """table inet filter {
\tchain input {
\t\ttype filter hook input priority filter; policy accept;
\t\ttcp dport 22 accept
\t}

\tchain output {
\t\ttcp dport 22 accept
\t}
}
"""


def said(command: str, path: str) -> list[str]:
    return subprocess.run(
        ["/bin/sh", "-c", command], env={"PATH": path}, capture_output=True, text=True, check=True
    ).stdout.splitlines()


@pytest.fixture
def programs(tmp_path: Path) -> str:
    """A folder with an nft of the test, before all others."""
    rules, nft = tmp_path / "rules", tmp_path / "nft"
    rules.write_text(RULES)
    nft.write_text(f'#!/bin/sh\n[ "$*" = "-s list ruleset" ] && exec cat {rules}\n')
    nft.chmod(0o755)
    return f"{tmp_path}:{os.environ['PATH']}"


def test_a_rule_that_came_is_seen_whatever_it_counts(programs: str, tmp_path: Path) -> None:
    before = set(said(footprint.FIREWALL, programs))
    assert "inet filter output \t\ttcp dport 22 accept" in before
    (tmp_path / "rules").write_text(RULES.replace("\t\ttcp dport 22 accept\n\t}\n}", "\t\taccept\n\t}\n}"))
    assert set(said(footprint.FIREWALL, programs)) - before == {"inet filter output \t\taccept"}


def test_a_firewall_that_cannot_be_read_is_no_empty_one(programs: str, tmp_path: Path) -> None:
    (tmp_path / "nft").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(subprocess.CalledProcessError):
        said(footprint.FIREWALL, programs)


KEPT = [
    "+ files: /var/lib/ownstack d 755 root:root ", "+ files: /etc/ownstack/secrets/x f 600 root:root ",
    "+ files: /usr/bin/zstd f 755 root:root ", "+ contents: aa  /etc/ownstack/n8n/env", "- contents: bb  /etc/passwd",
    "+ contents: cc  /etc/passwd", "+ accounts: ownstack-n8n:x:990:", "+ groups: ownstack-n8n:x:990:",
    "- groups: render:x:104:anna", "+ groups: render:x:104:anna,ownstack-ollama", "+ packages: zstd 1.5 installed",
]  # fmt: skip
LEFT = [
    "+ files: /var/lib/ownstacks d 755 root:root ", "+ files: /etc/systemd/system/ownstack-n8n.service f 644 r:r ",
    "- files: /etc/motd f 644 root:root ", "+ contents: dd  /etc/fstab", "+ accounts: someone:x:991:",
    "+ groups: audio:x:29:someone", "- groups: audio:x:29:", "+ packages: nginx 1 installed",
    "+ units: ownstack-backup.timer enabled", "+ ports: 127.0.0.1:6333", "+ firewall: t c accept", "+ crontabs: ee  x",
]  # fmt: skip


def test_what_a_plain_down_may_leave_is_told_from_all_else() -> None:
    folders = ("/var/lib/ownstack", "/etc/ownstack")
    assert footprint.beyond([*KEPT, *LEFT], folders, ["zstd"], ["/usr/bin/zstd"]) == LEFT


def test_a_changed_crontab_is_seen(tmp_path: Path) -> None:
    spool = tmp_path / "crontabs"
    command = footprint.CRONTABS.replace("/var/spool/cron", str(spool))
    assert said(command, os.environ["PATH"]) == []
    spool.mkdir()
    (spool / "root").write_text("@daily true\n")
    before = said(command, os.environ["PATH"])
    (spool / "root").write_text("@daily false\n")
    assert len(before) == 1
    assert said(command, os.environ["PATH"]) != before
