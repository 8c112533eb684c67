#!/usr/bin/env python3
"""Write docs/reference/accuracy.md: how far predictions are from the engine's own sizes and from measurements.

tools/accuracy.py                          the tables that need nothing but this checkout
tools/accuracy.py --totals FILE.csv        and totals, against a table of nvidia-smi rows
tools/accuracy.py --prompts FILE.csv       and prompt rates, against a table of llama-bench rows
tools/accuracy.py --peer GGUF_PARSER --llmfit LLMFIT
                                           and the same cases through other tools: a build of tools/peers/gguf_parser
                                           and the program of the wheel llmfit 1.1.17. Where the C library is too old
                                           for llmfit, name a script that starts it with the loader of a newer one.
"""

from __future__ import annotations

import argparse
import csv
import math
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from ownstack.errors import OwnstackError  # noqa: E402
from ownstack.fitting import offload  # noqa: E402
from ownstack.fitting.choose import load_data  # noqa: E402
from ownstack.fitting.machine import overhead  # noqa: E402
from ownstack.fitting.memory import MIB, Placement, Settings, estimate  # noqa: E402
from ownstack.fitting.speed import LAWS, Engine, family_of, prefill  # noqa: E402
from tests.unit.fitting.golden import (  # noqa: E402
    golden,
    golden_model,
    kind_of,
    offload_truth,
    run_settings,
    weighted_model,
)
from tests.unit.fitting.test_further import error_of, further, model_of  # noqa: E402
from tools import projectors, speed_laws  # noqa: E402

EVERY_LOGIT_BEFORE = "2026-06"  # llama.cpp's pull request 23861: since then logits of the last position only
PAGE = ROOT / "docs" / "reference" / "accuracy.md"


def summary(errors: Iterable[float], form: Callable[[float], str]) -> str:
    """Number, median, 95th percentile and worst of a list of errors, as table cells."""
    found = sorted(errors)
    return f"{len(found)} | {form(found[len(found) // 2])} | {form(found[int(len(found) * 0.95)])} | {form(found[-1])}"


def percent(value: float) -> str:
    return f"{value * 100:.4f} %" if value < 0.001 else f"{value * 100:.2f} %"


def mib(value: float) -> str:
    return f"{value:.2f} MiB"


def golden_tables() -> list[str]:
    """Compute buffers of the golden models, from the header alone."""
    groups: dict[str, list[float]] = defaultdict(list)
    for name, raw in golden().items():
        model = golden_model(name)
        for run in raw["runs"]:
            part = estimate(model, run_settings(run), Placement((len(model.layers) + 1,))).gpus[0]
            groups[kind_of(run)].append(abs(part.compute / MIB - run["CUDA0_compute"]))
    lines = ["| runs | n | median | p95 | worst |", "|---|---|---|---|---|"]
    words = {
        "server": "flash attention, f16 cache", "sequences": "four sequences, own caches or one", "q8": "q8_0 cache",
        "no-fa": "flash attention off", "all-outputs": "logits of every position",
    }  # fmt: skip
    return lines + [f"| {words[kind]} | {summary(groups[kind], mib)} |" for kind in words]


def further_table() -> list[str]:
    """Weights, cache, state and compute together, of models not used in making the formulas."""
    by_arch: dict[str, list[float]] = defaultdict(list)
    for name, raw in further().items():
        model = model_of(name)
        by_arch[raw["arch"]] += [error_of(model, run) for run in raw["runs"]]
    lines = ["| architecture | n | median | p95 | worst |", "|---|---|---|---|---|"]
    lines += [f"| {arch} | {summary(errors, percent)} |" for arch, errors in sorted(by_arch.items())]
    return [*lines, f"| **all** | {summary([e for errors in by_arch.values() for e in errors], percent)} |"]


