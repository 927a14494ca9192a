"""Operator's commands, which read the log and the store directly: dead letters, rebuild, purge, doctor, ACLs."""

from collections.abc import Callable

Say = Callable[[str], None]
"""Prints a line on stdout."""


class OperatorError(Exception):
    """The command cannot do its work; the text says why."""
