"""How a command ends."""

from enum import IntEnum


class Exit(IntEnum):
    """How a command ends."""

    OK = 0
    INEXACT = 1
    """The files do not hold each line once, or are not those of the receipt."""
    USAGE = 2
    SOME_FAILED = 3
    FAILED = 4
    EXPIRED = 5
    CANCELLED = 6
    UNREACHABLE = 7
    DETACHED = 130
