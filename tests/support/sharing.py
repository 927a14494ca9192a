"""What the tests of a folder share, and only they: an idle server takes CPU time from the tests that follow."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TypeVar, cast

T = TypeVar("T")

_shared: dict[str, tuple[Path, ExitStack, object]] = {}


def shared(folder: Path, name: str, start: Callable[[], AbstractContextManager[T]]) -> T:
    """What all tests of a folder share: started by the first, ended by `end_shared`."""
    if name not in _shared:
        with ExitStack() as stack:
            value = stack.enter_context(start())
            _shared[name] = (folder, stack.pop_all(), value)
    return cast("T", _shared[name][2])


def end_shared(folder: Path | None = None, *, name: str | None = None) -> None:
    """End what the tests of all other folders have shared, the newest first; with `name`, only that."""
    for each, (of, stack, _) in reversed(list(_shared.items())):
        if of != folder and name in {None, each}:
            del _shared[each]
            stack.close()
