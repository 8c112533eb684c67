"""Choosing: what fits is chosen, explained, and never worse with more memory."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ownstack.errors import ConfigError, UnsupportedError
from ownstack.fitting import offload, ollama
from ownstack.fitting.choose import (
    USES,
    Chosen,
    Selection,
    Wishes,
    choose_models,
    choose_on,
    describe,
    evictions,
    load_data,
    taken_by,
)
from ownstack.fitting.explain import STEPS_GIB, grown, what_would_change
from ownstack.fitting.machine import Device, Machine, declared, overhead
from ownstack.fitting.memory import Placement, Settings, estimate
from ownstack.hardware.report import Cpu, Gpu, GpuKind, HardwareReport, Host, Memory, Reading

GIB, MIB = 2**30, 2**20
DATA = load_data()


def machine(vram_mib: int, ram_gib: int = 32) -> Machine:
    if not vram_mib:
        return declared((), ram_gib * GIB)
    device = Device("card", "nvidia", vram_mib * MIB, vram_mib * MIB, 500e9, 100e12, "8.6", overhead=overhead("cuda"))
    return declared((device,), ram_gib * GIB)


def report(vram_mib: int = 0, ram_gib: int = 32, name: str = "NVIDIA GeForce RTX 4090") -> HardwareReport:
    size = Reading[int](value=vram_mib * MIB, source="nvml")
    gpus = (Gpu(vendor="nvidia", name=name, kind=GpuKind.DISCRETE, memory_total_bytes=size, memory_free_bytes=size),)
    return HardwareReport(
        host=Host(
            hostname="h", machine_id_hash="x", os_id="debian", os_version="12", os_name="Debian", kernel="6",
            init="systemd", user="root", uid=0, home="/root", sudo="root",
        ),
        cpu=Cpu(model="x", cores=8, threads=16, architecture="x86_64"),
        memory=Memory(total_bytes=ram_gib * GIB, available_bytes=ram_gib * GIB * 9 // 10),
        gpus=gpus if vram_mib else (),
    )  # fmt: skip


@given(st.integers(0, 50_000), st.integers(0, 8_000), st.sampled_from([16, 32, 64]), st.sampled_from(USES))
@settings(max_examples=200, deadline=None)
def test_more_gpu_memory_never_gives_a_worse_plan(vram: int, more: int, ram: int, use: str) -> None:
    """Across the borders of classes too: no worse model, and of the same model no shorter context."""
    vram = max(vram, 1500)
    small, large = (choose_on(DATA, machine(v, ram), Wishes(use=use)) for v in (vram, vram + more))
    no_worse(small, large)


@given(st.integers(4, 96), st.integers(0, 64), st.sampled_from(USES))
@settings(max_examples=100, deadline=None)
def test_more_ram_never_gives_a_worse_plan(ram: int, more: int, use: str) -> None:
    try:
        small = choose_on(DATA, machine(0, ram), Wishes(use=use))
    except UnsupportedError:
        return
    no_worse(small, choose_on(DATA, machine(0, ram + more), Wishes(use=use)))


def no_worse(small: Chosen, large: Chosen) -> None:
    assert large.chat.quality >= small.chat.quality
    assert large.embedding.quality >= small.embedding.quality
    if large.chat.entry is small.chat.entry and large.chat.estimate.whole == small.chat.estimate.whole:
        assert large.chat.settings.context >= small.chat.settings.context


@given(st.integers(1_500, 100_000), st.sampled_from([16, 32, 64]), st.sampled_from(USES), st.booleans())
@settings(max_examples=120, deadline=None)
def test_a_plan_asks_for_nothing_that_ollama_would_not_keep(vram: int, ram: int, use: str, more: bool) -> None:
    """By Ollama's own crude guess no model of the plan evicts another, except where the plan says they take turns."""
    roles = ("chat", "embedding", *(("code", "vision") if more else ()))
    try:
        chosen = choose_on(DATA, machine(vram, ram), Wishes(use=use, roles=roles))
    except UnsupportedError:
        return
    assert not evictions(chosen, machine(vram, ram)) or any("take turns" in text for text in chosen.warnings)
    for c in (chosen.chat, chosen.embedding, *chosen.more.values()):
        assert c.settings.parallel == ollama.parallel(c.model, chosen.limits.parallel)
        assert c.settings.context <= c.entry.context, "Ollama cuts what is longer"


