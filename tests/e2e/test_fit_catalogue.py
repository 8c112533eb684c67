"""What is predicted for each model of the catalogue, against the whole MiB of Debian testing's `llama-fit-params`."""

from __future__ import annotations

from pathlib import Path

import pytest

from ownstack.fitting.memory import Settings
from tests.unit.fitting.dry_run import tables
from tests.unit.fitting.test_dry_run import check, root

__all__ = ["root"]


@pytest.mark.parametrize("tag", sorted(tables()))
def test_the_whole_catalogue_to_the_whole_mib(root: Path, tmp_path: Path, tag: str) -> None:
    check(root, tmp_path, tag, Settings(context=8192, backend="cpu", all_outputs=True))
