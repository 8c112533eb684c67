"""What `verify` looks at in n8n."""

from __future__ import annotations

from typing import Any

from ownstack.plan import Plan
from ownstack.verify.check import Check, Context, Outcome
from roles.n8n import NAME, content_spec, entry, env_path, identity, record_path, release


def probe(context: Context) -> dict[str, Any]:
    plan = context.plan
    return context.step("n8n.probe", **identity(plan), data=plan.layout.data(NAME), state=record_path(plan))


def owner(context: Context) -> Outcome:
    data = probe(context)
    if data["unclaimed"]:
        return Outcome.failed("n8n has no owner: the first visitor would become it")
    return Outcome.ok("n8n has its owner", unclaimed=False)


def refuses(context: Context) -> Outcome:
    data = probe(context)
    answers, foreign = data["without_login"], data["foreign_host"]
    open_paths = sorted(path for path, status in answers.items() if status != 401)
    if open_paths:
        return Outcome.failed(
            f"without sign-in n8n answers {', '.join(f'{p} {answers[p]}' for p in open_paths)}", **answers
        )
    if foreign != 421:
        return Outcome.failed(f"a foreign Host header gets {foreign}", foreign_host=foreign)
    measured = f"{len(answers)} addresses refuse without sign-in (401); a foreign Host header is refused"
    return Outcome.ok(measured, **answers, foreign_host=foreign)


def key(context: Context) -> Outcome:
    data = probe(context)
    held, secret = data["data_fingerprint"], data["key_fingerprint"]
    recorded = data["recorded_fingerprint"]
    if not held == secret == recorded:
        return Outcome.failed(
            f"the data's key is {held}, the secret {secret}, recorded {recorded}", key_fingerprint=held
        )
    return Outcome.ok(f"the encryption key is {held}, as recorded", key_fingerprint=held)


def kit_key(context: Context) -> Outcome:
    data = probe(context)
    if not data["key_works"]:
        return Outcome.failed(f"ownstack's API key is refused ({data['api']})")
    return Outcome.ok("ownstack's own API key works")


def _answered(data: dict[str, Any]) -> bool:
    answer = data.get("answer")
    return data.get("status") == 200 and isinstance(answer, dict) and bool(str(answer.get("answer", "")).strip())


def webhook(context: Context) -> Outcome:
    """A workflow of its own, made and deleted here: the demo is the owner's to change."""
    data = context.step("n8n.ask", **content_spec(context.plan))
    if not _answered(data) or data["answer"].get("model") != data["model"]:
        return Outcome.failed(
            f"the webhook answered {data['status']}: {str(data['answer'])[:200]}", seconds=data["seconds"]
        )
    length = len(str(data["answer"]["answer"]))
    values = {"seconds": data["seconds"], "characters": length, "stored_credential": data["stored_credential"]}
    return Outcome.ok(
        f"a webhook answered through {data['model']} in {data['seconds']} s ({length} characters)", **values
    )


def demo(context: Context) -> Outcome:
    data = context.step("n8n.demo", **content_spec(context.plan))
    stands = data["stands"]
    if stands == "removed":
        return Outcome.amber("the demo workflow was removed by you", "nothing to do: it is not put back")
    if stands == "never made":
        return Outcome.failed("the demo workflow was never made", "run `ownstack up`")
    if not data.get("active"):
        return Outcome.amber(
            f"the demo workflow ({stands}) was switched off by you", "publish it in n8n if you want it back"
        )
    if _answered(data):
        return Outcome.ok(f"the demo workflow ({stands}) answered in {data['seconds']} s", seconds=data["seconds"])
    measured = f"the demo workflow ({stands}) answered {data['status']}: {str(data['answer'])[:120]}"
    if stands == "edited":
        return Outcome.amber(measured, "it was edited by you: see its runs in n8n")
    return Outcome.failed(measured)


def version(context: Context) -> Outcome:
    plan = context.plan
    data = context.step("n8n.running", opt=plan.layout.opt, entry=entry(plan))
    part = plan.role(NAME)
    node = part.artifact("node")
    wanted = {
        NAME: release(plan).rsplit("/", 1)[1],
        "node": plan.layout.release("node", node.version, node.digest).rsplit("/", 1)[1],
    }
    measured = f"runs n8n {data['releases'][NAME]} on Node {data['releases']['node']}"
    values = {**data["releases"], **data["memory"]}
    if data["releases"] != wanted:
        return Outcome.failed(f"{measured}; recorded are {wanted[NAME]} and {wanted['node']}", **values)
    return Outcome.ok(measured, **values)


def config_mode(context: Context) -> Outcome:
    """The environment file carries the encryption key."""
    file = context.host.file(env_path(context.plan))
    if not file.exists:
        return Outcome.failed(f"{env_path(context.plan)} is missing")
    measured = f"{env_path(context.plan)} has mode {file.mode:04o}"
    return (Outcome.ok if file.mode & 0o077 == 0 else Outcome.failed)(measured, mode=file.mode)


def checks(plan: Plan) -> list[Check]:
    again = "run `ownstack up`"
    wrong_key = "restore the secret n8n_encryption_key from a backup; stored credentials cannot be read without it"
    found = [
        Check("n8n-owner", "n8n has an owner", owner, again, NAME),
        Check("n8n-login-required", "n8n refuses without sign-in", refuses, "`ownstack logs n8n`", NAME),
        Check("n8n-key", "n8n's encryption key is the recorded one", key, wrong_key, NAME),
        Check("n8n-kit-key", "ownstack's own key for n8n works", kit_key, again, NAME),
        Check("n8n-config-mode", "n8n's configuration is readable by root only", config_mode, again, NAME),
        Check("n8n-version", "n8n and Node run as recorded", version, "`ownstack restart n8n`", NAME),
    ]
    if plan.models or plan.engine_existing:
        found += [
            Check("n8n-webhook", "an n8n webhook answers through the model", webhook, "`ownstack logs n8n`", NAME),
            Check("n8n-demo", "the demo workflow answers", demo, "`ownstack logs n8n`", NAME),
        ]
    return found
