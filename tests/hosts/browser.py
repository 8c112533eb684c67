"""A headless browser as a person would use it: sign in, ask, read the answer, take a picture.

Debian's chromium driven by selenium. Every address that a page asks for is kept (`requests`), so that a
test can say that nothing foreign was asked for.

    with Browser() as browser:
        chat = Chat(browser, "http://127.0.0.1:8080")
        chat.sign_in("admin@example.com", password)
        print(chat.ask("Which city is the capital of France?"))
        browser.screenshot(Path("chat.png"))
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from .commands import PATH

T = TypeVar("T")
CHROMIUM, DRIVER = "chromium", "chromedriver"
# names that chromium asks of its own accord whatever the page: its search engine, its password check, its updates
ITS_OWN = frozenset({"start.duckduckgo.com", "passwordsleakcheck-pa.googleapis.com", "redirector.gvt1.com"})
# what chromium asks its makers of its own accord
WITHOUT = (
    *("Translate", "OptimizationHints", "MediaRouter", "AutofillServerCommunication", "PreconnectToSearch"),
    *("NetworkTimeServiceQuerying", "CertificateTransparencyComponentUpdater", "InterestFeedContentSuggestions"),
)
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-default-apps", "--mute-audio"),
    *("--disable-domain-reliability", f"--disable-features={','.join(WITHOUT)}", "--no-pings", "--disable-extensions"),
    *("--disable-client-side-phishing-detection", "--allow-browser-signin=false", "--no-default-browser-check"),
    *("--gaia-url=http://127.0.0.1:9", "--component-updater=url-source=http://127.0.0.1:9"),
    *("--remote-debugging-pipe", "--disable-dev-shm-usage", "--lang=en-US"),
)
USER = 64998  # chromium's own account number, so that its packets can be told from all others
# Clicks the next thing that opens something and was not clicked yet; gives its label, or null when there is none.
OPENER = """
const done = new Set(arguments[0]);
const label = e => [e.id, e.getAttribute('data-test-id'), e.getAttribute('aria-label'),
  e.innerText.trim().slice(0, 40), e.tagName].join('|').replace(/\\d+/g, '');
for (const e of document.querySelectorAll('[aria-haspopup], [aria-expanded=false], [role=tab], summary')) {
  const box = e.getBoundingClientRect();
  if (!box.width || !box.height || e.disabled || done.has(label(e))) continue;
  const name = label(e);
  for (const kind of ['pointerdown', 'mousedown', 'pointerup', 'mouseup'])
    e.dispatchEvent(new PointerEvent(kind, {bubbles: true, cancelable: true, button: 0, pointerType: 'mouse'}));
  e.click();
  return name;
}
return null;
"""
LINKS = """
return [...document.querySelectorAll(arguments[0])].filter(a => a.origin == location.origin
  && !a.hasAttribute('download')).map(a => a.href)
"""
# asks from within the page, with its session; gives [status, answer]
FETCH = """
const [method, path, body, done] = arguments;
const headers = {'content-type': 'application/json', 'browser-id': localStorage['n8n-browserId'] || ''};
if (localStorage.token) headers.authorization = 'Bearer ' + localStorage.token;
fetch(path, {method, headers, body: body === null ? undefined : JSON.stringify(body)})
  .then(async r => done([r.status, await r.text()])).catch(e => done([0, String(e)]));
