"""`ownstack models outdated` and `ownstack models pull`: what the registry has by now, and taking it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigError, RunError
from .output import confirm, emit_json, note, say, size
from .progress import Progress
from .site import Site, open_site, read_settings, target_options

if TYPE_CHECKING:
    from ..plan import ModelChoice, Plan

WORDS = {
    "same": "up to date",
    "changed": "another one in the registry",
    "made-here": "made here, the registry was not asked",
    "unknown": "made here, or gone from the registry",
    "refused": "the registry wants a sign-in",
    "unreachable": "the registry does not answer",
}


def ask_spec(plan: Plan, names: list[str]) -> dict[str, Any]:
    """The specification of `ollama.outdated`."""
    from ..engine import units
    from ..kit import activate

    activate()
    from roles.models import account, record

    ours = plan.has("ollama") and not plan.engine_existing
    engine = plan.role("ollama").settings if ours else {}
    proxy = engine.get("pull_proxy", "")
    return {
        "url": plan.engine_url,
        "record": record(plan),
        "registry": engine.get("registry", ""),
        "insecure": bool(engine.get("registry_insecure")),
        "environment": {"HTTPS_PROXY": proxy} if proxy else {},
        "planned": {model.tag: model.source == "artifact" for model in plan.models},
        "names": names,
        "runner": units.runner_python(plan),
        "manager": plan.manager,
        "unit": plan.layout.unit("registry-ask"),
        "account": account(plan) if ours else "",
    }


def ask(site: Site, plan: Plan, names: list[str], quiet: bool, verbose: int) -> list[dict[str, Any]]:
    """The rows of `ollama.outdated`, with how to take an update. Says before which address is asked."""
    from ..runner.ollama_api import DEFAULT_HOST

    spec = ask_spec(plan, names)
    if not quiet:
        where = spec["registry"] or DEFAULT_HOST
        note(f"asking {where} (or the host in a model's own name); names of models are all that is sent")
    with Progress(quiet=quiet, verbose=verbose > 0) as progress:
        site.session.on_event = progress
        rows: list[dict[str, Any]] = site.session.step("ollama.outdated", spec)["models"]
    for row in rows:
        row["take"] = how(plan, row) if row["status"] == "changed" else ""
        row["catalogue"] = catalogued(site, row)
    return rows


def catalogued(site: Site, row: dict[str, Any]) -> str:
    """The digest that the catalogue has of a model; empty where it knows none."""
    try:
        entry, _ = site.data.fit.catalogue.find(row["name"])
    except (ConfigError, AttributeError):
        return ""
    return str(entry.raw.get("digest", ""))


def how(plan: Plan, row: dict[str, Any]) -> str:
    """The command that takes the update."""
    if plan.engine_existing or not plan.has("ollama"):
        return f"`ollama pull {row['name']}` on the box: its engine is not ours"
    choice = chosen(plan, row["name"])
    if choice and choice.digest not in ("", row["registry"]) and not plan.role("models").settings.get("accept_moved"):
        return "`ownstack upgrade --self`, then `ownstack up --refit`: the catalogue names the build that is here"
    return f"`ownstack models pull {row['name']}`"


def chosen(plan: Plan, name: str) -> ModelChoice | None:
    """The planned model of that name."""
    found = [m for m in plan.models if m.tag.removesuffix(":latest") == name.removesuffix(":latest")]
    return found[0] if found else None


@click.command()
@target_options
@click.argument("names", metavar="[MODEL]...", nargs=-1)
def outdated(
    host: str | None,
    config_file: str | None,
    sets: tuple[str, ...],
    sudo_password_file: Path | None,
    as_json: bool,
    verbose: int,
    names: tuple[str, ...],
) -> int:
    """Ask the registry which models are other ones there by now: all, or those that are named.

    The account that pulls models asks, in a short-lived unit of its own. The names of the models leave the machine,
    nothing else; those made here are left out. Nothing is changed.
    """
    settings = read_settings(config_file, sets, host=host)
    with open_site(settings, sudo_password_file) as site:
        rows = ask(site, site.recorded_plan(), list(names), as_json, verbose)
    silent = [row for row in rows if row["status"] == "unreachable"]
    error = None
    if silent:
        error = RunError(
            f"{silent[0]['address']} does not answer: {silent[0]['why']}",
            hint="check the network of the box, and `[ollama] registry` and `pull_proxy`; nothing was changed",
            code="registry-unreachable",
        )
    if as_json:
        emit_json("models-outdated", {"models": rows}, error)
        return error.exit_code if error else 0
    for row in rows:
        update = f", {size(row['bytes'])} to fetch" if row["status"] == "changed" else ""
        say(f"  {row['name']:<32} {row['here'][:12]:<13} {row['registry'][:12]:<13} {WORDS[row['status']]}{update}")
        if row["take"]:
            say(f"  {'':<32} {row['take']}")
    if error:
        raise error
    return 0


@click.command()
@target_options
@click.option("-y", "--yes", is_flag=True, help="Go on without being asked.")
@click.argument("names", metavar="MODEL...", nargs=-1, required=True)
def pull(
    host: str | None,
    config_file: str | None,
    sets: tuple[str, ...],
    sudo_password_file: Path | None,
    as_json: bool,
    verbose: int,
    yes: bool,
    names: tuple[str, ...],
) -> int:
    """Bring models as the registry has them now: a newer build of one that is there, or another one.

    Fetched beside what serves by the account that pulls, compared with its hashes, then switched. What you pull is
    yours: `up --prune` leaves it.
    """
    from .upgrade_run import end_first

    settings = read_settings(config_file, sets, host=host)
    with open_site(settings, sudo_password_file, doing="models pull") as site:
        end_first(site)
        plan = site.recorded_plan()
        if plan.engine_existing or not plan.has("ollama"):
            raise RunError(
                "the models belong to an Ollama that ownstack did not install",
                hint=f"`ollama pull {names[0]}` on the box",
                code="engine-existing",
            )
        specs = pull_specs(site, plan, names, as_json, verbose)
        if specs:
            confirm(f"Pull {', '.join(spec['tag'] for spec in specs)}?", yes, as_json)
        with Progress(quiet=as_json, verbose=verbose > 0) as progress:
            site.session.on_event = progress
            for spec in specs:
                bring(site, spec)
    taken = [spec["tag"] for spec in specs]
    if as_json:
        emit_json("models-pull", {"pulled": taken})
    else:
        say(f"there now: {', '.join(taken)}" if taken else "up to date: nothing was fetched")
    return 0


def pull_specs(site: Site, plan: Plan, names: tuple[str, ...], quiet: bool, verbose: int) -> list[dict[str, Any]]:
    """The pulls that are needed, each with the digest that the registry tells."""
    from ..plan import ModelChoice
    from ..runner.core import StepError
    from ..runner.ollama_api import parse

    try:
        wanted = {parse(name).short: name for name in names}
    except StepError as error:
        raise ConfigError(error.message, hint=error.hint, code=error.code) from error
    from roles.models import pull_spec

    there = {item["name"] for item in site.session.step("ollama.list", {"url": plan.engine_url})["models"]}
    known = [short for short in wanted if short in there]
    told = {row["name"]: row for row in ask(site, plan, known, quiet, verbose)} if known else {}
    specs = []
    for short, name in wanted.items():
        row = told.get(short)
        if row and row["status"] not in ("changed", "same"):
            raise RunError(
                f"{name}: {WORDS[row['status']]}",
                hint="`ownstack models outdated` says more",
                code=f"model-{row['status']}",
            )
        if row and row["status"] == "same":
            continue
        choice = chosen(plan, name)
        made = choice or ModelChoice(use="chat", name=name, tag=name, source="registry")
        spec = pull_spec(plan, made)
        more = {"digest": row["registry"], "download_bytes": row["bytes"]} if row else {}
        specs.append({**spec, **more, "yours": choice is None, "check": spec["check"] and choice is not None})
    return specs


def bring(site: Site, spec: dict[str, Any]) -> None:
    """Start the pull, which outlives this connection, and wait for its end. Raises RunError with its reason."""
    site.session.step("ollama.pull_start", {"runner": site.session.layout_runner, "pull": spec})
    waited = site.session.step("ollama.pull_wait", {"run_dir": spec["run_dir"], "tags": [spec["tag"]]})
    for tag, error in waited["ended"].items():
        raise RunError(f"{tag}: {error['message']}", hint=error["hint"], code=error["code"] or "pull")
