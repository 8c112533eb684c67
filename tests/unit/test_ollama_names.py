"""Names of models, and the engine's refusals in our words."""

from __future__ import annotations

import pytest

from ownstack.runner.core import StepError
from ownstack.runner.ollama_api import Name, failure, mirrored, parse


@pytest.mark.parametrize(
    ("text", "name", "short"),
    [
        ("qwen3:14b", Name("registry.ollama.ai", "library", "qwen3", "14b"), "qwen3:14b"),
        ("all-minilm", Name("registry.ollama.ai", "library", "all-minilm", "latest"), "all-minilm:latest"),
        ("me/mine:q4", Name("registry.ollama.ai", "me", "mine", "q4"), "me/mine:q4"),
        ("127.0.0.1:5000/library/x:1", Name("127.0.0.1:5000", "library", "x", "1"), "127.0.0.1:5000/library/x:1"),
        ("hf.co/a/b-GGUF:Q4_K_M", Name("hf.co", "a", "b-GGUF", "Q4_K_M"), "hf.co/a/b-GGUF:Q4_K_M"),
    ],
)
def test_a_name_is_read_as_the_engine_reads_it(text: str, name: Name, short: str) -> None:
    assert parse(text) == name
    assert parse(text).short == short
    assert parse(parse(text).short) == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "a:b:c",
        "a/b/c/d",
        "../x",
        "a/../b:1",
        "x;reboot",
        "$(x)",
        "a b",
        "a\nb",
        "/abs",
        "-x",
        ".x:1",
        "é",
        "x:",
        "a//b",
    ],
)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(StepError) as caught:
        parse(text)
    assert caught.value.code == "model-name"


def test_no_name_leaves_the_store() -> None:
    for text in ("a/b:..", "a/..:b", "..:x"):
        with pytest.raises(StepError):
            parse(text)


def test_a_mirror_replaces_only_the_public_registry() -> None:
    assert mirrored(parse("qwen3:14b"), "10.0.0.1:5000").short == "10.0.0.1:5000/library/qwen3:14b"
    assert mirrored(parse("hf.co/a/b:1"), "10.0.0.1:5000") == parse("hf.co/a/b:1")
    assert mirrored(parse("qwen3:14b"), "") == parse("qwen3:14b")


# what Ollama 0.34.2 really says
@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("pull model manifest: file does not exist", "model-unknown"),
        ('Get "https://r/v2/library/x-GGUF/1": dial tcp: lookup x: no such host', "registry-unreachable"),
        ('unsupported tensor "blk.16.ffn_down.weight" offset+size exceeds file size', "gguf-broken"),
        ("error reading GGUF item 22: unexpected EOF", "gguf-broken"),
        ('Get "https://r/v2/": dial tcp 10.0.0.1:443: connect: connection refused', "registry-unreachable"),
        ("invalid model name", "model-name"),
        ("model 'nosuch' not found", "model-unknown"),
        ("write /x/blobs/sha256-1: no space left on device", "disk-full"),
        ("something new", "engine-refused"),
    ],
)  # fmt: skip
def test_the_engines_words_become_codes_with_a_hint(words: str, code: str) -> None:
    error = failure("pulling x", 500, {"error": words})
    assert error.code == code
    assert words in error.message
    assert error.hint


def test_silence_is_not_an_answer() -> None:
    assert failure("asking", 0, "refused").code == "engine-down"
