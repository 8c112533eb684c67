"""Maintainers' commands: refresh-locks, reference-docs."""
