"""A model as the arithmetic sees it: its layers, caches, states and weights by place.

Rules of which layer keeps what follow llama.cpp (llama-hparams, llama-kv-cache, llama-kv-cache-iswa,
llama-memory-recurrent, create_memory), read at build 11669.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError

MAX_LAYERS = 1024
# period of the sliding-window pattern where the file does not say; layer i is global when (i+1) % n == 0
SWA_PERIOD = {
    "gemma2": 2, "gemma3": 6, "gemma3n": 5, "gemma-embedding": 6, "llama4": 4, "gpt-oss": 2, "cohere2": 4,
    "cohere2moe": 4, "olmo2": 4, "exaone4": 4, "exaone-moe": 4, "afmoe": 4, "plamo3": 8, "modern-bert": 3,
    "smallthinker": 4, "mellum": 4, "muse-glimmer": 4, "laguna": 4,
}  # fmt: skip
SWA_DENSE_FIRST = frozenset({"modern-bert", "smallthinker", "cohere2moe", "laguna"})
SWA_ALWAYS = {"gemma2": 4096, "llama4": 8192, "exaone-moe": 128}  # architectures with a window of their own
SWA_BY_ARRAY = frozenset({"gemma4", "mimo2", "step35", "spark2-5", "maple", "granite-swa", "dots3note"})
NO_CACHE = frozenset({
    "bert", "jina-bert-v2", "jina-bert-v3", "nomic-bert", "nomic-bert-moe", "neo-bert", "eurobert", "modern-bert",
    "gemma-embedding", "dream", "llada", "llada-moe", "rnd1", "wavtokenizer-dec",
})  # fmt: skip
RECURRENT = frozenset({"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"})
RECURRENT_WITHOUT_HEADS = frozenset({
    "jamba", "granitehybrid", "lfm2", "lfm2moe", "plamo2", "kimi-linear", "kimi-k3", "bailingmoe3", "glm5-next",
})  # fmt: skip
RECURRENT_BY_INTERVAL = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4, "qwen4exp": 4, "minimax-01": 8}
INPUT_TENSORS = frozenset({"token_embd", "position_embd", "token_types", "per_layer_token_embd"})
# norms of the embedding run on the first device, but are kept with the input
EMBEDDING_FAMILIES = frozenset({
    "bert", "jina-bert-v2", "jina-bert-v3", "nomic-bert", "nomic-bert-moe", "neo-bert", "eurobert", "modern-bert",
    "gemma-embedding", "llama-embed",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Layer:
    """One repeating layer. `kv_k`, `kv_v`: cached values a token (0: none); `swa`: cached for a window only."""

    kv_k: int
    kv_v: int
    swa: bool
    recurrent: bool
    heads: int
    heads_kv: int
    ff: int


@dataclass(frozen=True, slots=True)
class Weights:
    """Bytes of the tensors, by place. `layers[i]` includes `experts[i]`.

    `embedding` stays on the host; `output` goes with the last device; `output_copy` is what a tied
    output matrix takes a second time when the output layer is on a GPU. `active` is what one token reads.
    """

    layers: tuple[int, ...]
    experts: tuple[int, ...]
    embedding: int
    output: int
    output_copy: int
    active: int
    # largest single expert tensor (staged on the GPU when experts live on the host)
    largest_expert: int = 0
    # (gate, up, down) bytes of the feed-forward tensors, for --fit's split of the last layer of a mixture
    ffn: tuple[tuple[int, int, int], ...] = ()
    # the largest tensor of each name (without `blk.N.`): what a GPU borrows of host layers
    tensors: Mapping[str, int] = field(default_factory=dict)
    # what a GPU's rows of whole 512 values add to `layers` and `output`; the CPU does without (0 where not known)
    padding: int = 0

    @property
    def total(self) -> int:
        return sum(self.layers) + self.embedding + self.output


@dataclass(frozen=True, eq=False)  # compared and hashed by identity: models are made once and kept
class Model:
    """Header values in llama.cpp's names (without the architecture's prefix) and what follows from them."""

    name: str
    arch: str
    hparams: Mapping[str, Any]
    weights: Weights
    layers: tuple[Layer, ...]
    embedding: int
    vocabulary: int
    context_train: int
    window: int
    mla: bool
    # F32 values of the two states of one recurrent layer and sequence
    state_r: int
    state_s: int
    quant: str = ""
    # stored compute constants (bytes at micro-batch 512) where the model is a known one
    gpu_base: int | None = None
    host_base: int | None = None
    runs: tuple[Any, ...] = field(default=())

    @property
    def embedding_model(self) -> bool:
        return self.arch in EMBEDDING_FAMILIES or self.number("pooling_type") in (1, 2, 3)

    @property
    def experts(self) -> int:
        return self.number("expert_count")

    def number(self, key: str, default: int = 0) -> int:
        """A header value as a whole number; of an array its largest element."""
        return number(self.hparams, key, default)


def number(hparams: Mapping[str, Any], key: str, default: int = 0) -> int:
    """`hparams[key]` as an int; the largest element of an array; `default` when absent."""
    value = hparams.get(key, default)
    if isinstance(value, (list, tuple)):
        value = max(value, default=default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return default
    return int(value)


def _per_layer(hparams: Mapping[str, Any], key: str, count: int, default: int) -> list[int]:
    value = hparams.get(key, default)
    if isinstance(value, (list, tuple)):
        if len(value) < count:
            raise ConfigError(f"{key} has {len(value)} entries for {count} layers", hint="the model file is damaged")
        return [int(v) for v in value[:count]]
    return [int(value)] * count


def _window_layers(arch: str, hparams: Mapping[str, Any], count: int) -> tuple[int, list[bool]]:
    """The window in tokens (0: none) and which layers are limited to it."""
    none = [False] * count
    window = number(hparams, "attention.sliding_window", SWA_ALWAYS.get(arch, 0))
    if arch == "phi3" or (arch not in SWA_PERIOD and arch not in SWA_BY_ARRAY and arch not in {"lfm2", "lfm2moe"}):
        return 0, none  # phi3's window is ignored by the engine
    if window == 0 and arch == "exaone4" and count == 64:
        window = 4096
    if window == 0 and arch == "smallthinker" and "attention.sliding_window" in hparams:
        window = 4096
    if window == 0:
        return 0, none
    if arch == "llama4":
        window = 8192
    pattern = hparams.get("attention.sliding_window_pattern")
    if isinstance(pattern, (list, tuple)):
        return window, [bool(v) for v in pattern[:count]] + none[len(pattern) :]
    if arch in {"lfm2", "lfm2moe"}:
        heads_kv = _per_layer(hparams, "attention.head_count_kv", count, 0)
        return window, [h > 0 for h in heads_kv]
    if arch in SWA_BY_ARRAY:
        return 0, none
    period = int(pattern) if pattern else SWA_PERIOD[arch]
    if arch in SWA_DENSE_FIRST:
        return window, [period == 0 or i % period != 0 for i in range(count)]
    return window, [period == 0 or i % period < period - 1 for i in range(count)]


def _recurrent_layers(arch: str, hparams: Mapping[str, Any], heads_kv: Sequence[int], ff: Sequence[int]) -> list[bool]:
    count = len(heads_kv)
    if arch in RECURRENT or arch == "falcon-h1":
        return [True] * count
    listed = hparams.get("attention.recurrent_layers")
    if isinstance(listed, (list, tuple)):
        return [bool(v) for v in listed[:count]]
    if arch in RECURRENT_BY_INTERVAL:
        interval = number(hparams, "full_attention_interval", RECURRENT_BY_INTERVAL[arch])
        return [(i + 1) % interval != 0 for i in range(count)]
    if arch in RECURRENT_WITHOUT_HEADS:
        return [h == 0 for h in heads_kv]
    if arch in {"nemotron_h", "nemotron_h_moe"}:
        return [h == 0 and f == 0 for h, f in zip(heads_kv, ff, strict=True)]
    return [False] * count


def _states(arch: str, hparams: Mapping[str, Any], embedding: int, heads: int) -> tuple[int, int]:
    """Values of the convolution and of the recurrent state, for one layer and sequence."""
    if wkv := number(hparams, "wkv.head_size"):
        return number(hparams, "token_shift_count", 2) * embedding, embedding * wkv
    if cache := number(hparams, "shortconv.l_cache"):
        return embedding * (cache - 1), number(hparams, "ssm.state_size") * number(hparams, "ssm.inner_size")
    kernel = number(hparams, "ssm.conv_kernel")
    if kda := number(hparams, "kda.head_dim"):
        return 3 * (kernel - 1 if kernel else 3) * heads * kda, kda * kda * heads
    inner, state = number(hparams, "ssm.inner_size"), number(hparams, "ssm.state_size")
    groups = number(hparams, "ssm.group_count")
    return max(kernel - 1, 0) * (inner + 2 * groups * state), state * inner


def build_layers(arch: str, hparams: Mapping[str, Any]) -> tuple[tuple[Layer, ...], int, bool]:
    """The repeating layers that keep something, the window, and whether the cache is MLA's."""
    every = number(hparams, "block_count")
    if not 0 < every <= MAX_LAYERS:
        raise ConfigError(f"{arch}: block_count is {every}", hint="the model file is damaged")
    count = every - min(number(hparams, "nextn_predict_layers"), every - 1)
    heads = _per_layer(hparams, "attention.head_count", every, 0)[:count]
    heads_kv = (
        _per_layer(hparams, "attention.head_count_kv", every, 0)[:count]
        if "attention.head_count_kv" in hparams
        else heads
    )
    ff = _per_layer(hparams, "feed_forward_length", every, 0)[:count]
    embedding = number(hparams, "embedding_length")
    default = embedding // heads[0] if heads and heads[0] else 0
    head_k = number(hparams, "attention.key_length", default)
    head_v = number(hparams, "attention.value_length", default)
    head_k_swa = number(hparams, "attention.key_length_swa", head_k)
    head_v_swa = number(hparams, "attention.value_length_swa", head_v)
    mla = number(hparams, "attention.key_length_mla") > 0 and number(hparams, "attention.value_length_mla") > 0
    window, windowed = _window_layers(arch, hparams, count)
    recurrent = _recurrent_layers(arch, hparams, heads_kv, ff)
    from_start = count
    if arch == "gemma3n":
        from_start = 20
    elif arch == "gemma4":
        from_start = every - number(hparams, "attention.shared_kv_layers")
    layers = []
    for i in range(count):
        cached = arch not in NO_CACHE and i < from_start and (not recurrent[i] or arch == "falcon-h1")
        cached = cached and not (arch in {"nemotron_h", "nemotron_h_moe"} and ff[i] > 0)
        k = heads_kv[i] * (head_k_swa if windowed[i] else head_k) if cached else 0
        v = heads_kv[i] * (head_v_swa if windowed[i] else head_v) if cached and not mla else 0
        layers.append(Layer(k, v, windowed[i], recurrent[i], heads[i], heads_kv[i], ff[i]))
    return tuple(layers), window, mla


def make_model(name: str, arch: str, hparams: Mapping[str, Any], weights: Weights, **more: Any) -> Model:
    """A Model from header values; errors name the value that is missing."""
    embedding = number(hparams, "embedding_length")
    if not 0 < embedding < 2**20:
        raise ConfigError(f"{name}: embedding_length is {embedding}", hint="the model file is damaged")
    layers, window, mla = build_layers(arch, hparams)
    state_r, state_s = _states(arch, hparams, embedding, layers[0].heads)
    return Model(
        name=name,
        arch=arch,
        hparams=hparams,
        weights=weights,
        layers=layers,
        embedding=embedding,
        vocabulary=number(hparams, "vocab_size"),
        context_train=number(hparams, "context_length"),
        window=window,
        mla=mla,
        state_r=state_r,
        state_s=state_s,
        **more,
    )
