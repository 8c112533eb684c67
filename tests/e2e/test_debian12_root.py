"""Debian 12 over SSH as root: the life of a box, from the first `up` to `down --purge`.

The tests of this file follow each other on one clone of the provisioned host.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Mirror, Provisioned
from tests.hosts import Host, Network, footprint
from tests.hosts.kit import CHECKOUT, READY, SERVICES, Ownstack, processes, wait_ready
from tests.hosts.records import records

PREFIX = "ownstack-"


@pytest.fixture(scope="module")
def box(network: Network, debian12: Provisioned) -> Iterator[Host]:
    with debian12.clone(network, "life", (programs(debian12),)) as host:
        yield host


def programs(debian12: Provisioned) -> Path:
    """What the first `up` installed, under the same path on this machine and on the host."""
    return debian12.layer / "opt/ownstack"


def lay_back(box: Host, debian12: Provisioned, *names: str) -> None:
    """Put back programs that take a minute or two to make, as the first `up` made them. `box` sees `programs`."""
    for name in names:
        box.run(f"mkdir -p /opt/ownstack/{name} && cp -a {programs(debian12)}/{name}/releases /opt/ownstack/{name}/")


@pytest.fixture(scope="module")
def ownstack(box: Host, mirror: Mirror) -> Ownstack:
    return mirror.ownstack(box)


def test_the_first_up_is_green(debian12: Provisioned) -> None:
    verdict = debian12.first["verify"]
    assert [check for check in verdict["checks"] if check["status"] != "ok"] == []
    assert len(verdict["checks"]) > 10
    assert debian12.first["changed"] > 10


def test_a_second_up_changes_nothing_and_restarts_nothing(box: Host, ownstack: Ownstack) -> None:
    before = processes(box)
    again = ownstack.json("up", "--yes", "--no-verify")
    assert [op["name"] for op in again["operations"] if op["changed"]] == []
    assert processes(box) == before
    print(f"second up over SSH: {again['seconds']} s")
    assert ownstack("plan", "--exit-code", check=False).returncode == 0


def test_verify_leaves_nothing_behind(box: Host, ownstack: Ownstack) -> None:
    """It chats, uploads a document, makes a workflow: once more, and tables and collections are as they were."""
    before = records(box)
    assert len(before["rows"]) > 60
    assert before["points"]
    assert ownstack.json("verify")["ok"]
    after = records(box)
    assert sorted(set(after.pop("files")) - set(before.pop("files"))) == []
    assert after == before


def test_pyinfra_by_hand_carries_out_the_same_plan(box: Host, ownstack: Ownstack, mirror: Mirror) -> None:
    """pyinfra's own command with an inventory of one's own: what differs is put back, nothing else is touched."""
    before = processes(box)
    box.run("chmod 0755 /etc/ownstack/secrets")
    inventory = box.folder / "inventory.py"
    about = {"ssh_user": "root", "ssh_config_file": ownstack.environment["OWNSTACK_SSH_CONFIG"]}
    inventory.write_text(f"hosts = [({box.hostname!r}, {about!r})]\n")
    Path(ownstack.settings).write_text(ownstack.toml)
    done = subprocess.run(
        [CHECKOUT / ".venv/bin/pyinfra", inventory, mirror.lab.kit / "deploy.py", "-y"], cwd=mirror.lab.kit,
        env=ownstack.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert box.output("stat -c %a /etc/ownstack/secrets") == "700"
    assert processes(box) == before
    assert ownstack("plan", "--exit-code", check=False).returncode == 0


def test_services_stop_start_and_tell_their_last_lines(box: Host, ownstack: Ownstack) -> None:
    before = processes(box).split("\n\n")
    ownstack("stop", "qdrant")
    assert box.run("systemctl is-active ownstack-qdrant", check=False).stdout.strip() == "inactive"
    assert box.output("systemctl is-enabled ownstack-qdrant") == "enabled", "it starts again at the next boot"
    down = ownstack("status", "--json", check=False)
    assert (down.returncode, json.loads(down.stdout)["error"]["message"]) == (1, "not running: qdrant")
    ownstack("start")
    assert ownstack("status").returncode == 0
    after = processes(box).split("\n\n")
    assert sum(one != other for one, other in zip(before, after, strict=True)) == 1, "the others went on running"
    ownstack("restart", "n8n")
    assert sum(one != other for one, other in zip(after, processes(box).split("\n\n"), strict=True)) == 1
    lines = ownstack.json("logs", "-n", "3", "qdrant")["lines"]
    assert len(lines) == 3
    assert all("qdrant" in line for line in lines)


def with_papers(ownstack: Ownstack) -> Ownstack:
    more = '[folders.papers]\npath = "/home/tester/papers"\nservice = "n8n"\n'
    return Ownstack(ownstack.box, variables=ownstack.variables, toml=ownstack.toml + more)


def test_a_folder_of_the_host_is_seen_by_its_service_alone(box: Host, ownstack: Ownstack, tmp_path: Path) -> None:
    """Bound by a reviewed plan, which is good for once: then the box is another."""
    reviewed = str(tmp_path / "plan.json")
    box.run("cd /home/tester && mkdir papers private && echo x > papers/one && chmod 0755 . papers private")
    with_papers(ownstack)("plan", "--out", reviewed)
    assert ownstack.json("up", "--yes", "--no-verify", "--plan", reviewed)["changed"] > 0
    again = ownstack("up", "--yes", "--plan", reviewed, check=False)
    assert again.returncode == 2
    assert "the box has changed since the plan was made" in again.stderr

    def inside(service: str, command: str) -> tuple[int, str]:
        pid = box.output(f"systemctl show -p MainPID --value ownstack-{service}")
        done = box.run(f"nsenter -t {pid} -m {command}", check=False)
        return done.returncode, done.stdout.strip()

    assert inside("n8n", "cat /home/tester/papers/one") == (0, "x")
    assert inside("n8n", "ls /home/tester") == (0, "papers")
    assert inside("n8n", "touch /home/tester/papers/two")[0] != 0, "for reading"
    assert inside("open-webui", "ls /home/tester/papers")[0] != 0


def test_after_a_reboot_a_missing_folder_stops_its_service_alone(box: Host, ownstack: Ownstack) -> None:
    """A disk that is not plugged in, say: which folder is missing is said, and its service starts when it is there."""
    bound, n8n = with_papers(ownstack), READY[-1]
    box.run("mv /home/tester/papers /home/tester/away")
    box.reboot()
    wait_ready(box, READY[:-1])
    status = json.loads(bound("status", "--json", check=False).stdout)
    assert status["error"]["message"] == "not running: n8n (/home/tester/papers is not there)"
    assert "starts by itself" in status["error"]["hint"]
    failed = {check["id"]: check for check in bound.json("verify", check=False)["checks"] if check["status"] != "ok"}
    assert {name.partition("-")[0] for name in failed} == {"n8n"}, failed
    assert "/home/tester/papers is not there" in failed["n8n-runs"]["measured"]
    box.run("mv /home/tester/away /home/tester/papers")
    wait_ready(box, [n8n])


def test_after_a_reboot_it_verifies(ownstack: Ownstack) -> None:
    assert with_papers(ownstack).json("verify")["ok"]


def test_a_folder_that_is_bound_no_more_is_left_alone(box: Host, ownstack: Ownstack, debian12: Provisioned) -> None:
    (home,) = (line.split() for line in debian12.before.files if line.startswith("/home/tester d "))
    ownstack.json("up", "--yes", "--no-verify")
    assert box.output("cat /home/tester/papers/one") == "x"
    box.run(f"cd /home/tester && rm -r papers private && chmod {home[2]} .")


def test_down_keeps_what_is_the_owners(box: Host, ownstack: Ownstack, debian12: Provisioned) -> None:
    """Our accounts are lost meanwhile, and another takes one of their ids; `up` again gives all to the right hands.

    The two large programs are laid back as the first `up` made them: to make them once more shows nothing new.
    """
    email, password = ownstack.first_password("open_webui")
    sign_in = json.dumps({"email": email, "password": password})
    ownstack("down", "--yes")
    assert box.run("systemctl is-active ownstack-n8n", check=False).stdout.strip() != "active"
    assert box.output("ss -Hltn | awk '{print $4}' | grep -c ':22$'") != "0"
    assert box.output("ls -d /opt/ownstack 2>/dev/null || true") == ""
    added = json.loads(box.output("cat /var/lib/ownstack/manifest.json")).get("packages_added", [])
    files = box.output(f"dpkg -L {' '.join(added)}").splitlines() if added else []
    left = debian12.before.differences(footprint.take(box))
    assert footprint.beyond(left, ("/var/lib/ownstack", "/etc/ownstack"), added, files) == []
    lay_back(box, debian12, "n8n", "open_webui")
    ids = "getent passwd | grep ^ownstack | cut -d: -f3 | sort"
    before = box.output(ids).split()
    box.run("for name in $(getent passwd | grep -o '^ownstack[^:]*'); do userdel $name; done")
    box.run("useradd --system someone-else")
    assert box.output("id -u someone-else") in before  # what was ours would be theirs
    again = ownstack.json("up", "--yes")
    assert box.output(ids).split() != before
    assert box.output("find /var/lib/ownstack /etc/ownstack /opt/ownstack -user someone-else | head -3") == ""
    for service in SERVICES:
        name = service.replace("-", "_")
        owner = box.output(f"stat -c %U /var/lib/ownstack/{name}")
        assert owner == f"{PREFIX}{service}"
        assert box.output(f"find /var/lib/ownstack/{name} ! -user {owner} ! -user root | head -3") == ""
    said = box.run(
        "curl -s -o /dev/null -w '%{http_code}' -H 'content-type: application/json' -d @- "
        "http://127.0.0.1:8080/api/v1/auths/signin",
        data=sign_in,
    )
    assert said.stdout == "200"
    # the webhook of the demo asks the model with the stored credential: it must decrypt
    checks = {check["id"]: check["status"] for check in again["verify"]["checks"]}
    assert set(checks.values()) == {"ok"}


def test_purge_leaves_the_host_as_it_was(box: Host, ownstack: Ownstack, debian12: Provisioned) -> None:
    ownstack("down", "--purge", "--yes")
    box.run("userdel someone-else")
    assert debian12.before.differences(footprint.take(box)) == []
