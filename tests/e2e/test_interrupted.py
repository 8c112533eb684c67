"""`up` killed again and again: the next one goes on, what is the owner's stays, nothing lies about afterwards.

The programs of a provisioned box are taken away (`down`) and installed again by runs that are killed at seeded
points, each further on than the one before. At some of them the host itself loses its power.
"""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Mirror, Provisioned
from tests.e2e.test_debian12_root import lay_back, programs
from tests.hosts import Host, Network, lab
from tests.hosts.kit import Ownstack

SEED = 20260412
POINTS = 10
CUTS = 3  # of the points: the host's power goes too
# the product, which ends itself without a word `late` seconds into operation number `at`
KILLED = """
import os, signal, sys, threading
at, late = int(sys.argv[1]), float(sys.argv[2])
del sys.argv[1:3]
from ownstack.engine import apply
seen = 0
plain = apply._progress
def counting(listen, names):
    def told(event):
        global seen
        seen += 1
        if seen == at + 1:
            end = lambda: os.kill(os.getpid(), signal.SIGKILL)
            threading.Timer(late, end).start() if late else end()
        listen(event)
    return plain(told, names)
apply._progress = counting
from ownstack.cli import main
sys.exit(main())
"""
# what may lie in the box's folders, and in the places for temporary files, only while something is being done
TEMPORARY = (
    r"find /opt/ownstack /etc/ownstack /var/lib/ownstack /tmp /var/tmp /dev/shm /run/user -xdev \( "
    r"-name '*.part' -o -name '*.new' -o -name '*.ownstack-new' -o -name '.pull-*' -o -name 'pyinfra-*' "
    r"-o -name 'ownstack-*' -path '/[dtr]*' -o -name '.ownstack-*' ! -name '.ownstack-release.json' "
    r"-o -path '/opt/ownstack/*/releases/.*' -prune -o -path '/var/lib/ownstack/work/*' -prune \) -print"
)
MINE = {"vectors": {"size": 4, "distance": "Cosine"}}
POINT = {"points": [{"id": 7, "vector": [0.1, 0.2, 0.3, 0.4], "payload": {"text": "the owner's"}}]}
EMBEDDING = "all-minilm:22m"


@pytest.fixture(scope="module")
def box(network: Network, debian12: Provisioned) -> Iterator[Host]:
    with debian12.clone(network, "cut", (programs(debian12),)) as host:
        yield host


@pytest.fixture(scope="module")
def ownstack(box: Host, mirror: Mirror) -> Ownstack:
    return mirror.ownstack(box)


def qdrant(box: Host, method: str, path: str, body: object = None) -> str:
    """Ask the vector database on the host; the key stays in a file."""
    box.run("umask 077; (printf 'api-key: '; cat /etc/ownstack/secrets/qdrant_api_key) > /run/header")
    ask = f"curl -s -X {method} -H 'content-type: application/json' -H @/run/header"
    send = " -d @-" if body is not None else ""
    said = box.run(f"{ask}{send} 'http://127.0.0.1:6333{path}'; rm /run/header", data=json.dumps(body))
    return said.stdout


def owners(box: Host, ownstack: Ownstack) -> dict[str, str]:
    """What is the owner's: secrets (by hash), a point in the vector database, the sign-in, workflows and settings."""
    email, password = ownstack.first_password("open_webui")
    asked = "curl -s -o /dev/null -w '%{http_code}' -H 'content-type: application/json' -d @- "
    sign_in = json.dumps({"email": email, "password": password})
    table = "python3 - /var/lib/ownstack/{} <<'EOF'\nimport sqlite3, sys\n"
    rows = "print(sorted(sqlite3.connect('file:' + sys.argv[1] + '?mode=ro', uri=True).execute('{}')))\nEOF"
    n8n = "n8n/.n8n/database.sqlite"
    return {
        "secrets": box.output("cd /etc/ownstack/secrets && sha256sum * | sort"),
        "point": json.loads(qdrant(box, "GET", "/collections/mine/points/7"))["result"]["payload"]["text"],
        "sign-in": box.run(f"{asked} http://127.0.0.1:8080/api/v1/auths/signin", data=sign_in).stdout,
        "workflows": box.output(table.format(n8n) + rows.format("select id, name, nodes, active from workflow_entity")),
        "credentials": box.output(table.format(n8n) + rows.format("select id, name, data from credentials_entity")),
        "models": box.output("curl -s http://127.0.0.1:11434/api/tags"),
    }


