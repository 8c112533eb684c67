"""What a person sees: `ownstack open` from another machine, a headless browser, sign-in, a question, an answer."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import Mirror
from tests.hosts import Host
from tests.hosts.browser import Browser, Chat, Workflows
from tests.hosts.commands import cache, run
from tests.hosts.kit import Ownstack

PICTURES = cache().parent / "pictures"


@pytest.fixture(scope="module")
def ownstack(common: Host, mirror: Mirror) -> Ownstack:
    return mirror.ownstack(common)


def test_a_question_is_answered_in_the_web_page(ownstack: Ownstack) -> None:
    email, password = ownstack.first_password("open_webui")
    with ownstack.opened() as address, Browser() as browser:
        own = address.split("/")[2]
        chat = Chat(browser, address)
        chat.sign_in(email, password)
        answer = chat.ask("Which city is the capital of France?")
        browser.screenshot(PICTURES / "chat.png")
        assert answer
        assert browser.foreign(own) == set()
        assert any(own in url for url in browser.requests())
    print(f"screenshot: {PICTURES / 'chat.png'}")


def test_n8n_opens_with_its_demo(ownstack: Ownstack) -> None:
    email, password = ownstack.first_password("n8n")
    with ownstack.opened("n8n") as address, Browser() as browser:
        workflows = Workflows(browser, address)
        workflows.sign_in(email, password)
        assert workflows.names()
        browser.screenshot(PICTURES / "n8n.png")
        assert browser.foreign(address.split("/")[2]) == set()


def test_a_page_cannot_ask_elsewhere_and_it_would_be_seen(ownstack: Ownstack) -> None:
    """A script in the page is held back by the page's own policy; the same from an empty page is seen."""
    ask = "fetch('http://foreign.example:81/x', {mode: 'no-cors'}).catch(() => 0)"
    with ownstack.opened() as address, Browser() as browser:
        own = address.split("/")[2]
        browser.open(address)
        browser.driver.execute_script(ask)
        browser.find("input[type=password]")
        assert browser.foreign(own) == set()
        browser.open("about:blank")
        browser.driver.execute_script(ask)
        browser.until(lambda: browser.foreign(own) or None, "foreign request")
        assert browser.foreign(own) == {"foreign.example:81"}


def test_no_tunnel_is_left(ownstack: Ownstack) -> None:
    """The tunnel is there while the page is open, and ends with the command."""
    tunnels = ("pgrep", "-f", f"ssh -N .*{ownstack.box.folder}/")
    with ownstack.opened():
        assert run(*tunnels).stdout
    assert run(*tunnels, check=False).stdout == ""
