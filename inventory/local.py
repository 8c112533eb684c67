"""This machine: `pyinfra inventory/local.py deploy.py`."""

hosts = ["@local"]
