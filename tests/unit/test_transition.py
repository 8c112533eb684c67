"""From one plan of a standing box to the next: in words, in what is fetched, and in what stays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ownstack.cli.reprovision import quality_of
from ownstack.errors import ConfigError, DetectionError, UnsupportedError
from ownstack.hardware.change import describe_change
from ownstack.hardware.whatif import with_cards
from ownstack.plan import VECTORS, Plan
from ownstack.transition import Transition, between, lines
from ownstack.vectors import prefix_for
from tests.unit import machines
from tests.unit.machines import box, changed, plan, sources


def chat(made: Plan) -> str:
    model = made.model("chat")
    assert model is not None
    return model.tag


def change(old: str, new: str) -> Transition:
    site: Any = type("Site", (), {"data": machines.data()})
    before, after = plan(old), plan(new)
    words = describe_change(before.hardware, machines.report(new))
    return between(before, after, words, quality_of(site, before, after))


def test_a_larger_card_is_told_side_by_side() -> None:
    found = change("rtx-4070", "rtx-4090")
    (pair,) = [pair for pair in found.pairs if pair.use == "chat"]
    assert pair.old is not None and pair.new is not None  # noqa: PT018 - for the type checker
    assert (pair.old_quality or 0) < (pair.new_quality or 0)
    assert pair.new.tag in [model.tag for model in found.fetch]
    assert pair.old.tag in found.leave
    text = "\n".join(lines(found))
    assert "RTX 4070 12 GB replaced by RTX 4090 24 GB" in text
    for model in (pair.old, pair.new):
        (line,) = [x for x in text.splitlines() if x.strip().startswith(("now", "then")) and model.tag in x]
        assert "quality" in line
        assert f"{model.predicted_gpu_bytes / 2**30:.1f} GiB on the GPU" in line
        assert f"context {model.context}" in line
        assert "tokens/s" in line
    size = f"{(pair.new.download_bytes or 0) / 2**30:.1f} GiB"
    assert f"fetched while the present models serve: {pair.new.tag}, {size}" in text
    assert f"kept until `ownstack up --prune`: {pair.old.tag}" in text
    assert found.engine is None


def test_a_card_that_goes_is_the_same_the_other_way_round() -> None:
    found = change("rtx-4090", "bare-server")
    assert found.engine == ("cuda", "cpu")
    text = "\n".join(lines(found))
    assert "RTX 4090 24 GB is gone" in text
    assert "the engine's parts change from cuda to cpu" in text
    assert chat(plan("rtx-4090")) in found.leave
    assert {"bootstrap"}.isdisjoint(pair.use for pair in found.pairs)


def test_nothing_changes_where_plan_and_engine_are_the_same() -> None:
    found = between(plan("rtx-4090"), plan("rtx-4090"))
    assert found.nothing
    assert (found.fetch, found.leave, found.reindex) == ((), (), "")
    more = plan("rtx-4090", {"models.context": 4096})
    assert not between(plan("rtx-4090"), more).nothing, "another context is a change without a download"
    assert between(plan("rtx-4090"), more).fetch == ()


@pytest.mark.parametrize("machine", ["driver-mismatch", "nouveau", "gpu-lost"])
def test_a_card_that_cannot_be_read_is_no_downgrade(machine: str) -> None:
    with pytest.raises(DetectionError):
        plan(machine, state=box(plan("rtx-4090")))


def test_models_are_kept_where_their_owner_says_so() -> None:
    old = plan("rtx-4070")
    kept = plan("rtx-4090", {"models.keep": True}, state=box(old))
    assert chat(kept) == chat(old) != chat(plan("rtx-4090"))
    assert between(old, kept).fetch == ()
    again = plan("rtx-4090", state=box(kept))
    assert chat(again) == chat(old), "it stays so"
    assert chat(plan("rtx-4090", {"models.refit": True}, state=box(kept))) == chat(plan("rtx-4090"))


def test_a_newer_catalogue_or_other_profiles_are_told_and_move_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stands = box(plan("rtx-4090"))
    same = plan("rtx-4090", state=stands)
    assert not [text for text in same.warnings if "--refit" in text]
    today = machines.data()
    later = replace(today, fit=replace(today.fit, digest="another"))
    monkeypatch.setattr(machines, "data", lambda: later)
    told = plan("rtx-4090", state=stands)
    assert [text for text in told.warnings if "machine classes" in text and "--refit" in text]
    assert (told.models, told.model_data) == (same.models, same.model_data)
    again = plan("rtx-4090", {"models.refit": True}, state=stands)
    assert again.model_data == "another"
    assert not [text for text in plan("rtx-4090", state=box(again)).warnings if "--refit" in text]


def test_the_small_models_that_came_with_the_kit_are_kept_too_when_the_registry_is_back() -> None:
    away = plan("rtx-4090", answers=sources(models="no route"))
    assert away.model("chat") is not None
    assert away.deferred_model is not None
    assert chat(plan("rtx-4090", state=box(away))) == away.deferred_model.tag
    assert plan("rtx-4090", {"models.keep": True}, state=box(away)).models == away.models


def test_what_is_kept_and_fits_no_longer_is_named_with_the_way_out() -> None:
    with pytest.raises(UnsupportedError, match=r"the models that are kept do not fit: .*qwen3.6:27b") as caught:
        plan("gtx-1060", {"models.keep": True}, state=box(plan("rtx-4090")))
    assert caught.value.code == "kept-too-large"
    assert "--keep-models" in caught.value.hint
    assert chat(plan("gtx-1060", state=box(plan("rtx-4090")))) != "qwen3.6:27b"


def test_a_pinned_model_is_taken_and_told() -> None:
    old = plan("rtx-4090")
    pinned = plan("rtx-4090", {"models.chat": chat(plan("rtx-4070"))}, state=box(old))
    assert chat(pinned) == chat(plan("rtx-4070"))
    assert chat(old) in between(old, pinned).leave
    assert chat(pinned) in [model.tag for model in between(old, pinned).fetch]


def test_a_new_card_without_a_registry_goes_on_with_the_models_that_are_there() -> None:
    old = plan("rtx-4070")
    away = plan("rtx-4090", answers=sources(models="no route"), state=box(old))
    assert chat(away) == chat(old)
    assert away.deferred_model is not None
    assert away.deferred_model.tag == chat(plan("rtx-4090"))
    assert any("the models that are there stay" in text for text in away.reasons)
    assert chat(plan("rtx-4090", state=box(away))) == chat(plan("rtx-4090")), "it is fetched when it can be"


def test_a_model_that_is_too_large_for_what_is_left_does_not_stay() -> None:
    away = plan("arm-board-4gb-64k", answers=sources(models="no route"), state=box(plan("rtx-4090")))
    model = away.model("chat")
    assert model is not None
    assert model.source == "artifact"


def test_vectors_of_two_embedding_models_never_share_a_collection() -> None:
    first = plan("rtx-4090")
    assert first.vectors == VECTORS
    assert plan("rtx-4090", state=box(first)).vectors == VECTORS
    other = plan("rtx-4090", {"models.embedding": "all-minilm:33m"}, state=box(first))
    assert other.vectors.startswith(f"{VECTORS}-all-minilm-33m-")
    found = between(first, other)
    assert "384 dimensions" in found.reindex
    assert f"{VECTORS}_*" in found.reindex
    assert found.reindex in "\n".join(lines(found)).replace("  documents", "documents")
    back = plan("rtx-4090", {"models.embedding": first.models[-1].tag}, state=box(other))
    assert plan("rtx-4090", state=box(first)).vectors == VECTORS
    assert back.vectors not in (VECTORS, other.vectors), "what an old collection holds may be old"
    assert prefix_for(None, None) == VECTORS


def test_open_webui_is_started_with_the_collections_of_the_plan() -> None:
    from roles import open_webui

    other = plan("rtx-4090", {"models.embedding": "all-minilm:33m"}, state=box(plan("rtx-4090")))
    environment = next(file for file in open_webui.files(other) if file.path.endswith("/env"))
    assert f'QDRANT_COLLECTION_PREFIX="{other.vectors}"\n' in environment.content


def test_what_if_there_were_another_card() -> None:
    cards = machines.data().fit.cards
    report = with_cards(machines.report("rtx-4070"), cards.find("RTX 5090"))
    assert [gpu.name for gpu in report.gpus] == [cards.find("RTX 5090").name]
    assert report.gpus[0].memory_total_bytes.source == "table"
    assert chat(plan(report)) != chat(plan("rtx-4070"))
    two = with_cards(machines.report("bare-server"), cards.find("RTX 3090"), 2)
    assert plan(two).engine == "cuda"
    assert len(two.gpus) == 2
    assert plan(with_cards(machines.report("rtx-4090"), None)).engine == "cpu"
    for machine in ("driver-mismatch", "amd-nomodeset", "arc-unknown-size", "rx-6700-xt", "wsl2-no-library"):
        assert machines.report(machine).fatal
        broken = with_cards(machines.report(machine), cards.find("RTX 5090"))
        assert broken.fatal == (), "the card that is there is the one to be replaced"
    with pytest.raises(ConfigError, match="part of a machine"):
        with_cards(machines.report("bare-server"), next(card for card in cards.cards if card.kind == "unified"))


def test_memory_that_was_added_is_told() -> None:
    more = changed("rtx-4090", memory={"total_bytes": 128 * 2**30})
    assert any("memory grew" in text for text in describe_change(plan("rtx-4090").hardware, more))
