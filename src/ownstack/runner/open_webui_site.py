"""Open WebUI's HTTP interface."""

from __future__ import annotations

from typing import Any

from .core import Spec, StepError
from .http import request
from .secrets import read_secret

KIT_KEY = "open_webui_kit_key"


class Site:
    """Open WebUI's HTTP interface with one credential."""

    def __init__(self, url: str, token: str = "") -> None:
        self.url = url.rstrip("/")
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}

    def call(self, method: str, path: str, body: Any = None, timeout: float = 60, **headers: str) -> tuple[int, Any]:
        return request(method, self.url + path, body, {**self.headers, **headers}, timeout)

    def need(self, method: str, path: str, body: Any = None, timeout: float = 60, **headers: str) -> Any:
        """The answer of a call that must succeed. Raises StepError with Open WebUI's own words."""
        status, answer = self.call(method, path, body, timeout, **headers)
        if status == 200:
            return answer
        if status == 401 and self.headers:
            raise StepError(
                "Open WebUI refuses the kit's own account",
                hint="`ownstack up` makes it again, without the owner's password",
                code="open-webui-identity",
            )
        said = answer.get("detail", answer) if isinstance(answer, dict) else str(answer)[:200]
        raise StepError(
            f"Open WebUI answered {status} to {method} {path}: {said}",
            hint="`ownstack logs open_webui` shows why",
            code="open-webui-refused",
        )


def kit(spec: Spec) -> Site:
    """Open WebUI as the kit's own account."""
    return Site(spec["url"], read_secret(spec["secrets_dir"], KIT_KEY))
