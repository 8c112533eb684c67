#!/usr/bin/env python3
"""Sizes of vision projectors (`mmproj`, F16) in the catalogue: published where a file's size was found, else by rule.

    tools/projectors.py          write them into the catalogue

The rule sums the vision part's matrices: widths from the public configurations (transformers' classes of each family,
and model cards). Where a published size exists too, tests/unit/fitting/test_projectors.py holds the rule to it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from ownstack.fitting.catalogue import DATA  # noqa: E402


class Tower(NamedTuple):
    """A vision transformer: layers, width, feed-forward width and its matrices (3: gated), patch values, positions."""

    layers: int
    width: int
    ff: int
    matrices: int
    patch: int
    positions: int
    biases: bool = True

    @property
    def bytes(self) -> int:
        block = 4 * self.width**2 + self.matrices * self.width * self.ff
        small = (8 * self.width + self.ff) * 4 if self.biases else 2 * self.width * 4
        return self.layers * (2 * block + small) + 2 * self.patch * self.width + 4 * self.positions * self.width


SIGLIP = Tower(27, 1152, 4304, 2, 3 * 14 * 14 * 2, 4096)  # the patches' filter is kept in F32
QWEN_LARGE = Tower(27, 1152, 4304, 2, 2 * 3 * 16 * 16, 2304)
QWEN_MIDDLE = Tower(24, 1024, 4096, 2, 2 * 3 * 16 * 16, 2304)
QWEN_SMALL = Tower(12, 768, 3072, 2, 2 * 3 * 16 * 16, 2304)
QWEN25 = Tower(32, 1280, 3420, 3, 2 * 3 * 14 * 14, 0)
PIXTRAL = Tower(24, 1024, 4096, 3, 3 * 14 * 14, 0, biases=False)
LLAMA4 = Tower(34, 1408, 5632, 2, 3 * 14 * 14, 577)
GEMMA4 = Tower(27, 1152, 4304, 3, 3 * 16 * 16, 20_480, biases=False)


def qwen(tower: Tower, out: int, deep: int = 0) -> int:
    """Four patches become one; `deep` further mergers feed the first layers of the language model."""
    wide = 4 * tower.width
    return tower.bytes + (1 + deep) * 2 * (wide * wide + wide * out)


def pixtral(out: int) -> int:
    return PIXTRAL.bytes + 2 * (4 * 1024 * 1024 + 1024 * out + out * out)


def llama4() -> int:
    return LLAMA4.bytes + 2 * (5632 * 4096 + 4096 * 4096 + 4096 * 5120)


RULE: dict[str, int] = {
    **{f"gemma3:{size}": SIGLIP.bytes + 2 * 1152 * out for size, out in (("4b", 2560), ("12b", 3840), ("27b", 5376))},
    **{f"gemma4:{size}": GEMMA4.bytes + 2 * 1152 * out for size, out in (("26b", 2816), ("31b", 5376))},
    "qwen3.5:0.8b": qwen(QWEN_SMALL, 1024), "qwen3.5:2b": qwen(QWEN_MIDDLE, 2048),
    "qwen3.5:4b": qwen(QWEN_MIDDLE, 2560), "qwen3.5:9b": qwen(QWEN_LARGE, 4096),
    "qwen3.5:27b": qwen(QWEN_LARGE, 5120), "qwen3.5:35b": qwen(QWEN_LARGE, 2048),
    "qwen3.5:122b": qwen(QWEN_LARGE, 3072), "qwen3.6:27b": qwen(QWEN_LARGE, 5120),
    "qwen3.6:35b": qwen(QWEN_LARGE, 2048),
    "qwen3-vl:2b": qwen(QWEN_MIDDLE, 2048, 3), "qwen3-vl:4b": qwen(QWEN_MIDDLE, 2560, 3),
    "qwen3-vl:8b": qwen(QWEN_LARGE, 4096, 3), "qwen3-vl:30b": qwen(QWEN_LARGE, 2048, 3),
    "qwen3-vl:32b": qwen(QWEN_LARGE, 5120, 3),
    "qwen2.5vl:3b": qwen(QWEN25, 2048), "qwen2.5vl:7b": qwen(QWEN25, 3584),
    "qwen2.5vl:32b": qwen(QWEN25, 5120), "qwen2.5vl:72b": qwen(QWEN25, 8192),
    "ministral-3:3b": pixtral(3072), "ministral-3:8b": pixtral(4096), "ministral-3:14b": pixtral(5120),
    "mistral-small3.2:24b": pixtral(5120),
    "llama4:16x17b": llama4(), "llama4:128x17b": llama4(),
}  # fmt: skip
# sizes of F16 files as repositories of the makers, of ggml-org or of unsloth list them (each read in public code that
# checks its downloads)
PUBLISHED: dict[str, int] = {
    "gemma3:4b": 851_251_104, "gemma4:12b": 175_115_264, "gemma4:e2b": 985_654_080, "gemma4:e4b": 990_372_672,
    "qwen2.5vl:3b": 1_338_428_256, "qwen2.5vl:7b": 1_354_163_040, "qwen3.5:0.8b": 204_987_232,
    "qwen3.5:2b": 668_227_264, "qwen3.5:4b": 672_423_616, "qwen3.5:9b": 918_166_080,
}  # fmt: skip


def size_of(tag: str) -> tuple[int, str]:
    """Bytes of a model's projector and where the number is from."""
    if tag in PUBLISHED:
        return PUBLISHED[tag], "published file"
    return RULE[tag], "rule of the vision part's widths"


def main() -> int:
    path = DATA / "catalogue.json"
    entries = json.loads(path.read_text(encoding="utf-8"))["models"]
    for entry in entries:
        if "vision" in entry["capabilities"] and entry["verified"] != "header":
            entry["projector_bytes"], entry["projector"] = size_of(entry["tag"])
    rows = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries)
    path.write_text('{"schema":1,"models":[\n' + rows + "\n]}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
