"""Catalogue, cards, ranks and profiles: complete, consistent, and what a person expects."""

from __future__ import annotations

import pytest

from ownstack.errors import ConfigError
from ownstack.fitting.choose import load_data
from ownstack.fitting.machine import Device, declared
from ownstack.fitting.memory import Settings, layer_kv
from ownstack.fitting.profiles import ladder, load_profile

MIB = 2**20
FAMILIES = """
llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 mistral mistral-nemo mistral-small ministral-3 devstral magistral
mixtral gemma2 gemma3 gemma3n gemma4 codellama qwen2.5 qwen2.5-coder qwen2.5vl qwen3 qwen3-coder qwen3-vl qwen3.5
qwen3.6 deepseek-r1 deepseek-v2 deepseek-v3 phi3.5 phi4 gpt-oss granite3.3 granite4 smollm2 olmo2 olmo-3 command-r
glm4 nemotron nemotron-3-nano lfm2 seed-oss exaone4 all-minilm nomic-embed-text mxbai-embed-large bge-m3
embeddinggemma qwen3-embedding snowflake-arctic-embed2 phi4-mini qwen3-next
exaone3.5 nemotron-nano glm-4.5-air command-r7b
""".split()  # noqa: SIM905 -- a list of words reads better so


def test_the_catalogue_is_wide_and_every_entry_whole() -> None:
    catalogue = load_data().catalogue
    assert len(catalogue) >= 120
    assert set(FAMILIES) <= {entry.family for entry in catalogue}
    for size in ("codellama:7b", "codellama:13b", "codellama:34b"):
        assert size in catalogue.entries
    for entry in catalogue:
        assert entry.licence
        assert entry.source
        assert entry.verified in {"golden", "config", "config+parameters", "config+parameters~", "header"}
        assert entry.capabilities
        assert entry.default_quant in entry.quants
        assert entry.context >= 512
        assert 0 < entry.active_parameters <= entry.parameters
        assert (entry.dimension is not None) == entry.embedding


def test_sizes_add_up_and_grow_with_the_bits() -> None:
    for entry in load_data().catalogue:
        sizes = {q: entry.model(q).weights for q in entry.quants}
        for quant, weights in sizes.items():
            # a published file also holds its vocabulary
            assert weights.total <= entry.raw["quants"][quant]["file"] <= weights.total * 1.03
            assert len(weights.layers) == len(entry.model(quant).layers)
            assert all(e <= whole for e, whole in zip(weights.experts, weights.layers, strict=True))
        if {"F16", "Q8_0", "Q4_K_M"} <= set(sizes):
            assert sizes["F16"].total > sizes["Q8_0"].total > sizes["Q4_K_M"].total
        bits = sizes[entry.default_quant].total * 8 / entry.parameters
        assert 4 < bits < 17, entry.tag


@pytest.mark.parametrize(
    ("tag", "gigabytes"),
    # sizes that the model library publishes
    [("llama3.1:8b", 4.9), ("qwen3:8b", 5.2), ("gpt-oss:20b", 13.8), ("gemma2:9b", 5.4), ("llama2:13b", 7.4),
     ("codellama:34b", 19.1), ("mistral:7b", 4.4), ("llama3.3:70b", 42.5), ("mixtral:8x7b", 26.4)],
)  # fmt: skip
def test_published_sizes(tag: str, gigabytes: float) -> None:
    entry = load_data().catalogue.entries[tag]
    assert entry.model().weights.total / 1e9 == pytest.approx(gigabytes, rel=0.05)


def test_unknown_models_and_cards_name_the_nearest() -> None:
    data = load_data()
    with pytest.raises(ConfigError) as caught:
        data.catalogue.find("qwen3:15b")
    assert "qwen3:14b" in caught.value.hint
    with pytest.raises(ConfigError) as caught:
        data.cards.find("RTX 4091")
    assert "RTX 4090" in caught.value.hint


def test_names_that_people_type() -> None:
    data = load_data()
    assert data.catalogue.find("all-minilm")[0].tag == "all-minilm:22m"
    assert data.catalogue.find("llama3.1:8b-q8_0") == (data.catalogue.entries["llama3.1:8b"], "Q8_0")
    for name in ("RTX 4090", "NVIDIA GeForce RTX 4090", "rtx4090".replace("rtx", "RTX "), "GeForce RTX 4090"):
        assert data.cards.find(name).bandwidth == 1008e9
    laptop = data.cards.find("NVIDIA GeForce RTX 4090 Laptop GPU")
    assert (laptop.bandwidth, laptop.kind) == (576e9, "laptop")
    assert data.cards.lookup("NVIDIA GeForce RTX 4060 Ti", 16380 * MIB) is not None
    assert data.cards.find("RTX 4060 Ti 16GB").memory == 16380 * MIB


def test_the_card_table_is_wide_and_sane() -> None:
    cards = load_data().cards.cards
    assert len(cards) >= 150
    kinds = {card.kind for card in cards}
    assert {"desktop", "laptop", "workstation", "data-centre", "mig", "unified"} <= kinds
    assert {card.vendor for card in cards} == {"nvidia", "amd", "intel", "apple"}
    for card in cards:
        assert card.source
        assert 2**30 < card.memory < 2**39
        assert 50e9 < card.bandwidth < 10e12
        assert card.flops > 1e12
    assert len({card.name for card in cards}) == len(cards)


