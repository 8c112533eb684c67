"""What people would count in the databases of the services, and the tables that hold it."""

from __future__ import annotations

# service -> (table, what people call it)
COUNTED = {
    "open_webui": (
        ("user", "accounts"), ("chat", "chats"), ("file", "files"), ("knowledge", "knowledge collections"),
    ),
    "n8n": (
        ("user", "accounts"), ("workflow_entity", "workflows"), ("credentials_entity", "credentials"),
    ),
}  # fmt: skip
# counted together each word stands once: there accounts are those of Open WebUI
OF_A_BOX = tuple(
    (service, table, what)
    for service, tables in COUNTED.items()
    for table, what in tables
    if (service, what) != ("n8n", "accounts")
)