"""


class Browser:
    """Chromium with an empty profile; with `namespace` its network is that namespace (`Uplink.name`).

    There it asks `resolver` for names, where one is given, instead of this machine's. It runs as USER.
    """

    def __init__(self, namespace: str = "", size: tuple[int, int] = (1280, 900), resolver: str = "") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="browser-"))
        options = webdriver.ChromeOptions()
        options.binary_location = str(self._binary(namespace, resolver))
        for flag in (*FLAGS, f"--window-size={size[0]},{size[1]}", f"--user-data-dir={self.folder}/profile"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        os.environ["SE_AVOID_STATS"] = "true"
        driver = shutil.which(DRIVER, path=PATH)
        if driver is None:
            raise FileNotFoundError("chromedriver is missing: run tests/hosts/prerequisites.sh")
        self.driver = webdriver.Chrome(options, Service(driver))
        self.driver.set_page_load_timeout(120)
        self.driver.set_script_timeout(120)
        self._seen: list[str] = []

    def _binary(self, namespace: str, resolver: str) -> Path:
        """A script that starts chromium in the namespace; the driver talks to it through inherited pipes."""
        path = self.folder / "chromium"
        # the driver, as root, has written into the profile
        lines = ["#!/bin/sh", f"PATH={PATH}", f"export HOME={self.folder}", f'chown -R {USER}:{USER} "$HOME"']
        chromium = f'setpriv --reuid {USER} --regid {USER} --clear-groups {CHROMIUM} "$@"'
        if namespace and resolver:  # `ip netns exec` gives a mount namespace: the file is another one in there alone
            (self.folder / "resolv.conf").write_text(f"nameserver {resolver}\n")
            mount = f'mount --bind {self.folder}/resolv.conf "$(realpath /etc/resolv.conf)" && exec {chromium}'
            lines.append(f'exec ip netns exec {shlex.quote(namespace)} sh -c {shlex.quote(mount)} sh "$@"')
        else:
            within = f"ip netns exec {shlex.quote(namespace)} " if namespace else ""
            lines.append(f"exec {within}{chromium}")
        path.write_text("\n".join(lines) + "\n")
        path.chmod(0o755)
        return path

    def open(self, url: str) -> None:
        self.driver.get(url)

    def find(self, css: str, timeout_s: float = 30) -> WebElement:
        """The first visible element that fits, waited for. Raises TimeoutException that names it."""
        return self.until(lambda: next((e for e in self.all(css) if e.is_displayed()), None), f"{css!r}", timeout_s)

    def all(self, css: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def until(self, look: Callable[[], T | None], what: str, timeout_s: float = 30) -> T:
        """What `look` returns as soon as it is something; pages may change under it meanwhile."""

        def attempt(_: object) -> T | None:
            try:
                return look()
            except StaleElementReferenceException:
                return None

        try:
            found = WebDriverWait(self.driver, timeout_s, poll_frequency=0.1).until(attempt)
        except TimeoutException as error:
            raise TimeoutException(
                f"no {what} on {self.driver.current_url} within {timeout_s} s:\n{self.text()}"
            ) from error
        assert found is not None
        return found

    def fill(self, css: str, text: str) -> WebElement:
        """Type into a field as a person does, replacing what is in it."""
        field = self.find(css)
        field.click()
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text)
        return field

    def fetch(self, method: str, path: str, body: Any = None) -> Any:
        """What the open page's own server answers to it, signed in as the page is. Raises OSError for a refusal."""
        status, text = self.driver.execute_async_script(FETCH, method, path, body)
        if status != 200:
            raise OSError(f"{method} {path}: {status} {text[:300]}")
        try:
            return json.loads(text)
        except ValueError:
            return text

    def press(self, text: str) -> None:
        """Click the first visible button with this text."""
        path = f"//button[normalize-space()='{text}']"
        found = lambda: next((e for e in self.driver.find_elements(By.XPATH, path) if e.is_displayed()), None)  # noqa: E731
        self.until(found, f"button {text!r}").click()

    def labelled(self, label: str, kind: str) -> WebElement:
        """The first element of a kind (an XPath condition) that follows a text of its own."""
        path = f"//*[normalize-space(text())='{label}']/following::*[{kind}][1]"
        return self.until(lambda: next(iter(self.driver.find_elements(By.XPATH, path)), None), label)

    def passwords(self) -> list[WebElement] | None:
        """The three fields of a change: old, new, new again."""
        fields = self.all("input[type=password]")
        return fields if len(fields) == 3 else None

    def text(self) -> str:
        """What the page shows."""
        return self.driver.find_element(By.TAG_NAME, "body").text

    def screenshot(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not self.driver.save_screenshot(str(path)):
            raise OSError(f"no screenshot at {path}")

    def requests(self) -> list[str]:
        """Addresses asked for since the start by pages and their workers (http, https, ws, wss)."""
        for entry in self.driver.get_log("performance"):  # type: ignore[no-untyped-call]
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                self._seen.append(message["params"]["request"]["url"])
            elif message["method"] == "Network.webSocketCreated":
                self._seen.append(message["params"]["url"])
        return [url for url in self._seen if url.partition(":")[0] in ("http", "https", "ws", "wss")]

    def foreign(self, *own: str) -> set[str]:
        """Hosts asked for that are none of `own` (host or host:port)."""
        hosts = {urllib.parse.urlsplit(url).netloc for url in self.requests()}
        return {host for host in hosts if host not in own and host.rpartition(":")[0] not in own}

    def wander(self, starts: Sequence[str], links: str = "a[href]", skip: str = r"(?!)") -> tuple[list[str], list[str]]:
        """Visit pages and all that their links lead to within the same origin, and open every menu, tab and dialog.

        Addresses that differ only in their query are one page, and menus of one label are one menu. `links` says which
        links are followed (a CSS selector), `skip` which addresses are not. Returns the pages and the menus.
        """
        waiting, visited, menus = [*starts], dict[str, str](), list[str]()
        while waiting:
            address = waiting.pop(0)
            if _page(address) in visited or re.search(skip, address):
                continue
            visited[_page(address)] = address
            self.open(address)
            self.settle()
            waiting += [*self.driver.execute_script(LINKS, links), *self._menus(address, menus, links)]
        return list(visited.values()), menus

    def settle(self, quiet_s: float = 0.3, timeout_s: float = 4) -> None:
        """Wait until the page has asked for nothing more for a moment."""
        end, last, since = time.monotonic() + timeout_s, -1, time.monotonic()
        while time.monotonic() < end and time.monotonic() - since < quiet_s:
            now = len(self.requests())
            if now != last:
                last, since = now, time.monotonic()
            time.sleep(0.05)

    def _menus(self, address: str, opened: list[str], links: str) -> list[str]:
        """Open what opens on a page and was not opened yet, one after the other: the links that appear meanwhile."""
        found: list[str] = []
        here = _page(self.driver.current_url)
        for _ in range(60):
            label = self.driver.execute_script(OPENER, opened)
            if label is None:
                break
            opened.append(label)
            self.settle(0.15, 2)
            found += self.driver.execute_script(LINKS, links)
            if _page(self.driver.current_url) != here:
                found.append(self.driver.current_url)
                self.open(address)
                self.settle()
        return found

    def close(self) -> None:
        self.driver.quit()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _page(address: str) -> str:
    return address.partition("?")[0].partition("#")[0].rstrip("/")


class ChatError(RuntimeError):
    """The page shows an error where the answer should be."""


class Chat:
    """Open WebUI's pages (version 0.12)."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.browser, self.url = browser, url.rstrip("/")

    def sign_in(self, email: str, password: str) -> None:
        """Sign in and close the news that greet a first visit."""
        self.browser.open(f"{self.url}/auth")
        self.browser.fill("input[type=email], input[name=email]", email)
        self.browser.fill("input[type=password]", password).send_keys(Keys.ENTER)
        self.browser.find("#chat-input", 60)
        with contextlib.suppress(TimeoutException):
            self.browser.until(self._close_news, "news", 5)

    def change_password(self, old: str, new: str) -> None:
        """In the account's settings; the page then signs out."""
        self.browser.open(f"{self.url}/?settings=account")
        self.browser.press("Show")
        for field, text in zip(self.browser.until(self.browser.passwords, "fields"), (old, new, new), strict=True):
            field.send_keys(text)
        self.browser.press("Update password")
        self.browser.until(lambda: "state=logout" in self.browser.driver.current_url or None, "end of the session")

    def change_settings(self, section: str, values: dict[str, str], switches: Sequence[str] = ()) -> None:
        """Write texts into fields of the administrator's settings and turn switches, all by their labels; save."""
        self.browser.open(f"{self.url}/admin/settings/{section}")
        for label, text in values.items():
            field = self.browser.labelled(label, "self::input or self::textarea")
            field.send_keys(Keys.CONTROL, "a")
            field.send_keys(text)
        for label in switches:
            self.browser.labelled(label, "self::button").click()
        self.browser.press("Save")
        self.browser.until(lambda: "saved successfully" in self.browser.text() or None, "confirmation")

    def _close_news(self) -> bool | None:
        buttons = self.browser.all("[role=dialog] button")
        if buttons:
            buttons[-1].click()
        return True if buttons else None

    def ask(self, question: str, model: str = "", timeout_s: float = 180) -> str:
        """A new chat with one question; the whole answer, when it is complete.

        Raises ChatError with what the page says instead of an answer.
        """
        chosen = f"?models={urllib.parse.quote(model)}" if model else ""
        self.browser.open(f"{self.url}/{chosen}")
        self.browser.fill("#chat-input", question).send_keys(Keys.ENTER)
        answer = self.browser.until(self._answer, "finished answer", timeout_s)
        prose = answer.find_elements(By.CSS_SELECTOR, ".markdown-prose")
        text = "\n".join(part.text for part in prose).strip()
        if not text:
            raise ChatError(answer.text.strip())
        return text

    def _answer(self) -> WebElement | None:
        """The assistant's message once it has the buttons that come when it is finished."""
        finished = self.browser.all(".copy-response-button")
        answers = self.browser.all(".chat-assistant")
        return answers[-1] if finished and answers else None


class Workflows:
    """n8n's pages (version 2)."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.browser, self.url = browser, url.rstrip("/")

    def sign_in(self, email: str, password: str) -> None:
        self.browser.open(f"{self.url}/signin")
        self.browser.fill("input[name=emailOrLdapLoginId]", email)
        self.browser.fill("input[name=password]", password).send_keys(Keys.ENTER)
        self.browser.find("[data-test-id=resources-list-wrapper], [data-test-id=main-sidebar]", 60)

    def names(self) -> list[str]:
        """The names of the workflows in the list."""
        self.browser.open(f"{self.url}/home/workflows")
        self.browser.find("[data-test-id=workflow-card-name]", 150)
        return [card.text for card in self.browser.all("[data-test-id=workflow-card-name]")]

    def change_password(self, old: str, new: str) -> None:
        self.browser.open(f"{self.url}/settings/personal")
        self.browser.find("[data-test-id=change-password-link]").click()
        for field, text in zip(self.browser.until(self.browser.passwords, "fields"), (old, new, new), strict=True):
            field.send_keys(text)
        self.browser.find("[data-test-id=change-password-button]").click()
        self.browser.until(lambda: "Password updated" in self.browser.text() or None, "confirmation")

    def rename_first(self, title: str) -> None:
        """Rename the first workflow of the list and put a note beside it, in the editor; returns when it is saved."""
        self.names()
        self.browser.find("[data-test-id=workflow-card-name]").click()
        self.browser.find("[data-test-id=add-sticky-button]", 60).click()
        self.browser.find("[data-test-id=inline-edit-preview], [data-test-id=inline-edit-input]").click()
        field = self.browser.find("[data-test-id=inline-edit-input]")
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(title, Keys.ENTER)

        def saved() -> bool | None:
            now = self.workflows()[0]
            return True if now["name"] == title and "stickyNote" in json.dumps(now["nodes"]) else None

        self.browser.until(saved, "saved workflow")

    def workflows(self) -> list[dict[str, Any]]:
        """All of them, whole, as a signed-in page gets them."""
        ids = [row["id"] for row in self.browser.fetch("GET", "/rest/workflows")["data"]]
        return [self.browser.fetch("GET", f"/rest/workflows/{number}")["data"] for number in ids]