def offload_table() -> list[str]:
    """How often the number of layers (and of expert layers) is the engine's own."""
    right: dict[str, list[bool]] = defaultdict(list)
    for case in offload_truth()["cases"]:
        model = weighted_model(case["model"])
        e = offload.fit(model, Settings(context=case["ctx"], batch=512), (case["free_mib"] * MIB,))
        layers = case["ngl"] if case["ngl"] >= 0 else e.of_layers
        same = e.gpu_layers == layers and (e.expert_layers_on_host == case["expert_layers"] or case["partial"])
        right["mixtures" if model.experts else "dense"].append(same)
    lines = ["| models | cases | same as the engine |", "|---|---|---|"]
    return lines + [f"| {kind} | {len(found)} | {sum(found)} |" for kind, found in sorted(right.items())]


def speed_table() -> list[str]:
    groups: dict[str, list[tuple[float, bool]]] = defaultdict(list)
    together: dict[tuple[str, bool], list[speed_laws.Row]] = defaultdict(list)
    for row in speed_laws.rows():
        law, mixture = speed_laws.law_of(row), bool(row.model.experts)
        error = abs(row.error(law))
        kind = row.note or ("mixture" if mixture else "dense")
        groups["other: " + kind if row.note else f"{row.vendor}, {kind}"].append((error, error <= math.log(law.band)))
        if not row.note:
            groups["**all without other**"].append((error, error <= math.log(law.band)))
            together[row.family, mixture].append(row)
    for (family, mixture), rows in together.items():
        if len({row.card for row in rows}) > 2:
            law = LAWS[family][mixture]
            for error in map(abs, speed_laws.left_out(rows, law)):
                groups["**the card left out of the fit**"].append((error, error <= math.log(law.band)))
    lines = ["| cards, model | n | median | p95 | worst | in band |", "|---|---|---|---|---|---|"]
    for group, pairs in sorted(groups.items(), key=lambda item: ("*" in item[0], item[0])):
        share = sum(inside for _, inside in pairs) / len(pairs)
        lines.append(f"| {group} | {summary([e for e, _ in pairs], percent)} | {share:.0%} |")
    return lines


