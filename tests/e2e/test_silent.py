"""Silent: with a way out and a name server at hand the box sends nothing, asks no name, and its pages ask nobody else.

Packets are counted per user before a unit's address rules drop them, so zero means that nobody tried. Each leg has a
control that is caught. Not shown here: what a service would do hours later; the tests run for minutes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Mirror
from tests.hosts import Host, Network
from tests.hosts.browser import ITS_OWN, USER, Browser, Chat, Workflows
from tests.hosts.kit import SERVICES, Ownstack, wait_ready
from tests.hosts.watch import REST, Sink, Watch

IDLE_S = 20
USERS = tuple(f"ownstack-{name}" for name in (*SERVICES, "pull"))
CONTROL = "control.example"
BROWSER = "the browser"
OPEN_WEBUI, N8N = "http://127.0.0.1:8080", "http://127.0.0.1:5678"
# a page of one chat is as good as any other; signing out ends the visit; files are no pages
NO_PAGES = r"/c/[0-9a-f-]{36}|/auth\b|/sign(in|out)|/static/|/assets/|\.(json|txt|md)$"
N8N_MENU = "[data-test-id=menu-item][href], [data-test-id=project-tabs] a"
EMBEDDING = "all-minilm:22m"


@pytest.fixture(scope="module")
def box(common: Host) -> Host:
    return common


@pytest.fixture(scope="module")
def ownstack(box: Host, mirror: Mirror) -> Ownstack:
    return mirror.ownstack(box)


@pytest.fixture(scope="module")
def sink(box: Host, network: Network) -> Iterator[Sink]:
    with Sink(network.gateway) as sink:
        before = box.output("cat /etc/resolv.conf")
        box.run(f"echo nameserver {network.gateway} > /etc/resolv.conf")
        yield sink
        box.run("cat > /etc/resolv.conf", data=f"{before}\n")


@pytest.fixture(scope="module")
def watch(box: Host) -> Watch:
    return Watch(box, USERS, {BROWSER: USER})


@pytest.fixture(autouse=True)
def anew(watch: Watch, sink: Sink) -> None:
    watch.reset()
    sink.asked.clear()


def inside(box: Host, service: str, command: str) -> int:
    """Run a command as a service's user within its unit, so that the unit's address rules hold for it; its status."""
    group = f"/sys/fs/cgroup/system.slice/ownstack-{service}.service/cgroup.procs"
    user = f"setpriv --reuid ownstack-{service} --regid ownstack-{service} --clear-groups"
    return box.run(f"echo $$ > {group} && exec {user} {command}", check=False).returncode


def test_control_each_user_is_counted_and_each_name_heard(box: Host, watch: Watch, sink: Sink) -> None:
    for user in USERS:
        watch.reset()
        sink.asked.clear()
        box.run(f"setpriv --reuid {user} --regid {user} --clear-groups curl -s -m 5 http://{CONTROL}:81", check=False)
        assert list(watch.packets()) == [user]
        assert set(sink.asked) == {CONTROL}
        assert watch.reached() == {(user, sink.address, 81)}
    watch.reset()
    box.run(f"curl -s -m 5 http://{CONTROL}:81", check=False)
    assert list(watch.packets()) == [REST]


def test_control_a_service_that_calls_is_counted_though_its_unit_holds_it_back(
    box: Host, watch: Watch, sink: Sink
) -> None:
    """The engine asked to fetch from elsewhere; and a call from within each unit."""
    ask = json.dumps({"model": f"{CONTROL}/library/x:1", "stream": False})
    box.run(f"curl -s -m 20 http://127.0.0.1:11434/api/pull -d '{ask}'", check=False)
    assert watch.packets().get("ownstack-ollama", 0) > 0
    assert sink.asked == []
    for service in SERVICES:
        watch.reset()
        assert inside(box, service, f"curl -s -m 2 http://{sink.address}:81") == 28, "not refused, but unheard"
        assert list(watch.packets()) == [f"ownstack-{service}"]


def test_starting_and_idle(box: Host, watch: Watch, sink: Sink) -> None:
    box.run("systemctl restart " + " ".join(f"ownstack-{name}" for name in SERVICES))
    wait_ready(box)
    time.sleep(IDLE_S)
    assert watch.packets() == {}
    assert sink.asked == []


def test_used_by_scripts(ownstack: Ownstack, watch: Watch, sink: Sink) -> None:
    """A chat, a document that is embedded and found, a workflow behind a webhook: all that verify does."""
    assert ownstack.json("verify")["ok"]
    assert watch.packets() == {}
    assert sink.asked == []


def silent_but_for_the_browser(watch: Watch, sink: Sink) -> None:
    """No service has sent a packet or asked a name; chromium has asked for no names but its own."""
    print(watch.packets(), sink.asked)
    assert set(sink.asked) <= ITS_OWN
    assert set(watch.packets()) <= {BROWSER}
    assert {(user, address) for user, address, _ in watch.reached()} <= {(BROWSER, sink.address)}


def test_every_menu_of_open_webui(box: Host, ownstack: Ownstack, watch: Watch, sink: Sink) -> None:
    email, password = ownstack.first_password("open_webui")
    watch.reset()
    sink.asked.clear()
    with Browser(box.uplink.name, resolver=sink.address) as browser:
        Chat(browser, OPEN_WEBUI).sign_in(email, password)
        pages, menus = browser.wander([OPEN_WEBUI, f"{OPEN_WEBUI}/admin/settings"], skip=NO_PAGES)
        print(f"{len(pages)} pages: {' '.join(pages)}; {len(menus)} menus: {menus}")
        assert len(pages) >= 12
        assert len(menus) >= 35
        assert browser.foreign("127.0.0.1:8080") == set()
    silent_but_for_the_browser(watch, sink)


def test_every_menu_of_n8n(box: Host, ownstack: Ownstack, watch: Watch, sink: Sink) -> None:
    email, password = ownstack.first_password("n8n")
    watch.reset()
    sink.asked.clear()
    with Browser(box.uplink.name, resolver=sink.address) as browser:
        workflows = Workflows(browser, N8N)
        workflows.sign_in(email, password)
        editor = f"{N8N}/workflow/{workflows.workflows()[0]['id']}"
        pages, menus = browser.wander([f"{N8N}/home/workflows", f"{N8N}/settings/personal", editor], N8N_MENU)
        print(f"{len(pages)} pages: {' '.join(pages)}; {len(menus)} menus: {menus}")
        assert len(pages) >= 15
        assert len(menus) >= 5
        assert browser.foreign("127.0.0.1:5678") == set()
    silent_but_for_the_browser(watch, sink)


def test_control_a_page_that_asks_elsewhere_is_seen_at_all_three(box: Host, watch: Watch, sink: Sink) -> None:
    with Browser(box.uplink.name, resolver=sink.address) as browser:
        browser.open("about:blank")
        browser.driver.execute_script(f"fetch('http://{CONTROL}:81/x', {{mode: 'no-cors'}}).catch(() => 0)")
        browser.until(lambda: browser.foreign("127.0.0.1") or None, "foreign request")
        browser.until(lambda: CONTROL in sink.asked or None, "name asked")
        browser.until(lambda: watch.packets().get(BROWSER), "packet")
        assert browser.foreign("127.0.0.1") == {f"{CONTROL}:81"}


def test_while_a_model_is_pulled_only_the_pulling_user_reaches_only_the_registry(
    box: Host, ownstack: Ownstack, mirror: Mirror, watch: Watch, sink: Sink
) -> None:
    before = box.output("date '+%F %T'")
    box.run(f"curl -sf -X DELETE http://127.0.0.1:11434/api/delete -d '{json.dumps({'model': EMBEDDING})}'")
    ownstack.json("up", "--yes", "--no-verify")
    address, _, port = mirror.registry.url.removeprefix("http://").partition(":")
    # `up` itself, as root, looks once whether the registry answers; no service sends anything
    assert set(watch.packets()) == {"ownstack-pull", REST}
    registry = (address, int(port))
    mirrored = mirror.files.url.removeprefix("http://").partition(":")
    by_root = {(where, number) for user, where, number in watch.reached() if user == "0"}
    assert by_root <= {registry, (mirrored[0], int(mirrored[2]))}
    assert {one for one in watch.reached() if one[0] != "0"} == {("ownstack-pull", *registry)}
    assert sink.asked == []
    unit = "ownstack-pull-all-minilm-22m-engine.service"
    log = box.output(f"journalctl --no-pager -o cat --since '{before}' UNIT={unit}")
    said = f"pull of {EMBEDDING} from {address}:{port}"
    assert f"Started {unit} - {said}." in log
    assert f"Stopped {unit} - {said}." in log
    assert "IP traffic" in log
    assert box.output("systemctl list-units --all --plain --no-legend 'ownstack-pull*'") == ""


def test_opened_for_n8n_it_is_open_for_n8n_alone(box: Host, mirror: Mirror, watch: Watch, sink: Sink) -> None:
    address = mirror.files.url
    assert {
        service: inside(box, service, f"curl -s -o /dev/null -m 2 {address}/") for service in SERVICES
    } == dict.fromkeys(SERVICES, 28)
    opened = Ownstack(box, variables=mirror.ownstack(box).variables, toml=mirror.toml + '[network]\nn8n = "internet"\n')
    opened.json("up", "--yes", "--no-verify")
    wait_ready(box)
    codes = {service: inside(box, service, f"curl -s -o /dev/null -m 2 {address}/") for service in SERVICES}
    assert codes.pop("n8n") == 0
    assert set(codes.values()) == {28}
    name = f"curl -s -m 2 http://{CONTROL}:81"
    assert inside(box, "n8n", name) == 7, "the name is found, nobody listens there"
    assert set(sink.asked) == {CONTROL}
