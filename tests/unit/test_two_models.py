"""The two chat models of the reprovision test: what its reports lead to, by the product's own arithmetic."""

from __future__ import annotations

import pytest

from ownstack.bundle import check
from ownstack.fitting.catalogue import load_catalogue
from ownstack.fitting.choose import FitData, Wishes, choose_models, load_data
from ownstack.hardware.report import HardwareReport
from ownstack.kit import data_from, kit_root
from tests.fixtures.bundles import SERIAL
from tests.fixtures.two_models import FREE_MIB, LARGE, SMALL, two_models
from tests.unit import machines


@pytest.fixture(scope="module")
def fit(tmp_path_factory: pytest.TempPathFactory) -> FitData:
    folder = tmp_path_factory.mktemp("data")
    check.write(two_models(kit_root()), folder)
    check.check(folder, SERIAL)
    with data_from(folder, SERIAL):
        return load_data()


def machine(gib: int, free_mib: int) -> HardwareReport:
    """A machine without a card, with that much memory."""
    report = machines.report("bare-server")
    told = {"total_bytes": gib << 30, "available_bytes": free_mib << 20}
    return report.model_copy(update={"memory": report.memory.model_copy(update=told)})


def chat(fit: FitData, gib: int, free_mib: int) -> str:
    return next(m.tag for m in choose_models(machine(gib, free_mib), Wishes(), fit).models if m.use == "chat")


def test_the_report_says_which_model_comes(fit: FitData) -> None:
    assert {gib: chat(fit, gib, free) for gib, free in FREE_MIB.items()} == {2: SMALL, 48: LARGE}
    # far enough from where another one is chosen, or none
    assert [chat(fit, 2, FREE_MIB[2] + more) for more in (-20, 20, 40)] == [SMALL, SMALL, LARGE]


def test_their_sizes_are_the_real_ones(fit: FitData) -> None:
    known = load_catalogue()
    for tag in (LARGE, SMALL):
        entry, quant = known.find(tag)
        mine = vars(fit.catalogue.find(tag)[0].model())
        assert mine | {"name": entry.tag} == vars(entry.model(quant))
