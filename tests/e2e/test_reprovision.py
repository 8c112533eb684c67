"""Other hardware under a standing box, by replayed reports: models of other sizes come, serve, and go when asked.

The report alone says which chat model comes: no setting names one. The data in use rank the lab's two, whose sizes are
the real ones: with 2 GiB of memory the small one fits, with 48 GiB the large one, which is preferred.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ownstack.kit import activate
from ownstack.plan import Plan
from ownstack.runner.n8n_content import QUESTION
from tests.e2e.conftest import Mirror, Provisioned
from tests.e2e.test_open_webui import sign_in, step, web
from tests.fixtures.bundles import Publisher
from tests.fixtures.two_models import FREE_MIB, LARGE, SMALL, two_models
from tests.hosts import Host, Network
from tests.hosts.kit import Ownstack, own_vectors

activate()
from roles import open_webui  # noqa: E402

MINE = "my-own:latest"
OTHER = "snowflake-arctic-embed:22m"


@pytest.fixture(scope="module")
def box(network: Network, debian12: Provisioned) -> Iterator[Host]:
    with debian12.clone(network, "newcard") as host:
        own_vectors(host)
        yield host


@pytest.fixture(scope="module")
def ownstack(box: Host, mirror: Mirror, tmp_path_factory: pytest.TempPathFactory) -> Ownstack:
    """Without names of models in the settings, and with data that know two chat models."""
    kit, own = mirror.lab.kit, tmp_path_factory.mktemp("two-models")
    variables = {"OWNSTACK_KIT": str(kit), "XDG_DATA_HOME": str(own / "share")}
    found = Ownstack(box, variables=variables, toml=mirror.sources)
    publisher = Publisher(own)
    publisher.publish(two_models(kit))
    assert found.json("upgrade", "--self", "--from", str(own), "--set", publisher.trust, "--yes")["taken"]
    return found


@pytest.fixture(scope="module")
def reports(box: Host, ownstack: Ownstack, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Reports of this host with other amounts of memory, by GiB."""
    folder = tmp_path_factory.mktemp("reports")
    ownstack("detect", "--raw", str(folder / "now.json"))
    raw = json.loads((folder / "now.json").read_text())
    found = {}
    for gib, free in FREE_MIB.items():
        told = (f"mem\tMemTotal\t{gib << 20}", f"mem\tMemAvailable\t{free << 10}")
        kept = [x for x in raw["lines"] if not x.startswith(("mem\tMemTotal", "mem\tMemAvailable", "cgroup\t"))]
        found[gib] = folder / f"{gib}.json"
        found[gib].write_text(json.dumps({**raw, "lines": [*kept, *told]}))
    return found


def manifest(box: Host) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(box.output("cat /var/lib/ownstack/manifest.json"))
    return found


def models(box: Host) -> set[str]:
    rows = json.loads(box.output("curl -s http://127.0.0.1:11434/api/tags"))["models"]
    return {row["name"] for row in rows}


def chat_of(shown: dict[str, Any]) -> str:
    """The chat model of the plan that `plan --json` shows."""
    return str(next(model["tag"] for model in shown["plan"]["models"] if model["use"] == "chat"))


