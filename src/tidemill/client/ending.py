"""How a command ends, and what may be shown on a terminal on the way."""

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


def printable(text: str) -> str:
    """A text that came from elsewhere, with nothing in it that a terminal would obey."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)
