"""Settings of n8n, the workflow automation."""

from __future__ import annotations

import ipaddress
import re
from typing import Literal

from pydantic import Field, field_validator

from ownstack.hardware.report import Frozen

HOST_NAME = re.compile(r"^(\*\.)?[a-z0-9]([a-z0-9-]{0,62})(\.[a-z0-9]([a-z0-9-]{0,62}))*$")


class Settings(Frozen):
    port: int = Field(5678, ge=1024, le=65535, description="Loopback port of n8n's editor, webhooks and API.")
    broker_port: int = Field(5679, ge=1024, le=65535, description="Loopback port between n8n and its task runner.")
    owner_email: str = Field(
        "owner@ownstack.local",
        pattern=r"^[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})*\.[A-Za-z]{2,24}$",
        description="Sign-in name of the owner's account, made at the first start. It need not be a real mailbox.",
    )
    owner_first_name: str = Field(
        "Box", min_length=1, max_length=32, pattern=r"^[^\x00-\x1f\x7f<>]*$", description="Its first name."
    )
    owner_last_name: str = Field(
        "Owner", min_length=1, max_length=32, pattern=r"^[^\x00-\x1f\x7f<>]*$", description="Its last name."
    )
    keep_executions_hours: int = Field(
        168, ge=1, le=87600, description="How long records of finished runs are kept, hours."
    )
    log_level: Literal["error", "warn", "info", "debug"] = Field("info", description="How much n8n logs.")
    allow_addresses: tuple[str, ...] = Field(
        (),
        description="Private addresses (10.0.0.5, 192.168.1.0/24) and host names that workflows may reach beside this "
        "machine. The network policy has to allow them too.",
    )

    hosts: tuple[str, ...] = Field(
        (),
        description="Further host names by which n8n may be asked, behind a proxy, or whose pages may call webhooks.",
    )

    @field_validator("hosts")
    @classmethod
    def _host_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not name or not all(char.isascii() and (char.isalnum() or char in ".-:") for char in name):
                raise ValueError(f"{name!r} is not a host name")
        return tuple(name.lower() for name in value)

    @field_validator("allow_addresses")
    @classmethod
    def _addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(address(item) for item in value)


def address(text: str) -> str:
    """An address range in CIDR notation, or a host name in small letters. Raises ValueError for anything else."""
    try:
        return str(ipaddress.ip_network(text, strict=False))
    except ValueError:
        if HOST_NAME.fullmatch(text.lower()) and not re.fullmatch(r"[0-9./]+", text):
            return text.lower()
        raise ValueError(f"{text!r} is neither an address, a range nor a host name") from None
