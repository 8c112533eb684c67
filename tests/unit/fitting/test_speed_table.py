"""The laws of speed against public measurements: most of what was measured lies in the printed band."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict

from ownstack.fitting.speed import LAWS
from tools import speed_laws


def test_nine_of_ten_measurements_lie_in_the_band() -> None:
    groups: dict[tuple[str, bool], list[bool]] = defaultdict(list)
    errors = []
    for row in speed_laws.rows():
        if row.note:
            continue
        law = speed_laws.law_of(row)
        error = abs(row.error(law))
        errors.append(error)
        groups[row.family, bool(row.model.experts)].append(error <= math.log(law.band))
    assert len(errors) > 500
    assert statistics.median(errors) <= 0.12
    small = {family: inside for family, inside in groups.items() if sum(inside) / len(inside) < 0.85}
    assert not small


def test_a_fit_finds_the_law_that_made_the_rows() -> None:
    rows = [row for row in speed_laws.rows() if row.family == "8.9" and not row.note and not row.model.experts]
    law = LAWS["9.0"][False]
    made = [row._replace(tps=row.tps * math.exp(row.error(law))) for row in rows]
    found = speed_laws.fit(made, LAWS["8.9"][False], step=1)
    assert (found.a, round(found.layer * 1e6), round(found.t0 * 1e4)) == (law.a, 140, 4)
