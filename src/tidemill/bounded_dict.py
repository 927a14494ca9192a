"""A dict of bounded size, for caches and for what a process remembers of the recent past."""

from collections import OrderedDict
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BoundedDict(OrderedDict[K, V]):
    """A dict that evicts its least recently used entry when a new one exceeds its size.

    To set an entry and to `use` it count as uses; `d[key]`, `get` and `in` do not.
    """

    def __init__(self, entries_max: int) -> None:
        super().__init__()
        self._entries_max = entries_max

    def __setitem__(self, key: K, value: V) -> None:
        OrderedDict.__setitem__(self, key, value)
        self.move_to_end(key)
        if len(self) > self._entries_max:
            self.popitem(last=False)

    def use(self, key: K) -> V | None:
        """The value of a key, which becomes the last to be evicted; None without one."""
        try:
            self.move_to_end(key)
        except KeyError:
            return None
        return self[key]
