"""What `verify` looks at in Open WebUI. All of it is done as the kit's own account, or as a stranger."""

from __future__ import annotations

from typing import Any

from ownstack.plan import Plan
from ownstack.verify.check import Check, Context, Outcome
from roles.open_webui import NAME, configure_spec, identity, owned, qdrant_url, url

# as well as 200: no password is kept, its owner lets people in by other ways alone, or it was asked too often
SIGNED_IN = (None, 200, 403, 429)


def refuses(context: Context) -> Outcome:
    data = context.step("open_webui.refuses", url=url(context.plan))
    wrong = [f"{name} answers without sign-in" for name in data["open"]]
    if data["onboarding"]:
        wrong.append("there is no account yet: the first visitor would become administrator")
    if data["foreign_host"] not in (400, 403, 421):
        wrong.append(f"a foreign Host header gets {data['foreign_host']}")
    if data["foreign_origin"] == 101:
        wrong.append("a page of a stranger may open the websocket")
    if data["tunnel_origin"] != 101:
        wrong.append(f"a browser behind an SSH tunnel is refused the websocket ({data['tunnel_origin']})")
    if wrong:
        return Outcome.failed("; ".join(wrong), **data)
    return Outcome.ok(
        f"{data['asked']} addresses refuse without sign-in; foreign hosts and origins are refused", **data
    )


def signup(context: Context) -> Outcome:
    data = context.step("open_webui.refuses", url=url(context.plan))
    if data["signup"]:
        mine = "ui.enable_signup" in context.plan.role(NAME).settings.get("user_owned", ())
        text = "anyone who reaches the page can ask for an account"
        return Outcome.amber(text + " (you took this setting over)") if mine else Outcome.failed(text)
    return Outcome.ok("sign-up is off")


def kit_account(context: Context) -> Outcome:
    data = context.step("open_webui.models", **identity(context.plan))
    status = context.step("open_webui.sign_in", **identity(context.plan))["status"]
    if status not in SIGNED_IN:
        return Outcome.failed(f"nobody can sign in: Open WebUI answers {status}", status=status)
    return Outcome.ok("the kit's own account works", models=len(data["models"]), status=status)


def models(context: Context) -> Outcome:
    data = context.step("open_webui.models", **identity(context.plan))
    wanted = sorted({owned.tag(model.tag) for model in context.plan.models})
    missing = [name for name in wanted if name not in data["models"]]
    if missing:
        return Outcome.failed(f"not offered: {', '.join(missing)}", missing=missing, models=data["models"])
    return Outcome.ok(f"{len(data['models'])} models are offered, the planned ones among them", models=data["models"])


def context_length(context: Context) -> Outcome:
    """A client that sends a smaller `num_ctx` cuts conversations short without a word."""
    data = context.step("open_webui.models", **identity(context.plan))
    planned = {owned.tag(model.tag): model.context for model in context.plan.models if model.context}
    low = [
        f"{name if name != '*' else 'the general default'} asks for {asked}"
        for name, asked in data["num_ctx"].items()
        if asked < (planned.get(name, 0) if name != "*" else max(planned.values(), default=0))
    ]
    if low:
        hint = "Admin Panel, Settings, Models: take `num_ctx` away, then the planned length holds"
        return Outcome.amber(
            f"chats are cut below the planned context: {'; '.join(low)}", hint, num_ctx=data["num_ctx"]
        )
    return Outcome.ok("Open WebUI asks for no smaller context than planned", num_ctx=data["num_ctx"])


def version(context: Context) -> Outcome:
    wanted = context.plan.role(NAME).artifact("open-webui").version
    found = context.step("open_webui.version", url=url(context.plan))["version"]
    measured = f"Open WebUI {found} serves, {wanted} is recorded"
    return (Outcome.ok if found == wanted else Outcome.failed)(measured, version=found)


def drift(context: Context) -> Outcome:
    data = context.step("open_webui.drift", **configure_spec(context.plan))
    found = data["drift"]
    if found:
        names = ", ".join(item["key"] for item in found)
        hint = "`ownstack up` puts them back; or take them over with `[open_webui] user_owned = [...]`"
        return Outcome.amber(f"changed by somebody: {names}", hint, drift=found)
    kept = len(owned.values(context.plan))
    return Outcome.ok(f"all {kept} settings that the kit owns have their planned values", keys=kept)


def answering(context: Context) -> dict[str, Any]:
    """The model to ask: the planned one if it is offered, else the bootstrap one."""
    plan = context.plan
    offered = context.step("open_webui.models", **identity(plan))["models"]
    chosen = [plan.model("chat"), plan.model("bootstrap")]
    names = [owned.tag(model.tag) for model in chosen if model]
    return {"model": next((name for name in names if name in offered), names[0] if names else ""), "timeout": 600}


def chat(context: Context) -> Outcome:
    asked = answering(context)
    data = context.step("open_webui.chat", **identity(context.plan), **asked)
    tokens = data["answer_tokens"]
    measured = f"{data['model']} answered with {tokens} tokens ({data['characters']} characters) in {data['seconds']} s"
    right = data["characters"] > 0 and tokens > 0 and data["prompt_tokens"] > 0 and data["model"] == asked["model"]
    return (Outcome.ok if right else Outcome.failed)(measured, **data)


def document(context: Context) -> Outcome:
    plan = context.plan
    store = {"url": qdrant_url(plan), "secret": "qdrant_api_key", "prefix": plan.vectors}
    data = context.step("open_webui.document", **identity(plan), **answering(context), qdrant=store)
    wrong = []
    if data["during"] <= data["before"]:
        wrong.append("no vectors were stored in Qdrant")
    if not data.get("token_found"):
        wrong.append("the document is not among the answer's sources")
    if data["left"]:
        wrong.append(f"left behind: {', '.join(data['left'])}")
    if data["after"] != data["before"]:
        wrong.append(f"{data['after'] - data['before']} vectors were left in Qdrant")
    counts = f"vectors {data['before']}, {data['during']}, {data['after']}"
    if wrong:
        return Outcome.failed(f"{'; '.join(wrong)} ({counts})", **data)
    return Outcome.ok(f"a fresh document was embedded, found in the answer's sources and removed ({counts})", **data)


def checks(plan: Plan) -> list[Check]:
    again = "run `ownstack up`"
    logs = "`ownstack logs open_webui` and `ownstack logs ollama` show why"
    found = [
        Check("open-webui-login-required", "Open WebUI refuses without sign-in", refuses, again, NAME),
        Check("open-webui-signup-off", "Open WebUI takes no new accounts from strangers", signup, again, NAME),
        Check(
            "open-webui-version",
            "Open WebUI serves in the recorded version",
            version,
            "`ownstack restart open_webui`",
            NAME,
        ),
        Check("open-webui-account", "The kit's own account works in Open WebUI", kit_account, again, NAME),
        Check("open-webui-settings", "The settings that the kit owns are as planned", drift, again, NAME),
        Check("open-webui-models", "Open WebUI offers the planned models", models, logs, NAME),
        Check("open-webui-context", "Open WebUI cuts no conversation short", context_length, again, NAME),
    ]
    if plan.model("chat") or plan.model("bootstrap"):
        found.append(Check("open-webui-chat", "A model answers through Open WebUI", chat, logs, NAME))
        if plan.model("embedding"):
            found.append(Check("open-webui-document", "A document is found again", document, logs, NAME))
    return found
