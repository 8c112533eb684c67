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
import shlex
import shutil
import tempfile
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

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
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-default-apps", "--mute-audio"),
    *("--disable-domain-reliability", "--disable-features=Translate,OptimizationHints,MediaRouter", "--no-pings"),
    *("--remote-debugging-pipe", "--disable-dev-shm-usage", "--lang=en-US"),
)


class Browser:
    """Chromium with an empty profile; with `namespace` its network is that namespace (`Uplink.name`).

    There it asks `resolver` for names, where one is given, instead of this machine's.
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
        self._seen: list[str] = []

    def _binary(self, namespace: str, resolver: str) -> Path:
        """A script that starts chromium in the namespace; the driver talks to it through inherited pipes."""
        path = self.folder / "chromium"
        lines = ["#!/bin/sh", f"PATH={PATH}"]
        if namespace and resolver:  # `ip netns exec` gives a mount namespace: the file is another one in there alone
            (self.folder / "resolv.conf").write_text(f"nameserver {resolver}\n")
            mount = f'mount --bind {self.folder}/resolv.conf "$(realpath /etc/resolv.conf)" && exec {CHROMIUM} "$@"'
            lines.append(f'exec ip netns exec {shlex.quote(namespace)} sh -c {shlex.quote(mount)} sh "$@"')
        else:
            within = f"ip netns exec {shlex.quote(namespace)} " if namespace else ""
            lines.append(f'exec {within}{CHROMIUM} "$@"')
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

    def close(self) -> None:
        self.driver.quit()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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
        self.browser.find("[data-test-id=workflow-card-name]", 60)
        return [card.text for card in self.browser.all("[data-test-id=workflow-card-name]")]
