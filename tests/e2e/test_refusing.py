"""Loopback only and refusing: what a second host finds, what a stranger on the box gets, what a rebound name gets."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.conftest import Mirror
from tests.hosts import Host, Network, scan
from tests.hosts.kit import Ownstack
from tests.hosts.network import Uplink
from tests.hosts.state import clear_host

SSH = 22
# names, discovery, time, snmp, and the box's own numbers
UDP = (53, 67, 68, 69, 123, 137, 138, 161, 500, 1900, 4500, 5353, 5355, 5678, 5679, 6333, 6334, 6335, 8080, 11434)
CONTROL = 47111  # where the control listens
FOREIGN = "rebound.example"
# whole enough that signing up is refused for what it is, not for what is missing
BODY = json.dumps({"name": "x", "email": "x@example.org", "password": "long-enough-4711"})
OPEN_WEBUI, QDRANT, N8N, OLLAMA = 8080, 6333, 5678, 11434


@dataclass(frozen=True)
class Endpoint:
    port: int
    method: str
    path: str

    def __str__(self) -> str:
        return f"{self.method} {self.port}{self.path}"


def table(port: int, text: str) -> list[Endpoint]:
    return [Endpoint(port, *line.split()) for line in text.strip().splitlines()]


# All of these want credentials. Ollama knows none and is not among them: see ENGINE.
CLOSED = [
    *table(
        OPEN_WEBUI,
        """
        GET /api/models
        GET /api/v1/auths/
        GET /api/v1/auths/admin/config
        GET /api/v1/auths/api_key
        POST /api/v1/auths/signup
        POST /api/v1/auths/update/password
        POST /api/v1/auths/add
        GET /api/v1/chats/
        GET /api/v1/chats/all/db
        DELETE /api/v1/chats/
        GET /api/v1/configs/export
        POST /api/v1/configs/import
        GET /api/v1/files/
        POST /api/v1/files/
        GET /api/v1/functions/
        GET /api/v1/knowledge/
        GET /api/v1/memories/
        GET /api/v1/prompts/
        GET /api/v1/retrieval/config
        POST /api/v1/retrieval/process/web
        GET /api/v1/tools/
        GET /api/v1/users/
        GET /api/v1/utils/db/download
        POST /api/chat/completions
        GET /ollama/api/tags
        POST /ollama/api/chat
        POST /ollama/api/pull
        GET /openai/config
        """,
    ),
    *table(
        QDRANT,
        """
        GET /collections
        PUT /collections/x
        DELETE /collections/open-webui_files
        POST /collections/open-webui_files/points/search
        POST /collections/open-webui_files/points/scroll
        GET /collections/open-webui_files/snapshots
        POST /snapshots
        GET /snapshots
        GET /cluster
        GET /telemetry
        GET /metrics
        POST /locks
        """,
    ),
    *table(
        N8N,
        """
        GET /rest/workflows
        POST /rest/workflows
        GET /rest/credentials
        POST /rest/credentials
        GET /rest/users
        GET /rest/executions
        GET /rest/api-keys
        GET /rest/variables
        GET /rest/tags
        PATCH /rest/me/password
        GET /types/nodes.json
        GET /types/credentials.json
        GET /api/v1/workflows
        POST /api/v1/workflows
        GET /api/v1/executions
        GET /api/v1/users
        POST /api/v1/audit
        """,
    ),
]
# The engine has no credentials at all: it is behind loopback, and refuses foreign names and foreign pages.
ENGINE = table(
    OLLAMA,
    """
    GET /
    GET /api/tags
    GET /api/ps
    GET /api/version
    POST /api/show
    POST /api/chat
    POST /api/generate
    POST /api/embed
    POST /api/pull
    POST /api/push
    POST /api/create
    POST /api/copy
    DELETE /api/delete
    GET /v1/models
    POST /v1/chat/completions
    """,
)
# What answers to everybody on the machine, on purpose; docs/reference/guarantees.md names all of it.
OPEN = [
    *table(OPEN_WEBUI, "GET /\nGET /health\nGET /ready\nGET /api/version\nGET /api/config"),
    *table(N8N, "GET /\nGET /healthz\nGET /healthz/readiness\nGET /rest/settings"),
    *table(QDRANT, "GET /\nGET /healthz\nGET /livez\nGET /readyz"),
]
GUARANTEES = Path(__file__).parents[2] / "docs/reference/guarantees.md"


@pytest.fixture(scope="module")
def box(common: Host) -> Host:
    """It refuses as fast as it is asked: what it refuses is the same, and the scan need not wait."""
    common.uplink.execute("sh", "-c", "echo 0 > /proc/sys/net/ipv4/icmp_ratelimit")
    return common


@pytest.fixture(scope="module")
def second(network: Network) -> Iterator[Uplink]:
    """Another host on the same network. It goes with this file: other tests of the run make hosts too."""
    folder = network.space / "hosts" / "stranger"
    yield network.attach(folder.name, folder)
    clear_host(folder)


def scanned(second: Uplink, address: str, *udp: int) -> dict[str, list[int]]:
    found = second.execute(sys.executable, "-I", Path(scan.__file__), address, *map(str, udp))
    return dict(json.loads(found))


def statuses(box: Host, asked: list[Endpoint], header: str = "") -> dict[str, int]:
    """What a caller without credentials gets, asked on the box itself, one after the other."""
    extra = f"-H {header!r} " if header else ""
    lines = [
        f"curl -s -o /dev/null -m 30 -w '%{{http_code}}\\n' -X {one.method} {extra}"
        + (f"-H 'content-type: application/json' -d '{BODY}' " if one.method in ("POST", "PUT", "PATCH") else "")
        + f"http://127.0.0.1:{one.port}{one.path}"
        for one in asked
    ]
    answers = box.run("sh -s", data="\n".join(lines) + "\n", check=False).stdout.split()
    assert len(answers) == len(asked)
    return {str(one): int(answer) for one, answer in zip(asked, answers, strict=True)}


def test_a_second_host_finds_nothing_but_ssh(box: Host, second: Uplink) -> None:
    assert scanned(second, box.address, *UDP) == {"tcp": [SSH], "silent": [], "udp": []}


def test_the_scan_finds_what_listens(box: Host, second: Uplink) -> None:
    listen = (
        "import socket,time\nfor kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):\n"
        f" s = socket.socket(type=kind); s.bind(('0.0.0.0', {CONTROL})); globals()[str(kind)] = s\n"
        " if kind == socket.SOCK_STREAM: s.listen()\ntime.sleep(120)\n"
    )
    box.run("cat > /tmp/listen.py; systemd-run -q --unit=control python3 /tmp/listen.py", data=listen)
    box.run(f"for i in $(seq 100); do ss -Hltn | grep -q :{CONTROL} && exit; sleep 0.1; done; exit 1")
    try:
        found = scanned(second, box.address, CONTROL, QDRANT)
        assert found == {"tcp": [SSH, CONTROL], "silent": [], "udp": [CONTROL]}
    finally:
        box.run("systemctl stop control")


def test_every_listener_of_the_box_is_on_loopback(box: Host) -> None:
    """Also those that no scan would reach: no socket of TCP or UDP, of either family, beside sshd's."""
    rows = [line.split() for line in box.output("ss -Hlntu").splitlines()]
    places = {(row[0], row[4]) for row in rows}
    outside = {(kind, place) for kind, place in places if not place.startswith(("127.0.0.", "[::1]"))}
    assert outside == {("tcp", f"0.0.0.0:{SSH}"), ("tcp", f"[::]:{SSH}")}
    inside = {place.rpartition(":")[2] for kind, place in places if kind == "tcp"}
    assert {str(port) for port in (OPEN_WEBUI, QDRANT, N8N, OLLAMA)} <= inside