# each family that is promised by one of its cards: name, memory in GiB as sold, GB/s
PROMISED = """
RTX 2080 Ti|11|616  RTX 3090|24|936  RTX 4090|24|1008  RTX 5090|32|1792  RTX 3080 Laptop GPU|8|448
RTX 4090 Laptop GPU|16|576  RTX 5090 Laptop GPU|24|896  RTX A6000|48|768  RTX 6000 Ada Generation|48|960
H100 80GB HBM3|80|3352  H200|141|4800  A100-SXM4-80GB|80|2039  B200|180|8000  L40S|48|864
H100 80GB HBM3 MIG 3g.40gb|40|1676  A100-SXM4-40GB MIG 1g.5gb|5|194  Jetson AGX Orin 64GB|61|205  GB10|119|273
RX 6800 XT|16|512  RX 7900 XTX|24|960  RX 9070 XT|16|640  Instinct MI300X|192|5300  Radeon 8060S|96|256
Arc A770 16GB|16|560  Arc B580|12|456  M1|16|68  M2 Max|32|400  M3 Ultra|192|819  M4 Max 40-core|36|546  M5|16|153
""".replace("\n", "  ").strip()


@pytest.mark.parametrize("row", PROMISED.split("  "))
def test_every_promised_family_has_its_cards(row: str) -> None:
    name, gib, rate = row.split("|")
    card = load_data().cards.find(name)
    assert card.bandwidth / 1e9 == pytest.approx(float(rate), rel=0.03)
    if card.kind != "unified":
        assert card.memory / 2**30 == pytest.approx(float(gib), rel=0.07)


@pytest.mark.parametrize(
    ("mib", "expected"),
    [(4096, "gpu-4gb"), (6144, "gpu-6gb"), (8188, "gpu-8gb"), (12282, "gpu-12gb"), (16376, "gpu-16gb"),
     (24564, "gpu-24gb"), (32607, "gpu-32gb"), (49140, "gpu-48gb"), (97887, "gpu-96gb"), (2048, "gpu-small")],
)  # fmt: skip
def test_real_memory_totals_fall_into_the_expected_class(mib: int, expected: str) -> None:
    machine = declared((Device("x", "nvidia", mib * MIB, mib * MIB),), 32 * 2**30)
    assert ladder(load_data().profiles, machine)[0].name == expected


def test_profiles_hold_policy_only(tmp_path: object) -> None:
    for profile in load_data().profiles:
        assert profile.policy.context_floor <= profile.policy.context_goal
    from pathlib import Path

    path = Path(str(tmp_path)) / "x.toml"
    path.write_text('name = "x"\ntitle = "x"\nmodels = ["llama3"]\n[match]\ngpu = true\n[policy]\n')
    with pytest.raises(ConfigError, match="models"):
        load_profile(path)


def test_ranks_name_models_of_the_catalogue() -> None:
    data = load_data()
    for use, table in data.ranks.items():
        assert table
        for tag in table:
            entry = data.catalogue.entries[tag]
            assert entry.embedding == (use == "embedding")
            if use in {"chat", "code", "reasoning", "vision"}:
                assert use in entry.capabilities


def test_gemma4_caches_what_real_logs_show() -> None:
    """Gemma4-12B, 8192 tokens, q8_0, one sequence: 323 MiB; not the 48 GiB of equal layers at 131072."""
    model = load_data().catalogue.entries["gemma4:12b"].model()
    s = Settings(context=8192, kv_type="q8_0")
    assert sum(layer_kv(model, s)) / MIB == pytest.approx(323, abs=0.1)
    assert sum(layer_kv(model, Settings(context=131_072))) / 2**30 < 2.6


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("rtx4090", "GeForce RTX 4090"),
        ("4090", "GeForce RTX 4090"),
        ("rx7900xtx", "Radeon RX 7900 XTX"),
        ("MI300X", "Instinct MI300X"),
        ("T4", "Tesla T4"),
        ("strix halo", "Radeon 8060S"),
        ("DGX Spark", "GB10"),
        ("RTX 4060 Ti", "GeForce RTX 4060 Ti 8GB"),
        ("RTX 4060 Ti 16 GB", "GeForce RTX 4060 Ti 16GB"),
        ("RTX 3060 12GB", "GeForce RTX 3060"),
        ("NVIDIA GeForce RTX 3060 12 GB", "GeForce RTX 3060"),
        ("RTX 3060 8GB", "GeForce RTX 3060 8GB"),
        ("RTX 4090 24GB", "GeForce RTX 4090"),
    ],
)
def test_a_card_is_found_as_people_write_it(typed: str, name: str) -> None:
    assert load_data().cards.find(typed).name == name


@pytest.mark.parametrize("typed", ["RTX", "laptop", "A100", "M3 Max", "gpu", "", "quux 9000"])
def test_what_could_be_several_cards_is_not_guessed(typed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_data().cards.find(typed)
    assert caught.value.code == "unknown-gpu"
    assert "--vram" in caught.value.hint