@given(st.integers(2_000, 100_000), st.sampled_from([16, 64]), st.sampled_from(["chat", "code", "vision"]))
@settings(max_examples=80, deadline=None)
def test_a_plan_fits_with_all_that_is_resident(vram: int, ram: int, use: str) -> None:
    where = machine(vram, ram)
    try:
        chosen = choose_on(DATA, where, Wishes(use=use))
    except UnsupportedError:
        return
    taken = taken_by(chosen.embedding, chosen.chat, *chosen.more.values())
    assert taken.gpu + chosen.limits.gpu_reserve <= sum(where.free)
    assert taken.ram <= where.ram_available
    assert chosen.chat.settings.context >= min(chosen.limits.context_floor, chosen.chat.entry.context)
    assert chosen.chat.speed.decode.mid >= chosen.limits.speed_floor


@given(
    st.sampled_from(sorted(DATA.catalogue.entries)),
    st.integers(9, 15),
    st.sampled_from([256, 512, 1024, 2048]),
    st.sampled_from(["f16", "q8_0", "q4_0"]),
    st.integers(1, 4),
)
@settings(max_examples=150, deadline=None)
def test_bytes_are_whole_and_grow_with_what_is_asked(tag: str, bits: int, batch: int, kv: str, parallel: int) -> None:
    """Unit safety: whole bytes, sums that add up, more context or requests never less memory."""
    entry = DATA.catalogue.entries[tag]
    model = entry.model()
    s = Settings(context=2**bits, batch=batch, kv_type=kv, parallel=parallel)
    count = len(model.layers) + 1
    e = estimate(model, s, Placement((count,)))
    for part in (*e.gpus, e.host):
        numbers = (part.weights, part.kv, part.recurrent, part.compute, part.output)
        assert all(type(n) is int for n in numbers)
        assert min(numbers) >= 0
        assert part.total == sum(numbers) + part.projector
    assert e.total >= model.weights.total
    longer = estimate(model, replace(s, context=2 ** (bits + 1)), Placement((count,)))
    assert longer.gpus[0].kv >= e.gpus[0].kv
    more = estimate(model, replace(s, parallel=parallel + 1), Placement((count,)))
    assert more.gpus[0].kv >= e.gpus[0].kv
    assert more.gpus[0].recurrent >= e.gpus[0].recurrent


@given(st.sampled_from(sorted(DATA.catalogue.entries)), st.integers(1, 40), st.integers(0, 10))
@settings(max_examples=100, deadline=None)
def test_more_free_memory_never_puts_fewer_layers_on_the_gpu(tag: str, gib: int, more: int) -> None:
    model = DATA.catalogue.entries[tag].model()
    s = Settings(context=4096)
    small, large = (offload.fit(model, s, (g * GIB,)) for g in (gib, gib + more))
    assert large.gpu_layers - large.expert_layers_on_host >= small.gpu_layers - small.expert_layers_on_host
    assert small.gpus[0].total <= max(
        gib * GIB - offload.MARGIN_BYTES, estimate(model, s, Placement((0,))).gpus[0].total
    )


def test_a_large_cpu_host_gets_a_mixture_and_not_a_large_dense_model() -> None:
    chat = choose_on(DATA, machine(0, 64), Wishes()).chat
    assert chat.model.experts
    assert chat.entry.active_parameters < 8e9


def test_a_plan_for_a_common_card() -> None:
    selection = choose_models(report(24564, 64), Wishes(roles=("chat", "embedding", "code", "vision")), DATA)
    uses = {m.use: m for m in selection.models}
    assert selection.engine == "cuda"
    assert selection.profile == "gpu-24gb"
    assert uses["chat"].gpu_layers == uses["chat"].layers
    assert uses["embedding"].dimension
    assert uses["chat"].reasons
    assert uses["chat"].predicted_gpu_bytes > 4 * GIB
    assert selection.predicted_gpu_bytes >= sum(m.predicted_gpu_bytes for m in selection.models)


def reasons_of(made: Selection) -> dict[str, tuple[str, ...]]:
    return {choice.use: choice.reasons for choice in made.models}


def test_every_choice_has_its_runner_up_and_what_would_change_it() -> None:
    made = choose_models(report(12282, 32), Wishes(roles=("chat", "embedding", "code")), DATA)
    for use, reasons in reasons_of(made).items():
        assert any(text.startswith("next best: ") for text in reasons), use
        assert any("GiB more of " in text for text in reasons), use
    assert any(" is the best that fits: " in text for text in reasons_of(made)["chat"])
    pinned = choose_models(report(24564), Wishes(pins={"chat": "llama3.1:8b"}), DATA)
    (first, *rest) = reasons_of(pinned)["chat"]
    assert "the best" not in first
    assert rest[-1] == "set by you; without that the best that fits is taken"