def test_at_least_forty_endpoints_refuse_without_credentials(box: Host) -> None:
    assert len(CLOSED) >= 40
    answers = statuses(box, CLOSED)
    assert {name: status for name, status in answers.items() if status not in (401, 403)} == {}


def test_what_is_open_is_open_on_purpose(box: Host) -> None:
    said = GUARANTEES.read_text().partition("## Open on purpose")[2].partition("\n## ")[0]
    assert {one.path for one in OPEN} - set(re.findall(r"`(/[^`]*)`", said)) == set()
    assert {name: status for name, status in statuses(box, OPEN).items() if status != 200} == {}
    assert "/webhook/ask" in said
    ask = [Endpoint(N8N, "GET", "/webhook/ask"), Endpoint(N8N, "GET", "/webhook/none")]
    assert "not registered for GET" in box.output(f"curl -s http://127.0.0.1:{N8N}/webhook/ask")
    assert set(statuses(box, ask).values()) == {404}


def test_with_credentials_they_answer(box: Host, mirror: Mirror) -> None:
    """The table asks for what is there: the same addresses answer to somebody who may."""
    key = box.output("cat /etc/ownstack/secrets/qdrant_api_key")
    config = f'header = "api-key: {key}"\nurl = "http://127.0.0.1:{QDRANT}/collections"\n'
    assert box.run("curl -s -o /dev/null -w '%{http_code}' -K -", data=config).stdout == "200"
    ownstack: Ownstack = mirror.ownstack(box)
    email, password = ownstack.first_password("open_webui")
    sign_in = json.dumps({"email": email, "password": password})
    ask = f"curl -s -H 'content-type: application/json' -d @- http://127.0.0.1:{OPEN_WEBUI}/api/v1/auths/signin"
    token = json.loads(box.run(ask, data=sign_in).stdout)["token"]
    config = f'header = "authorization: Bearer {token}"\nurl = "http://127.0.0.1:{OPEN_WEBUI}/api/v1/users/"\n'
    assert box.run("curl -s -o /dev/null -w '%{http_code}' -K -", data=config).stdout == "200"


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_the_names_of_the_box_are_answered(box: Host, name: str) -> None:
    pages = [Endpoint(port, "GET", "/") for port in (OPEN_WEBUI, N8N, OLLAMA)]
    assert set(statuses(box, pages, f"Host: {name}:59999").values()) == {200}


