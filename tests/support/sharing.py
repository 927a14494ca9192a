"""Fixtures shared by the tests of one folder only: an idle server takes CPU time from the tests that follow."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TypeVar, cast

T = TypeVar("T")

_shared: dict[str, tuple[Path, ExitStack, object]] = {}


def shared(folder: Path, name: str, start: Callable[[], AbstractContextManager[T]]) -> T:
    """A fixture shared by all tests of a folder: the first one starts it, and `end_shared` ends it."""
    if name not in _shared:
        with ExitStack() as stack:
            value = stack.enter_context(start())
            _shared[name] = (folder, stack.pop_all(), value)
    return cast("T", _shared[name][2])


def end_shared(folder: Path | None = None, *, name: str | None = None) -> None:
    """End the shared fixtures of all other folders, the newest first; with `name`, only that one."""
    for each, (of, stack, _) in reversed(list(_shared.items())):
        if of != folder and name in {None, each}:
            del _shared[each]
            stack.close()