@pytest.mark.parametrize(("vram", "ram"), [(6144, 16), (12282, 32), (24564, 64), (0, 16)])
def test_what_would_change_it_is_true(vram: int, ram: int) -> None:
    """The step that is named brings the better model; half of it does not."""
    here = machine(vram, ram)
    now = choose_on(DATA, here, Wishes())
    words = what_would_change(lambda other: choose_on(DATA, other, Wishes()), here, now)["chat"]
    match = re.fullmatch(r"with (\d+) GiB more of (?:GPU )?memory: (.+)", words)
    assert match is not None
    then = choose_on(DATA, grown(here, int(match[1]) * GIB), Wishes()).chat
    assert (then.entry.title, then.quality > now.chat.quality) == (match[2], True)
    before = max((step for step in STEPS_GIB if step < int(match[1])), default=0)
    assert choose_on(DATA, grown(here, before * GIB), Wishes()).chat.quality == now.chat.quality


def test_where_no_memory_helps_the_other_cause_is_named() -> None:
    here = machine(0, 64)
    now = choose_on(DATA, here, Wishes())
    words = what_would_change(lambda other: choose_on(DATA, other, Wishes()), here, now)["chat"]
    assert words.endswith("slower here than 6 tokens/s (`models.speed_floor`)")
    lower = choose_on(DATA, here, Wishes(speed_floor_tps=1.0))
    assert lower.chat.quality > now.chat.quality


def test_a_set_chat_model_is_taken_whatever_the_box_is_for() -> None:
    chosen = choose_on(DATA, machine(24564), Wishes(use="code", pins={"chat": "llama3.1:8b"}))
    assert chosen.chat.entry.tag == "llama3.1:8b"
    free = choose_on(DATA, machine(24564), Wishes(use="code", pins={"code": "llama3.1:8b"}))
    assert free.chat.entry.tag != "llama3.1:8b", "a set code model is not the chat model"


def test_pins_context_and_cpu_only_are_respected() -> None:
    wishes = Wishes(pins={"chat": "llama3.1:8b", "embedding": "all-minilm"}, context=4096)
    chat, embedding = choose_models(report(24564), wishes, DATA).models
    assert (chat.tag, chat.context, embedding.tag) == ("llama3.1:8b", 4096, "all-minilm:22m")
    assert choose_models(report(24564), Wishes(cpu_only=True), DATA).engine == "cpu"
    with pytest.raises(ConfigError):
        choose_models(report(24564), Wishes(pins={"chat": "no-such-model"}), DATA)
    with pytest.raises(UnsupportedError, match=r"named \(chat = llama3\.3:70b\)") as caught:
        choose_models(report(6144), Wishes(pins={"chat": "llama3.3:70b"}), DATA)
    assert "--set models.chat" in caught.value.hint, "it may stand in the settings of a backup"
    with pytest.raises(UnsupportedError) as caught:
        choose_models(report(0, 1), Wishes(), DATA)
    assert caught.value.exit_code == 3


def test_bootstrap_models_get_predictions() -> None:
    chat = describe(DATA, "smollm2:135m", report(0, 8), "bootstrap", 8192)
    assert chat.download_bytes == pytest.approx(269e6, rel=0.02)
    assert chat.download_bytes is not None
    assert chat.predicted_host_bytes > chat.download_bytes
    embedding = describe(DATA, "all-minilm", report(0, 8), "embedding", 512)
    assert (embedding.dimension, embedding.context) == (384, 512)


def test_ollamas_own_decisions() -> None:
    assert [ollama.auto_context(g * GIB, 131_072) for g in (8, 23, 46, 47)] == [4096, 32_768, 32_768, 131_072]
    assert [ollama.auto_batch(c, GIB, 100 * GIB) for c in (4096, 8192, 65_536)] == [512, 1024, 2048]
    assert ollama.auto_batch(65_536, 20 * GIB, 24 * GIB) == 512
    assert ollama.auto_batch(8192, GIB, 8 * GIB, flash_attention=False, cuda=True) == 256
    model = DATA.catalogue.entries["llama3.1:8b"].model()
    assert ollama.predicted(model, 4_920_000_000, 8192) == 4_920_000_000 + 2 * 32 * 8 * 128 * 8192 * 2
    assert ollama.evicts(9 * GIB, 10 * GIB)
    assert not ollama.evicts(7 * GIB, 10 * GIB)
