"""Bounds on all settings of a file or the environment.

Settings end up in headers, topics, metrics, logs and command lines, so a text has no control characters.
"""

import itertools
import re
from collections.abc import Iterator
from typing import Any, Final

from tidemill.schemas.bounds import NAME_CHARS_MAX, NUMBER_MAX

TEXT_CHARS_MAX: Final = 4096
"""Length of a text, such as an address, a path or a list of brokers."""
ITEMS_MAX: Final = 10_000
"""Items of a list or a table."""
DEPTH_MAX: Final = 16
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


FAULTS_MAX: Final = 20


def first_faults(value: Any) -> list[str]:
    """The first values out of bounds, since there may be very many."""
    return list(itertools.islice(faults(value), FAULTS_MAX))


def faults(value: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Values out of bounds, each with its path."""
    if len(path) > DEPTH_MAX:
        yield _fault(path, "it is nested too deeply")
    elif isinstance(value, dict):
        yield from _of_table(value, path)
    elif isinstance(value, list | tuple):
        yield from _of_list(value, path)
    elif isinstance(value, str):
        yield from _of_text(value, path)
    # `nan` compares as False; an integer may be too large for a float.
    elif isinstance(value, int | float) and not abs(value) <= NUMBER_MAX:
        yield _fault(path, f"it must be a number within {NUMBER_MAX}")


def _of_table(table: dict[Any, Any], path: tuple[str, ...]) -> Iterator[str]:
    if len(table) > ITEMS_MAX:
        yield _fault(path, f"it has {len(table)} entries; at most {ITEMS_MAX}")
        return
    for name, value in table.items():
        shown = ascii(str(name))[1:-1][:NAME_CHARS_MAX]
        if not 0 < len(str(name)) <= NAME_CHARS_MAX or _CONTROL.search(str(name)):
            yield _fault(
                (*path, shown), f"a name has 1 to {NAME_CHARS_MAX} characters, none of them a control one"
            )
        else:
            yield from faults(value, (*path, shown))


def _of_list(items: list[Any] | tuple[Any, ...], path: tuple[str, ...]) -> Iterator[str]:
    if len(items) > ITEMS_MAX:
        yield _fault(path, f"it has {len(items)} items; at most {ITEMS_MAX}")
        return
    for number, item in enumerate(items):
        yield from faults(item, (*path, str(number)))


def _of_text(text: str, path: tuple[str, ...]) -> Iterator[str]:
    if len(text) > TEXT_CHARS_MAX:
        yield _fault(path, f"it has {len(text)} characters; at most {TEXT_CHARS_MAX}")
    elif _CONTROL.search(text):
        yield _fault(path, "it has a control character")


def _fault(path: tuple[str, ...], fault: str) -> str:
    return f"{'.'.join(path)}: {fault}"
