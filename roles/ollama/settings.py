"""Settings of Ollama, the engine that runs the models."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from ownstack.hardware.report import Frozen

SWITCH = r"[01]|true|false"
NUMBERS = r"\d{1,3}(,\d{1,3})*"
DEVICES = r"-1|\d{1,3}(,\d{1,3})*|(GPU|MIG)-[0-9A-Za-z-]{1,80}(,(GPU|MIG)-[0-9A-Za-z-]{1,80})*"
# Variables that may be given to the engine, each with the form its value must have. All others are the kit's own, or
# could open the engine to others, load foreign code or write down what users ask.
EXTRA_ENV = {
    "CUDA_VISIBLE_DEVICES": DEVICES,
    "GGML_CUDA_ENABLE_UNIFIED_MEMORY": SWITCH,
    "GGML_VK_VISIBLE_DEVICES": NUMBERS,
    "HIP_VISIBLE_DEVICES": NUMBERS,
    "HSA_OVERRIDE_GFX_VERSION": r"\d{1,2}\.\d{1,2}\.\d{1,2}",
    "LLAMA_ARG_FIT_TARGET": r"\d{1,7}(,\d{1,7})*",  # MiB left free on each device
    "LLAMA_ARG_THREADS": r"\d{1,3}",
    "LP_NUM_THREADS": r"\d{1,3}",  # threads of the software renderer
    "OLLAMA_DEBUG": r"[01]",  # 1 writes prompts to the journal
    "OLLAMA_GPU_OVERHEAD": r"\d{1,12}",  # bytes
    "OLLAMA_IGPU_ENABLE": SWITCH,
    "OLLAMA_LLM_LIBRARY": r"[a-z0-9_]{1,30}",
    "OLLAMA_LOAD_TIMEOUT": r"\d{1,5}[smh]",
    "OLLAMA_MAX_QUEUE": r"\d{1,5}",
    "OLLAMA_SCHED_SPREAD": SWITCH,
    "OLLAMA_VULKAN": SWITCH,
    "ROCR_VISIBLE_DEVICES": DEVICES,
    "VK_DRIVER_FILES": r"/usr/(local/)?share/vulkan/icd\.d/[A-Za-z0-9_.-]{1,80}\.json",
}


class Settings(Frozen):
    use: Literal["own", "existing", "adopt"] = Field(
        "own",
        description="Install Ollama; or use one that is there already (see `url`), left as it is; or adopt a service "
        "of this machine: it gets one drop-in with the box's settings, and `down` gives it back.",
    )
    url: str = Field(
        "http://127.0.0.1:11434",
        description='Address of the existing Ollama, with `use = "existing"` or `"adopt"`.',
        pattern=r"^https?://([A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(:\d{1,5})?/?$",
    )
    port: int = Field(11434, ge=1024, le=65535, description="Loopback port of the engine.")
    keep_alive: str = Field(
        "30m",
        description="How long a model stays in memory after its last use; -1: for good.",
        pattern=r"^(-1|\d+(s|m|h))$",
    )
    context: int | None = Field(
        None,
        ge=512,
        le=1048576,
        description="Context length in tokens of models without one of their own; from the plan.",
    )
    flash_attention: Literal["auto", "on", "off"] = Field(
        "auto", description="Flash attention; auto leaves it to the engine."
    )
    max_loaded_models: int | None = Field(None, ge=1, le=32, description="Models in memory at once; from the plan.")
    registry: str = Field(
        "",
        description="Host (and port) of a model registry that replaces the public one.",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9.-]*(:\d{1,5})?)?$",
    )
    registry_insecure: bool = Field(False, description="The model registry speaks plain HTTP.")
    pull_proxy: str = Field(
        "", description="Proxy for model pulls, http://host:port.", pattern=r"^(https?://[A-Za-z0-9.-]+:\d{1,5}/?)?$"
    )
    extra_env: dict[str, str] = Field(
        default_factory=dict,
        description="Further variables of the engine, from a fixed list: " + ", ".join(EXTRA_ENV) + ".",
    )

    @field_validator("extra_env")
    @classmethod
    def _allowed(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if name not in EXTRA_ENV:
                raise ValueError(f"{name} may not be set here; these may: {', '.join(EXTRA_ENV)}")
            if not re.fullmatch(EXTRA_ENV[name], text):
                raise ValueError(f"{name} = {text!r} is not of the form {EXTRA_ENV[name]}")
        return value
