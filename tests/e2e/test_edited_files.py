"""Configuration and units that somebody edited on a real box: named, kept, and given up only when asked for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.e2e.conftest import Mirror
from tests.hosts import Host
from tests.hosts.kit import Ownstack

UNIT = "/etc/systemd/system/ownstack-qdrant.service"
SECRET = "/etc/ownstack/n8n/env"


@pytest.fixture(scope="module")
def box(common: Host) -> Host:
    return common


@pytest.fixture(scope="module")
def ownstack(box: Host, mirror: Mirror) -> Ownstack:
    return mirror.ownstack(box)


def check(data: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [row for row in data["checks"] if row["id"] == name]
    return dict(found)


def test_they_are_named_and_shown_without_secrets(box: Host, ownstack: Ownstack) -> None:
    assert ownstack.json("status")["edited"] == []
    box.run(f"sed -i 's/^ProtectSystem=.*/ProtectSystem=full/' {UNIT} && systemctl daemon-reload")
    box.run(f"echo 'MY_OWN=1' >> {SECRET}")
    assert ownstack.json("status")["edited"] == [SECRET, UNIT]
    said = ownstack("plan").stdout
    assert "-ProtectSystem=full" in said
    assert "+ProtectSystem=strict" in said
    assert SECRET in said
    assert "MY_OWN" not in said, "of a file with secrets only the name is told"
    result = ownstack("verify", "--json", check=False)
    data = json.loads(result.stdout)["data"]
    assert result.returncode == 1
    assert check(data, "edited")["status"] == "amber"
    assert check(data, "edited")["values"]["files"] == [SECRET, UNIT]
    assert check(data, "protections")["status"] == "amber", "an edited wall is a weak wall, whoever edited it"


def test_up_keeps_them_and_puts_the_new_version_beside(box: Host, ownstack: Ownstack) -> None:
    box.run(f"chmod 666 {SECRET}")
    done = ownstack.json("up", "--yes", "--no-verify")
    assert [row["path"] for row in done["edited"]] == [SECRET, UNIT]
    assert "ProtectSystem=full" in box.output(f"cat {UNIT}")
    assert "ProtectSystem=strict" in box.output(f"cat {UNIT}.ownstack-new")
    assert "MY_OWN=1" in box.output(f"cat {SECRET}")
    modes = box.output(f"stat -c %a {SECRET} {SECRET}.ownstack-new").split()
    assert modes == ["600", "600"] or modes == ["640", "640"], "who may read it stays the box's to say"
    assert ownstack.json("up", "--yes", "--no-verify")["changed"] == 0


def test_overwrite_takes_the_boxs_own_and_keeps_theirs_aside(box: Host, ownstack: Ownstack) -> None:
    done = ownstack.json("up", "--yes", "--overwrite")
    assert done["verify"]["ok"]
    assert "ProtectSystem=strict" in box.output(f"cat {UNIT}")
    assert "ProtectSystem=full" in box.output(f"cat {UNIT}.ownstack-old")
    assert "MY_OWN=1" in box.output(f"cat {SECRET}.ownstack-old")
    assert box.run(f"ls {UNIT}.ownstack-new {SECRET}.ownstack-new", check=False).stdout == ""
    assert ownstack.json("status")["edited"] == []
