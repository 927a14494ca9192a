"""Words of messages, for the stages and the commands."""

from collections.abc import Sequence
from typing import Final

NAMES_SHOWN_MAX: Final = 20
"""Names that a message lists."""


def counted(number: int, noun: str) -> str:
    """A number with its noun, in the plural where needed."""
    if number == 1:
        return f"1 {noun}"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{number:,} {noun[:-1]}ies"
    return f"{number:,} {noun}{'es' if noun.endswith(('ch', 's', 'x')) else 's'}"


def listed(names: Sequence[str]) -> str:
    """The names with commas between them; of many, the first ones and the number of the others."""
    more = len(names) - NAMES_SHOWN_MAX
    return ", ".join([*names[:NAMES_SHOWN_MAX], *([f"{more:,} more"] if more > 0 else [])])


def verb(number: int, singular: str, plural: str) -> str:
    """The form of a verb that goes with a number of things."""
    return singular if number == 1 else plural
