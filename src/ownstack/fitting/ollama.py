"""What the installed Ollama decides by itself: context, micro-batch, and whether it evicts.

Its scheduler does not use the engine's exact sizes but a crude prediction. A plan must satisfy both, or
Ollama refuses or evicts what the arithmetic says would fit. Source: Ollama 0.34.2, server/sched.go and
llm/llama_server.go.
"""

from __future__ import annotations

from .model import Model, number

GIB = 2**30
# families that Ollama loads with one request at a time
SINGLE = frozenset({
    "mllama", "qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe", "qwen3next", "lfm2", "lfm2moe", "nemotron_h",
    "nemotron_h_moe", "nemotron_h_omni",
})  # fmt: skip
EMBEDDING_BATCH = 2048


def auto_context(vram_bytes: int, trained: int) -> int:
    """The context where none is set: by tiers of the GPUs' memory, never beyond the trained one."""
    tier = 262_144 if vram_bytes >= 47 * GIB else 32_768 if vram_bytes >= 23 * GIB else 4096
    return min(tier, trained) if trained else tier


def parallel(model: Model, wanted: int) -> int:
    """Requests at a time that Ollama allows for this model."""
    return 1 if model.arch in SINGLE or model.embedding_model else max(1, wanted)


def predicted(model: Model, file_bytes: int, context: int, requests: int = 1) -> int:
    """Ollama's own guess of the memory: file size and an F16 cache of equal layers."""
    heads = model.number("attention.head_count")
    kv = model.hparams.get("attention.head_count_kv", heads)
    least = min(kv, default=0) if isinstance(kv, (list, tuple)) else int(kv)
    head = model.embedding // heads if heads else 0
    total = context * max(requests, 1)
    return file_bytes + 2 * number(model.hparams, "block_count") * max(least, 1) * head * total * 2


def _surcharge(batch: int) -> int:
    return 2 * GIB if batch >= 2048 else 768 * 2**20 if batch >= 1024 else 0


def _batch_fits(batch: int, guess: int, available: int) -> bool:
    if not guess or not available:
        return True
    limit = available * 80 // 100
    headroom = 60 if batch >= 2048 else 75
    return guess <= limit and guess <= available * headroom // 100 and _surcharge(batch) <= limit - guess


def auto_batch(context: int, guess: int, available: int, flash_attention: bool = True, cuda: bool = False) -> int:
    """The micro-batch: by total context, lowered until Ollama's guess leaves it room.

    `context` is the total of all requests, `guess` the value of `predicted`, `available` free bytes (0: no GPU).
    """
    if not flash_attention and cuda:
        return 256 if context > 4096 and 0 < available <= 8 * GIB else 512
    batch = 2048 if context > 32_768 else 1024 if context > 4096 else 512
    while batch > 512 and not _batch_fits(batch, guess, available):
        batch //= 2
    return batch


def embedding_batch(context: int, requests: int = 1) -> int:
    return min(EMBEDDING_BATCH, context * max(requests, 1))


def evicts(guess: int, free: int, batch: int = 512, embedding: bool = False) -> bool:
    """Whether loading a further model makes Ollama unload the others first."""
    return guess + (0 if embedding else _surcharge(batch)) > free * 80 // 100
