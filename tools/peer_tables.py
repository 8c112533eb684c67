"""The same cases through ownstack, gguf-parser-go and llmfit in one run, against llama.cpp's own sizes.

Cases: models of the golden and of the further data that the catalogue has, f16 cache, one sequence, all layers on one
GPU. Truth: the weights that lie on the GPU, cache, state and compute as llama.cpp's dry run gives them. Both of our
sides read the same tensor table; gguf-parser-go gets a file with the same header; llmfit looks a model up by name.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ownstack.fitting.choose import load_data
from ownstack.fitting.memory import MIB, Placement, Settings, estimate
from ownstack.fitting.model import Model, make_model
from ownstack.fitting.weights import place
from tests.unit.fitting.dry_run import shapes, tables, write_header
from tests.unit.fitting.golden import golden
from tests.unit.fitting.test_further import further

NAMES = Path(__file__).with_name("peers") / "llmfit.toml"
GIB = 2**30
LLMFIT_FIXED_GIB = 0.5  # what it adds for the runtime; overhead is not compared here
LLMFIT_CONTEXTS = (8192, 32_768)
Summary = Callable[[Iterable[float]], str]


@dataclass(frozen=True)
class Case:
    """A model at settings, and the bytes on the GPU by llama.cpp's own reckoning."""

    name: str
    tag: str
    quant: str
    model: Model
    context: int
    batch: int
    real: float

    @property
    def ours(self) -> int:
        s = Settings(context=self.context, batch=self.batch, backend="vulkan")
        return estimate(self.model, s, Placement((len(self.model.layers) + 1,))).gpus[0].total


def plain(run: dict[str, Any]) -> bool:
    """What all of them can express: flash attention, f16, one sequence, one row of logits."""
    return all(run.get(key, 1) == 1 for key in ("seq", "tk", "fa", "nout"))


def cases() -> list[Case]:
    """Golden models (by the catalogue's note of their name), then the further ones (by their tag)."""
    known: dict[str, dict[str, Any]] = {}
    named: set[str] = set()
    for entry in load_data().catalogue:
        name = entry.raw.get("golden")
        if name is not None and name not in named:  # several tags are tunings of one model
            named.add(name)
            known[entry.tag] = {**golden()[name], "name": name}
    for name, raw in further().items():
        known.setdefault(name.replace("_", ":"), {**raw, "name": name})
    found = []
    for tag, raw in known.items():
        if tag not in tables():
            continue
        entry = load_data().catalogue.entries[tag]
        table, quant = tables()[tag], entry.default_quant
        weights = place(table["arch"], table["values"], shapes(tag, quant))
        model = make_model(tag, entry.arch, entry.model().hparams, weights, quant=quant)
        on_gpu = sum(weights.layers) + weights.output + weights.output_copy
        for run in filter(plain, raw["runs"]):
            rest = sum(part[0] for part in run.get("kv", [])) + run.get("CUDA0_RS", 0) + run["CUDA0_compute"]
            found.append(Case(raw["name"], tag, quant, model, run["ctx"], run["ub"], on_gpu + rest * MIB))
    return found


def gguf_parser(binary: Path, found: list[Case]) -> dict[Case, float]:
    """What gguf-parser-go says of each: weights, cache and compute on the GPU."""
    by_tag: dict[str, list[Case]] = defaultdict(list)
    for case in found:
        by_tag[case.tag].append(case)
    said: dict[Case, float] = {}
    for tag, group in by_tag.items():
        with tempfile.TemporaryDirectory() as folder:
            file = write_header(Path(folder) / "model.gguf", tag, group[0].quant)
            asked = [word for case in group for word in (str(file), str(case.context), str(case.batch))]
            done = subprocess.run([str(binary), *asked], capture_output=True, text=True, check=True, timeout=120)
        for case, line in zip(group, done.stdout.splitlines(), strict=True):
            told = json.loads(line)
            said[case] = told["weights"] + told["kv"] + told["compute"]
    return said


def llmfit(binary: Path, found: list[Case]) -> dict[Case, float]:
    """What llmfit says of those that it knows, at 4 bits, without its fixed half GiB."""
    names = tomllib.loads(NAMES.read_text(encoding="utf-8"))
    said = {}
    for case in found:
        if case.name not in names or case.quant != "Q4_K_M" or case.batch != 512 or case.context not in LLMFIT_CONTEXTS:
            continue
        words = ["--json", "--memory", "4000G", "--ram", "4000G", "plan", names[case.name]]
        words += ["--context", str(case.context), "--quant", case.quant]
        done = subprocess.run([str(binary), *words], capture_output=True, text=True, check=False, timeout=60)
        if done.returncode == 0:
            said[case] = (json.loads(done.stdout)["minimum"]["vram_gb"] - LLMFIT_FIXED_GIB) * GIB
    return said


def errors(said: dict[Case, float], over: Iterable[Case]) -> list[float]:
    return [abs(said[case] / case.real - 1) for case in over]


def lines(parser: Path, fit: Path | None, summary: Summary) -> list[str]:
    """Both tables."""
    found = cases()
    ours = {case: float(case.ours) for case in found}
    theirs = gguf_parser(parser, found)
    head = ["| tool | n | median | p95 | worst |", "|---|---|---|---|---|"]
    models, kinds = len({case.tag for case in found}), len({case.model.arch for case in found})
    span = f"{min(c.context for c in found)} to {max(c.context for c in found)}"
    out = [f"{models} models of {kinds} architectures, contexts {span}, all layers on one GPU:", "", *head]
    chat = [case for case in found if not case.model.embedding_model]
    for words, group in (("", found), (", without embedding models", chat)):
        out.append(f"| ownstack{words} | {summary(errors(ours, group))} |")
        out.append(f"| gguf-parser-go 0.26.3{words} | {summary(errors(theirs, group))} |")
    out.append("")
    if fit is None:
        return out
    also = llmfit(fit, found)
    out += [f"The {len({case.tag for case in also})} of them that llmfit knows, at 4 bits and micro-batch 512:", ""]
    out += ["| tool | context | n | median | p95 | worst |", "|---|---|---|---|---|---|"]
    for context in LLMFIT_CONTEXTS:
        group = [case for case in also if case.context == context]
        for tool, said in (("ownstack", ours), ("gguf-parser-go 0.26.3", theirs), ("llmfit 1.1.17", also)):
            out.append(f"| {tool} | {context} | {summary(errors(said, group))} |")
    return [*out, ""]