@pytest.mark.parametrize("header", [f"Host: {FOREIGN}", f"Host: {FOREIGN}:8080", f"Host: 127.0.0.1.{FOREIGN}"])
def test_a_rebound_name_is_refused(box: Host, header: str) -> None:
    """A page of a stranger whose name points at 127.0.0.1: the browser sends that name, and no credentials."""
    pages = [Endpoint(port, "GET", path) for port in (OPEN_WEBUI, N8N) for path in ("/", "/health", "/healthz")]
    pages += [Endpoint(N8N, "POST", "/webhook/x"), Endpoint(N8N, "GET", "/rest/settings")]
    pages += [Endpoint(OPEN_WEBUI, "GET", "/api/config"), Endpoint(OPEN_WEBUI, "POST", "/api/v1/auths/signin")]
    answers = statuses(box, [*pages, *ENGINE], header)
    assert {name: status for name, status in answers.items() if status not in (403, 421)} == {}
    # Qdrant looks at no name; it tells its version to anybody, and all else only to who has the key
    kept = [one for one in CLOSED if one.port == QDRANT]
    assert set(statuses(box, kept, header).values()) <= {401, 403}


def test_the_engine_refuses_pages_of_strangers(box: Host) -> None:
    answers = statuses(box, ENGINE, f"Origin: http://{FOREIGN}")
    assert set(answers.values()) == {403}


def test_n8n_refuses_pages_of_strangers(box: Host) -> None:
    asked = [one for one in CLOSED if one.port == N8N] + [Endpoint(N8N, "POST", "/webhook/x")]
    assert set(statuses(box, asked, f"Origin: https://{FOREIGN}").values()) == {421}
    # a page in a sandbox has no name; forms of n8n are such pages, its own interface is not
    assert statuses(box, [Endpoint(N8N, "GET", "/rest/settings")], "Origin: null") == {f"GET {N8N}/rest/settings": 421}
    own = [Endpoint(N8N, "GET", "/rest/settings")]
    assert set(statuses(box, own, "Origin: http://127.0.0.1:59999").values()) == {200}


def test_no_page_of_a_stranger_may_read_an_answer(box: Host) -> None:
    """No service allows a foreign origin by CORS."""
    for port, path in ((OPEN_WEBUI, "/api/config"), (N8N, "/rest/settings"), (QDRANT, "/"), (OLLAMA, "/")):
        ask = f"curl -s -o /dev/null -D - -H 'Origin: http://{FOREIGN}' http://127.0.0.1:{port}{path}"
        heads = box.output(ask).lower()
        assert heads.startswith("http/1.1 ")
        assert f"access-control-allow-origin: http://{FOREIGN}" not in heads
        assert "access-control-allow-origin: *" not in heads