def killed(ownstack: Ownstack, at: int, late: float) -> int:
    """`up` that ends at a point; its exit status."""
    python = str(ownstack.checkout / ".venv/bin/python")
    argv = [python, "-P", "-c", KILLED, str(at), str(late), *ownstack.argv("up", "--yes", "--no-verify")[1:]]
    Path(ownstack.settings).write_text(ownstack.toml)
    done = subprocess.run(
        argv, env=ownstack.environment, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600,
        check=False, start_new_session=True,
    )  # fmt: skip
    if done.returncode >= 0:
        print(done.stdout[-2000:], done.stderr[-2000:])
    return done.returncode


def points(debian12: Provisioned) -> list[tuple[int, float, bool]]:
    """Operation, seconds into it, and whether the host goes too; seeded, in the order of the run."""
    chance = random.Random(SEED)  # noqa: S311 - not for secrets
    changing = [number for number, op in enumerate(debian12.first["operations"]) if op["changed"]]
    chosen = sorted(chance.sample(changing, POINTS))
    cuts = set(chance.sample(chosen, CUTS))
    return [(at, 0.0 if at == changing[-1] else round(chance.uniform(0, 2.5), 2), at in cuts) for at in chosen]


def test_killed_at_ten_points_it_converges_and_nothing_is_lost(
    box: Host, ownstack: Ownstack, debian12: Provisioned
) -> None:
    qdrant(box, "PUT", "/collections/mine", MINE)
    qdrant(box, "PUT", "/collections/mine/points?wait=true", POINT)
    before = owners(box, ownstack)
    assert before["sign-in"] == "200"
    had = box.output(TEMPORARY)
    assert had == ""
    ownstack("down", "--yes")
    names = [op["name"] for op in debian12.first["operations"]]
    behind = [at for at, _, _ in points(debian12) if at > names.index("n8n: program")]
    for at, late, cut in points(debian12):
        name = names[at]
        if at in behind[:1]:  # from here on it would be made, whole, before anything else is shown
            lay_back(box, debian12, "n8n")
        began = time.monotonic()
        assert killed(ownstack, at, late) == -9, name
        if cut:
            box.crash()
        print(f"killed {late} s into {name!r}{', the power gone' if cut else ''}: {time.monotonic() - began:.1f} s")
    last = ownstack.json("up", "--yes")
    print(f"the last up: {last['seconds']} s, changed {[op['name'] for op in last['operations'] if op['changed']]}")
    assert [check for check in last["verify"]["checks"] if check["status"] != "ok"] == []
    assert owners(box, ownstack) == before
    assert box.output(TEMPORARY) == ""
    assert json.loads(box.output("cat /var/lib/ownstack/manifest.json"))["complete"] is True
    assert ownstack.json("up", "--yes", "--no-verify")["changed"] == 0


def test_the_connection_closed_during_a_pull(
    box: Host, ownstack: Ownstack, mirror: Mirror, network: Network, tmp_path: Path
) -> None:
    """The pull of the embedding model, which `up` waits for, half fetched: the run goes on, and fetches the rest."""
    with lab.models(mirror.lab, tmp_path / "registry").serve(network.gateway) as registry:
        moved = ownstack.toml.replace(mirror.registry.url.removeprefix("http://"), registry.url.removeprefix("http://"))
        slow = Ownstack(box, variables=ownstack.variables, toml=moved)
        gone = json.dumps({"model": EMBEDDING})
        box.run("curl -sf -X DELETE -d @- http://127.0.0.1:11434/api/delete", data=gone)
        registry.rate = 6_000_000
        argv = slow._prepared("up", "--yes", "--no-verify", "--json")
        process = subprocess.Popen(
            argv, env=slow.environment, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
            stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        end = time.monotonic() + 120
        while sum(asked.sent for asked in registry.asked) < 10_000_000:
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.1)
        # the sshd that serves this connection: the parent of the shell that runs the step
        box.run("kill -9 $(ps -o ppid= -p $(pgrep -of 'ollama[.]pull'))")
        # still as slow: what is under way when a pull ends is lost, and that is little then
        sent = sum(asked.sent for asked in registry.asked)
        said, words = process.communicate(timeout=300)
        assert process.returncode == 0, said
        assert words.index("trying to connect again") < words.index("connected again to ")
        assert EMBEDDING in box.output("curl -s http://127.0.0.1:11434/api/tags")
        again = sum(asked.sent for asked in registry.asked) - sent
        digest = max(registry.asked, key=lambda asked: asked.sent).path.rpartition("sha256:")[2]
        (blob,) = (tmp_path / "registry/blobs").glob(f"*{digest}")
        assert 0 < again < blob.stat().st_size - sent / 2, (sent, again)
        assert slow.json("up", "--yes", "--no-verify")["changed"] == 0
    assert box.output(TEMPORARY) == ""
