"""Bounds of every setting, whatever it is called: what a file or the environment may hold at all.

Settings travel into headers, topics, metrics, logs and command lines; so a text has no control characters.
"""

import re
from collections.abc import Iterator
from typing import Any, Final

from tidemill.schemas.bounds import NAME_CHARS_MAX, NUMBER_MAX

TEXT_CHARS_MAX: Final = 4096
"""Of an address, a path, a list of brokers."""
ITEMS_MAX: Final = 10_000
"""Of a list, or of a table with a name for each entry."""
DEPTH_MAX: Final = 16
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def faults(value: Any, place: tuple[str, ...] = ()) -> Iterator[str]:
    """What is out of bounds, each with its place."""
    if len(place) > DEPTH_MAX:
        yield _said(place, "it is nested too deeply")
    elif isinstance(value, dict):
        yield from _of_table(value, place)
    elif isinstance(value, list | tuple):
        yield from _of_list(value, place)
    elif isinstance(value, str):
        yield from _of_text(value, place)
    # `nan` is within nothing; an integer may be too large to be looked at as a float.
    elif isinstance(value, int | float) and not abs(value) <= NUMBER_MAX:
        yield _said(place, f"it must be a number within {NUMBER_MAX}")


def _of_table(table: dict[Any, Any], place: tuple[str, ...]) -> Iterator[str]:
    if len(table) > ITEMS_MAX:
        yield _said(place, f"it has {len(table)} entries; at most {ITEMS_MAX}")
        return
    for name, value in table.items():
        shown = ascii(str(name))[1:-1][:NAME_CHARS_MAX]
        if not 0 < len(str(name)) <= NAME_CHARS_MAX or _CONTROL.search(str(name)):
            yield _said(
                (*place, shown), f"a name has 1 to {NAME_CHARS_MAX} characters, none of them a control one"
            )
        else:
            yield from faults(value, (*place, shown))


def _of_list(items: list[Any] | tuple[Any, ...], place: tuple[str, ...]) -> Iterator[str]:
    if len(items) > ITEMS_MAX:
        yield _said(place, f"it has {len(items)} items; at most {ITEMS_MAX}")
        return
    for number, item in enumerate(items):
        yield from faults(item, (*place, str(number)))


def _of_text(text: str, place: tuple[str, ...]) -> Iterator[str]:
    if len(text) > TEXT_CHARS_MAX:
        yield _said(place, f"it has {len(text)} characters; at most {TEXT_CHARS_MAX}")
    elif _CONTROL.search(text):
        yield _said(place, "it has a control character")


def _said(place: tuple[str, ...], fault: str) -> str:
    return f"{'.'.join(place)}: {fault}"
