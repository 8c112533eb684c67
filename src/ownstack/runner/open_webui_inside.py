"""Runs in Open WebUI's own Python, as its service user; never imported by the runner.

It uses Open WebUI's own models, so that session stamps and table shapes are right by construction. It imports none of
Open WebUI's configuration: that would migrate the database and rewrite the folder of static files.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import uuid

# what the imports print must not get between the answer and its reader
answer_to = os.dup(1)
os.dup2(2, 1)

import bcrypt  # noqa: E402
from open_webui.models.auths import Auths  # type: ignore[import-not-found]  # noqa: E402
from open_webui.models.config import Config  # type: ignore[import-not-found]  # noqa: E402
from open_webui.models.users import Users  # type: ignore[import-not-found]  # noqa: E402


def hashed(password: str) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt()).decode()


async def kit(email: str, name: str, password: str) -> dict[str, str]:
    """The kit's account as an administrator with `password`, and a new API key of it."""
    user = await Users.get_user_by_email(email)
    if user is None:
        user = await Auths.insert_new_auth(email=email, password=hashed(password), name=name, role="admin")
    else:
        await Auths.update_user_password_by_id(user.id, hashed(password))
        await Users.update_user_role_by_id(user.id, "admin")
    await Config.upsert({"auth.enable_api_keys": True})
    key = f"sk-{uuid.uuid4().hex}"
    await Users.update_user_api_key_by_id(user.id, key)
    return {"api_key": key}


async def password(kit: str, password: str) -> dict[str, str]:
    """A new password for the first administrator that is not the kit's account."""
    found = await Users.get_users()
    admins = [user for user in found["users"] if user.role == "admin" and user.email != kit]
    owner = min(admins, key=lambda user: user.created_at)
    await Auths.update_user_password_by_id(owner.id, hashed(password))
    return {"email": str(owner.email)}


asked = json.load(sys.stdin)
run = kit if asked.pop("action") == "kit" else password
os.write(answer_to, (json.dumps(asyncio.run(run(**asked))) + "\n").encode())
