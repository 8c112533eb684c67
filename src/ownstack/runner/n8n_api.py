"""n8n's public API, asked with the kit's own key."""

from __future__ import annotations

from typing import Any

from .core import StepError
from .http import request
from .secrets import read_secret

LABEL = "ownstack"


def key_works(url: str, key: str) -> bool:
    """Whether n8n still accepts a key."""
    return request("GET", f"{url.rstrip('/')}/api/v1/workflows?limit=1", headers={"X-N8N-API-KEY": key})[0] == 200


def api(url: str, secrets_dir: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Status and answer of one call."""
    key = read_secret(secrets_dir, "n8n_api_key")
    return request(method, f"{url.rstrip('/')}/api/v1{path}", body, {"X-N8N-API-KEY": key})


def must(url: str, secrets_dir: str, method: str, path: str, body: Any = None) -> Any:
    """The answer of a call that has to succeed. Raises StepError with n8n's own words."""
    status, answer = api(url, secrets_dir, method, path, body)
    if status in (200, 201, 204):
        return answer
    said = answer.get("message", "") if isinstance(answer, dict) else str(answer)[:200]
    hint = "run `ownstack up`: it makes the key again" if status == 401 else "`ownstack logs n8n` shows why"
    raise StepError(f"n8n refused {method} {path.split('?')[0]} ({status}): {said}", hint=hint, code="n8n-api")
