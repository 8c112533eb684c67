"""A home server over SSH: copy this to homeserver.py and name your own.

    pyinfra inventory/homeserver.py deploy.py

`ownstack up --host me@homeserver` does the same and more: it asks first, shows progress and verifies.
"""

hosts = [
    (
        "homeserver",  # a name from ~/.ssh/config, a host name or an address
        {
            "ssh_user": "me",
            "_sudo": True,
        },
    ),
]
