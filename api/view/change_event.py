"""Word that something was folded, for who waits to see it."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class ChangeEvent:
    """Wakes those who wait, each time there is something new."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def tell(self) -> None:
        """There is something new."""
        told, self._next = self._next, asyncio.Event()
        told.set()

    async def until(self, look: Callable[[], T | None], *, seconds_max: float) -> T | None:
        """What `look` finds, at once or after some news; None where that takes longer than `seconds_max`."""
        try:
            async with asyncio.timeout(seconds_max):
                while (found := look()) is None:
                    await self._next.wait()
        except TimeoutError:
            return look()
        return found
