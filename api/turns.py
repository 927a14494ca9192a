"""Few at one time: work that takes memory or a core waits for its turn, for a bounded time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from tidemill.api import errors

WAIT_SECONDS_MAX: Final = 30.0


class Turns:
    """So many places for one kind of work."""

    def __init__(self, what: str, places: int) -> None:
        self._what = what
        self._places = asyncio.Semaphore(places)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Have one of the places.

        Raises:
            ApiError: 503, there were too many before for too long.
        """
        try:
            async with asyncio.timeout(WAIT_SECONDS_MAX):
                await self._places.acquire()
        except TimeoutError as error:
            raise errors.unavailable(self._what) from error
        try:
            yield
        finally:
            self._places.release()
