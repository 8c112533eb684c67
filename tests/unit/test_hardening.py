"""Every unit's exposure, as systemd's own judge has it: at most 2.0 of 10, on any machine and with any network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ownstack.engine import units
from ownstack.plan import Plan, Schedule
from ownstack.verify import common
from roles import roles_of
from roles.base import schedule
from tests.unit import machines

MOST = 2.0


def exposure(unit: Path) -> float:
    """`systemd-analyze security` over a unit file, without a running systemd. 0 is sealed, 10 is open."""
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not installed")
    done = subprocess.run(
        [tool, "security", "--offline=yes", "--no-pager", str(unit)], capture_output=True, text=True, check=False
    )
    found = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
    if found is None:
        pytest.skip(f"this systemd-analyze judges no files: {done.stderr.strip()[-200:]}")
    return float(found[1])


def write(plan: Plan, folder: Path) -> list[Path]:
    paths = []
    for role in roles_of(plan):
        for service in role.services(plan):
            for file in units.unit_files(plan, service):
                path = folder / Path(file.path).name
                path.write_text(file.content)
                paths.append(path)
    return paths


@pytest.mark.parametrize("machine", ["bare-server", "rtx-4090", "rx-7900-xtx", "arc-b580-xe"])
@pytest.mark.parametrize("network", ["closed", "lan", "internet"])
def test_no_unit_is_more_exposed_than_promised(machine: str, network: str, tmp_path: Path) -> None:
    names = ("qdrant", "ollama", "open_webui", "n8n")
    plan = machines.plan(machine, {"network": dict.fromkeys(names, network)})
    found = {path.name: exposure(path) for path in write(plan, tmp_path)}
    print(network, machine, found)
    assert set(found) == {f"ownstack-{name.replace('_', '-')}.service" for name in names}
    assert {name: value for name, value in found.items() if value > MOST} == {}


@pytest.mark.parametrize("machine", ["rtx-4090", "rx-7900-xtx", "arc-b580-xe"])
def test_no_unit_asks_for_a_group_that_the_host_may_lack(machine: str, tmp_path: Path) -> None:
    """systemd starts no service with an unknown group, and a small Debian has no `render`: accounts join what is."""
    for path in write(machines.plan(machine), tmp_path):
        assert "SupplementaryGroups=" not in path.read_text(), path.name


PRIVATE = "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 169.254.0.0/16 fc00::/7 fe80::/10"


@pytest.mark.parametrize(
    ("network", "rules"),
    [
        ("closed", ["IPAddressDeny=any", "IPAddressAllow=127.0.0.1/32 ::1/128"]),
        ("lan", ["IPAddressDeny=any", "IPAddressAllow=127.0.0.1/32 ::1/128", f"IPAddressAllow={PRIVATE}"]),
        ("internet", []),
    ],
)
def test_a_unit_reaches_as_far_as_its_policy_says(network: str, rules: list[str], tmp_path: Path) -> None:
    plan = machines.plan(flags={"network.n8n": network})
    found = {
        path.name: [line for line in path.read_text().splitlines() if line.startswith("IPAddress")]
        for path in write(plan, tmp_path)
    }
    assert found.pop("ownstack-n8n.service") == rules
    closed = ["IPAddressDeny=any", "IPAddressAllow=127.0.0.1/32 ::1/128"]
    assert list(found.values()) == [closed] * 3, "opened for one, it stays closed for the others"


def test_no_service_waits_for_another_at_its_start(tmp_path: Path) -> None:
    """The order is free: what one needs of another it waits for itself."""
    for path in write(machines.plan(), tmp_path):
        ordered = [
            line for line in path.read_text().splitlines()
            if re.match(r"(After|Before|Requires|Requisite|Wants|BindsTo|PartOf|Upholds)=", line)
        ]  # fmt: skip
        assert ordered == ["After=network.target"], path.name


@pytest.mark.parametrize("name", ["ollama", "open_webui", "n8n", "qdrant"])
def test_every_service_sees_the_folders_that_are_bound_into_it(name: str) -> None:
    given = {
        f"folders.{key}.{word}": value
        for key, write in (("docs", False), ("out", True))
        for word, value in (("path", f"/srv/{key}"), ("service", name), ("write", write))
    }
    made = machines.plan(flags=given)
    for role, service in common.services(made):
        assert ("/srv/out" in service.writable) == (role == name)
        assert ("/srv/docs" in service.readable) == (role == name)


def test_the_judge_sees_a_missing_wall(tmp_path: Path) -> None:
    (unit, *_) = write(machines.plan(flags={"roles": ["qdrant"]}), tmp_path)
    sealed = exposure(unit)
    walls = ("ProtectSystem=", "ProtectHome=", "PrivateDevices=", "CapabilityBoundingSet=", "SystemCallFilter=")
    kept = [line for line in unit.read_text().splitlines() if not line.startswith(walls)]
    unit.write_text("\n".join(kept) + "\n")
    assert exposure(unit) > MOST > sealed


def backup_units(manager: str, folder: Path) -> list[Path]:
    wanted = Schedule(every="day", to="/srv/backups", drill=True, recipients=("age1x",))
    plan = machines.plan().model_copy(update={"backup": wanted, "manager": manager})
    paths = []
    for file in schedule.files(plan, wanted)[1:]:
        path = folder / Path(file.path).name
        # the program that the unit starts is not on this machine
        path.write_text(file.content.replace("/opt/ownstack/base/current/runner", "/bin/true"))
        paths.append(path)
    return paths


def test_the_backup_unit_is_no_more_exposed_than_its_work_needs(tmp_path: Path) -> None:
    """It runs as root, because it reads what belongs to all services, and is closed to all else."""
    service, _ = backup_units("systemd", tmp_path)
    found = exposure(service)
    print("backup", found)
    assert found <= MOST
    text = service.read_text()
    assert "CapabilityBoundingSet=CAP_DAC_READ_SEARCH CAP_DAC_OVERRIDE CAP_CHOWN CAP_FOWNER\n" in text
    assert "IPAddressDeny=any" in text
    kept = [line for line in text.splitlines() if not line.startswith(("ProtectSystem=", "CapabilityBoundingSet="))]
    service.write_text("\n".join(kept) + "\n")
    assert exposure(service) > MOST


@pytest.mark.parametrize("manager", ["systemd", "systemd-user"])
def test_systemd_accepts_the_backup_unit_and_its_timer(manager: str, tmp_path: Path) -> None:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not installed")
    mode = ["--user"] if manager == "systemd-user" else []
    env = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    run = subprocess.run(
        [tool, *mode, "verify", *backup_units(manager, tmp_path)], capture_output=True, text=True, check=False, env=env
    )
    assert run.returncode == 0, run.stderr
    assert "Unknown" not in run.stderr, run.stderr