def totals_table(path: Path) -> list[str]:
    """Against what nvidia-smi showed of the process: total and the printed interval."""
    data = load_data()
    lines = ["| model | context | cards | shown | predicted | with overhead | off | inside |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    errors, hits = [], []
    for row in csv.DictReader(path.open(encoding="utf-8")):
        if not row["total_kind"].startswith("nvidia-smi") or not row["total_gpu_mib"]:
            continue
        try:
            entry, quant = data.catalogue.find(row["model"])
        except OwnstackError:  # a model that the catalogue does not have is no case
            continue
        s = Settings(
            context=int(row["n_ctx"]), parallel=int(row["n_seq"] or 1), kv_type=row["kv_type"] or "f16",
            flash_attention=row["flash_attn"] != "off", batch=int(row["ubatch"] or 512), backend="cuda",
            all_outputs=row["date"] < EVERY_LOGIT_BEFORE,
        )  # fmt: skip
        model = entry.model(row["quant"] if row["quant"] in entry.quants else quant)
        cards = int(row["n_gpu"]) if row["n_gpu"].isdigit() else 2
        total = estimate(model, s, offload.spread(model, s, (1,) * cards)).gpu_bytes
        low, high = (end * cards for end in overhead("cuda"))
        real = float(row["total_gpu_mib"])
        ends = [(total + o) / MIB for o in (low, high)]
        middle = sum(ends) / 2
        errors.append(abs(middle / real - 1))
        hits.append(ends[0] * 0.999 <= real <= ends[1] * 1.001)
        lines.append(
            f"| {entry.tag} | {s.context} | {cards} | {real:.0f} MiB | {total / MIB:.0f} MiB "
            f"| {ends[0]:.0f} to {ends[1]:.0f} MiB | {middle / real - 1:+.2%} | {'yes' if hits[-1] else 'no'} |"
        )
    size = sorted(errors)
    return [
        *lines,
        "",
        f"The middle of the interval is off by {statistics.median(size):.2%} in the median, {size[-1]:.2%} at most;",
        f"{sum(hits)} of {len(hits)} lie in the printed interval.",
    ]


def projector_table() -> list[str]:
    """The rule against the published files."""
    both = sorted(projectors.RULE.keys() & projectors.PUBLISHED.keys())
    errors = [abs(projectors.RULE[tag] / projectors.PUBLISHED[tag] - 1) for tag in both]
    return ["| rule against published files | n | median | p95 | worst |", "|---|---|---|---|---|",
            f"| {', '.join(both)} | {summary(errors, percent)} |"]  # fmt: skip


def prompt_table(path: Path) -> list[str]:
    """How often a measured prompt rate (one card, empty cache) lies in the printed range."""
    data = load_data()
    tags = {re.sub(r"[^a-z0-9.]", "", tag): entry for tag, entry in data.catalogue.entries.items()}
    groups: dict[str, list[tuple[float, bool]]] = defaultdict(list)
    for row in csv.DictReader(path.open(encoding="utf-8")):
        card = data.cards.lookup(row["device"].replace("(", "").replace(")", "").replace("Ada", "Ada Generation"))
        entry = tags.get(re.sub(r"[^a-z0-9.]", "", row["model"].lower()))
        alone = row["n_gpu"] in {"", "1"} and row["depth_tokens"] in {"", "0"}
        if not row["pp_tps"] or not alone or card is None or entry is None:
            continue
        model = entry.model(row["quant"] if row["quant"] in entry.quants else "")
        e = estimate(model, Settings(context=2048), Placement((len(model.layers) + 1,)))
        family = family_of(card.vendor, card.name, card.compute_capability)
        engine = Engine(card.vendor, card.bandwidth, flops=card.flops, family=family)
        found, real = prefill(model, e, engine), float(row["pp_tps"])
        if found is not None:
            groups[family].append((abs(math.log(found.mid / real)), found.low <= real <= found.high))
    every = [pair for pairs in groups.values() for pair in pairs]
    lines = ["| family | n | median | p95 | worst | in the range |", "|---|---|---|---|---|---|"]
    for family, pairs in [*sorted(groups.items()), ("**all**", every)]:
        share = sum(inside for _, inside in pairs) / len(pairs)
        lines.append(f"| {family} | {summary([error for error, _ in pairs], percent)} | {share:.0%} |")
    return lines


def page(totals: Path | None, peer: Path | None, llmfit: Path | None, prompts: Path | None) -> str:
    parts = [
        "# How far `fit` is off",
        "",
        "Generated by `tools/accuracy.py`; do not edit. Engine: llama.cpp build 11669. MiB is 2^20 bytes.",
        "",
        "## Compute buffers, from the header alone",
        "",
        "74 models, 1,332 runs, against llama.cpp's own dry run on a stand-in device. Caches and recurrent states",
        "are exact in every run (within the two printed decimals). The recorded allocation programs come from",
        "short made-up models with other widths, never from these. Worst: nemotron-nano-9b-v2 (chunked Mamba).",
        "",
        *golden_tables(),
        "",
        "## Whole sizes of models that were not used",
        "",
        "Weights, cache, state and compute on the GPU, contexts 512 to 131072, micro-batch 512 to 2048, f16 and q8_0,",
        "one and four sequences; header values of public configurations. The weights are exact by construction here:",
        "both sides read the same tensor table.",
        "",
        *further_table(),
        "",
        "## Layers on the GPU",
        "",
        "Against the decisions of llama.cpp's own `common_fit_params` with a margin of 1 GiB.",
        "",
        *offload_table(),
        "",
    ]
    if peer:
        from tools import peer_tables

        parts += [
            "## Beside other tools",
            "",
            "The same files and settings through all of them, in one run. llmfit 1.1.17 does not start on Debian 12",
            "(it needs a newer C library): it was run with that of Debian testing. It looks a model up by its name in",
            "a list of its own; the half GB that it adds for the runtime is taken off, and its GB are read as GiB (it",
            "is nearer then). whichllm fetches its list from the network when it starts: it is not compared.",
            "",
            *peer_tables.lines(peer, llmfit, lambda errors: summary(errors, percent)),
        ]
    if totals:
        parts += [
            "## Totals against nvidia-smi",
            "",
            "The only six rows that were found where model, context, cache and engine are known and nvidia-smi showed",
            "the memory: ollama/ollama#9988, an engine of spring 2025 (it kept the logits of every position), without",
            "flash attention. No more are at hand, so this says little of other cards. The CUDA context is the part",
            "that no header tells. The last two lay on several cards; how many is not told, two is assumed,",
            "each with a compute buffer of its own.",
            "",
            *totals_table(totals),
            "",
        ]
    parts += [
        "## Speed",
        "",
        "Absolute log error of decoding, and how often the measured value lies in the printed band, on the 550",
        "public measurements in `tests/fixtures/speed/rows.csv`, each with its source. `tools/speed_laws.py` fits the",
        "laws on them. *The card left out*: the law of its family fitted without any row of the card, for families",
        "with three cards or more. *Slow host*: cards in single-board computers, which hold them back by up to six",
        "times; no law is fitted on these. *File unknown*: rows of gpt-oss that do not say which of two very different",
        "files ran. No row of Intel is here; its law rests on one report (intel/ipex-llm#12991).",
        "",
        *speed_table(),
        "",
    ]
    if prompts:
        parts += [
            "## Prompts",
            "",
            "Absolute log error of the middle of the printed range, and how often the measured rate lies in the range:",
            "public llama-bench tables, one card, empty cache. The constants were read from the same tables.",
            "",
            *prompt_table(prompts),
            "",
        ]
    parts += [
        "## Without a GPU, against the current engine",
        "",
        "Debian testing's `llama-fit-params` (llama.cpp 0.7.0) on headers of all 179 catalogue models, context 8192:",
        "weights and context are its whole MiB for every one, compute for 169. The other ten, at micro-batch 512:",
        "small Qwen 3.5 and Gemma 4 12B (at 32768) at most 8 MiB less, Gemma 4 E2B and E4B at most 22 MiB less,",
        "DeepSeek V2 and V3 of full size 257 MiB more (`tests/unit/fitting/test_dry_run.py`). For gpt-oss the file by",
        "rule is compared, not the published one. The program recorded at build 11669 is completed by the input path",
        "that this engine added.",
        "",
        "The real Ollama 0.34.2 on the CPU, bootstrap model at 2,048, 8,192 and 32,768 tokens and the embedding model:",
        "weights, cache, compute and logits are those of the engine's log within its hundredths of a MiB",
        "(`tests/e2e/test_fit_measured.py`).",
        "",
        "On a GPU made of software (Mesa's lavapipe, the engine's Vulkan part), the bootstrap model at 2,048, 8,192",
        "and 32,768 tokens, wholly and with 12 of 31 layers: layers and caches as predicted; weights 0.07 % less (CUDA",
        "pads rows, Vulkan does not); the compute buffer 1.1 MiB more when whole and 2.1 MiB when split, the same at",
        "every context. The same GPU named twice is two to the engine: layers, weights and cache of each as predicted,",
        "compute of the second 1.1 MiB less than predicted, of the first 9.1 MiB more",
        "(`tests/e2e/test_fit_software_gpu.py`).",
        "",
        "## Vision projectors",
        "",
        "32 models of the catalogue read pictures. For ten the size is that of a published file; for the others the",
        "matrices of the vision part are summed from its public widths (`tools/projectors.py`).",
        "",
        *projector_table(),
        "",
        "## What is not shown",
        "",
        "No CUDA card was at hand: the overhead interval rests on reports. ROCm's, Metal's and Vulkan's overheads",
        "are assumptions until `ownstack bench` has measured. Two cards share layers in proportion to free memory. The",
        "copies that they keep to work at once are counted alike for each; a real split had 155 MiB more on one card",
        "(of 13.8 GiB). The memory that a vision projector works in is not counted, and it was",
        "measured nowhere: only its file is.",
        "",
    ]
    return "\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--totals", type=Path)
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--llmfit", type=Path)
    asked = parser.parse_args()
    PAGE.write_text(page(asked.totals, asked.peer, asked.llmfit, asked.prompts), encoding="utf-8")
    print(PAGE.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