def up(ownstack: Ownstack, report: Path, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = ownstack.json("up", "--yes", "--from", str(report), *words)
    return found


def served(box: Host, ownstack: Ownstack) -> str:
    """The default model that Open WebUI offers."""
    plan = Plan.model_validate(manifest(box)["plan"])
    email, password = ownstack.first_password("open_webui")
    token = sign_in(box, plan, email, password)[1]
    return str(web(box, plan, "GET", "/api/v1/configs/export", token=token)[1]["ui.default_models"])


def n8n_model(box: Host) -> str:
    """The model with which n8n's demo workflow answers, through the credential that n8n keeps."""
    ask = "curl -sf -m 300 --retry 10 --retry-delay 1 --retry-all-errors -H 'content-type: application/json' -d @- "
    said = box.run(f"{ask} http://127.0.0.1:5678/webhook/ask", data=json.dumps({"question": QUESTION}))
    answer = json.loads(said.stdout)
    assert answer.get("answer", "").strip(), answer
    return str(answer["model"])


def test_less_memory_brings_a_smaller_model_and_deletes_nothing(
    box: Host, ownstack: Ownstack, reports: dict[int, Path]
) -> None:
    assert n8n_model(box) == LARGE
    box.run(f"curl -sf http://127.0.0.1:11434/api/copy -d '{json.dumps({'source': LARGE, 'destination': MINE})}'")
    assert chat_of(ownstack.json("plan", "--from", str(reports[48]))) == LARGE, "not what is asked now, the report"
    named = ("plan", "--json", "--from", str(reports[2]), "--pin", f"chat={LARGE}")
    assert json.loads(ownstack(*named, check=False).stdout)["error"]["code"] == "pinned-too-large"
    shown = ownstack.json("plan", "--from", str(reports[2]))
    assert chat_of(shown) == SMALL
    assert any("memory" in text for text in shown["change"]["hardware"])
    assert [row["model"] for row in shown["change"]["fetch"]] == [SMALL]
    assert SMALL not in models(box), "looking changes nothing"
    done = up(ownstack, reports[2])
    assert done["verify"]["ok"]
    assert done["change"]["leave"] == [LARGE]
    assert [row["model"] for row in done["leftovers"]] == [LARGE]
    assert not done["leftovers"][0]["removed"]
    assert {LARGE, SMALL, MINE} <= models(box)
    assert served(box, ownstack) == SMALL
    assert n8n_model(box) == SMALL
    assert "previous_plan" not in manifest(box)
    memory = next(check for check in done["verify"]["checks"] if check["id"] == "models-memory")
    assert SMALL in memory["measured"]
    print(memory["measured"])


def test_a_change_that_does_not_verify_is_taken_back(box: Host, ownstack: Ownstack, reports: dict[int, Path]) -> None:
    """The larger model answers before the switch, and after it nothing can be loaded."""
    before = manifest(box)["plan"]
    box.run("mkdir -p /run/systemd/system/ownstack-ollama.service.d")
    # the engine that is started anew cannot load anything: the first chat after the switch fails
    limit = "[Service]\nEnvironment=OLLAMA_LOAD_TIMEOUT=1ns\n"
    box.run("cat > /run/systemd/system/ownstack-ollama.service.d/fault.conf", data=limit)
    # from the engine's next start on: before the switch each new model has to answer
    box.run("systemctl daemon-reload")
    failed = ownstack("up", "--yes", "--json", "--from", str(reports[48]), "--set", "ollama.keep_alive=7m", check=False)
    box.run("rm /run/systemd/system/ownstack-ollama.service.d/fault.conf && systemctl daemon-reload")
    box.run("systemctl restart ownstack-ollama")
    assert failed.returncode == 1, failed.stdout
    error = json.loads(failed.stdout)["error"]
    assert error["code"] == "reprovision-reverted", error
    assert "models-" in error["message"]
    after = manifest(box)
    assert after["plan"]["models"] == before["models"]
    assert "previous_plan" not in after
    assert served(box, ownstack) == SMALL
    assert {LARGE, SMALL, MINE} <= models(box)


def test_more_memory_another_embedding_model_and_prune(box: Host, ownstack: Ownstack, reports: dict[int, Path]) -> None:
    plan = Plan.model_validate(manifest(box)["plan"])
    email, password = ownstack.first_password("open_webui")
    _, token = sign_in(box, plan, email, password)
    _, base = web(box, plan, "POST", "/api/v1/knowledge/create", {"name": "house", "description": "kept"}, token)
    box.run("printf 'The word of the house is harbour-4711.' > /tmp/house.txt")
    sent = f"curl -sf -H 'authorization: Bearer {token}' -F file=@/tmp/house.txt"
    path = "/api/v1/files/?process=true&process_in_background=false"
    file = json.loads(box.output(f"{sent} '{open_webui.url(plan)}{path}'"))
    add = f"/api/v1/knowledge/{base['id']}/file/add"
    assert web(box, plan, "POST", add, {"file_id": file["id"]}, token)[0] == 200
    liked = {"content": "The owner of the house likes boats."}
    assert web(box, plan, "POST", "/api/v1/memories/add", liked, token)[0] == 200
    shown = ownstack.json("plan", "--from", str(reports[48]), "--pin", f"embedding={OTHER}")
    assert chat_of(shown) == LARGE
    assert "indexed anew" in shown["change"]["reindex"]

    done = up(ownstack, reports[48], "--pin", f"embedding={OTHER}")
    assert done["verify"]["ok"]
    assert any("memory grew from 2 to 48 GiB" in text for text in done["change"]["hardware"])
    assert done["change"]["fetch"] == [{"model": OTHER, "bytes": done["change"]["fetch"][0]["bytes"]}]
    now = Plan.model_validate(manifest(box)["plan"])
    assert n8n_model(box) == LARGE
    store = {"url": open_webui.qdrant_url(now), "secrets_dir": now.layout.secrets}
    counts = json.loads(
        box.run(f"{now.layout.current('base')}/runner qdrant.counts", data=json.dumps(store)).stdout.splitlines()[-1]
    )["data"]
    for kind in ("knowledge", "files"):
        assert counts[f"{now.vectors}_{kind}"] == counts[f"open-webui_{kind}"] > 0, counts
    query = {"collection_names": [base["id"]], "query": "What is the word of the house?", "k": 1}
    _, token = sign_in(box, now, email, password)
    status, answer = web(box, now, "POST", "/api/v1/retrieval/query/collection", query, token)
    assert status == 200, answer
    assert "harbour-4711" in json.dumps(answer)
    status, answer = web(box, now, "POST", "/api/v1/memories/query", {"content": "What does the owner like?"}, token)
    assert (status, "boats" in json.dumps(answer)) == (200, True), answer

    pruned = up(ownstack, reports[48], "--pin", f"embedding={OTHER}", "--prune")
    gone = {row.get("model") or row["collection"] for row in pruned["leftovers"] if row["removed"]}
    assert {SMALL, "all-minilm:22m", "open-webui_knowledge"} <= gone
    assert {LARGE, OTHER, MINE} <= models(box)
    assert SMALL not in models(box)
    assert step(box, now, "drift", **open_webui.configure_spec(now))["drift"] == []
