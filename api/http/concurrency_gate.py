"""Limits concurrent work that takes memory or a core, and shares it among projects.

A project may hold half of the places that the others leave, so a few projects leave a place for the next one. A
free place goes to the waiting project with the fewest. So one project alone cannot keep another waiting.
"""

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from tidemill.api import errors

WAIT_SECONDS_MAX: Final = 30.0
WAITING_MAX: Final = 256
"""Waiting requests of one project for one kind of work; a further one is refused at once."""


class ConcurrencyGate:
    """A number of places for one kind of work."""

    def __init__(self, what: str, places: int, *, seconds_max: float = WAIT_SECONDS_MAX) -> None:
        """Create a gate with all places free; `what` names the work in errors."""
        self._what = what
        self._places = places
        self._seconds_max = seconds_max
        self._held: Counter[str] = Counter()
        self._waiting: defaultdict[str, deque[asyncio.Future[None]]] = defaultdict(deque)

    @asynccontextmanager
    async def turn(self, project: str) -> AsyncIterator[None]:
        """Hold a place, which counts against the project's share.

        Raises:
            ApiError: 429, the project holds its share, and too many of its requests wait or this one waited too
                long; 503, other projects hold the places.
        """
        await self._acquire(project)
        try:
            yield
        finally:
            self._release(project)

    def share(self, project: str) -> int:
        """The number of places that a project may hold while the others keep theirs."""
        return share_of(self._held, project, self._places)

    async def _acquire(self, project: str) -> None:
        waiting = self._waiting.get(project)
        if not waiting and self._has_room(project):
            self._held[project] += 1
            return
        if waiting is not None and len(waiting) >= WAITING_MAX:
            raise errors.share_taken(self._what, project)
        place = asyncio.get_running_loop().create_future()
        self._waiting[project].append(place)
        try:
            async with asyncio.timeout(self._seconds_max):
                await place
        except BaseException as error:
            self._withdraw(project, place)
            if isinstance(error, TimeoutError):
                is_own = self._held[project] >= self.share(project)
                raise (
                    errors.share_taken(self._what, project) if is_own else errors.unavailable(self._what)
                ) from error
            raise

    def _withdraw(self, project: str, place: "asyncio.Future[None]") -> None:
        """Stop waiting, and release a place that was granted meanwhile."""
        if place.done() and not place.cancelled():
            self._release(project)
            return
        waiting = self._waiting[project]
        if place in waiting:
            waiting.remove(place)
        if not waiting:
            del self._waiting[project]

    def _release(self, project: str) -> None:
        self._held[project] -= 1
        if not self._held[project]:
            del self._held[project]
        while (following := self._next()) is not None:
            # Moved to the end, so that other projects with as few places come first next time.
            waiting = self._waiting.pop(following)
            place = waiting.popleft()
            if waiting:
                self._waiting[following] = waiting
            if not place.done():
                self._held[following] += 1
                place.set_result(None)

    def _next(self) -> str | None:
        """The waiting project with the fewest places that may have one more."""
        able = (project for project in self._waiting if self._has_room(project))
        return min(able, key=lambda project: self._held[project], default=None)

    def _has_room(self, project: str) -> bool:
        return has_room(self._held, project, self._places)


def share_of(held: Counter[str], project: str, places: int) -> int:
    """The number of places that a project may hold while the others keep theirs; `held` has those of each."""
    others = held.total() - held[project]
    return max(1, (places - others + 1) // 2)


def has_room(held: Counter[str], project: str, places: int) -> bool:
    """Whether a place is free, and a project may take it."""
    return held.total() < places and held[project] < share_of(held, project, places)


class RequestPacer:
    """Lets one request of each project begin per iteration of the event loop.

    The loop answers most requests in a single step. Without the pacer, all requests that a project sends at once
    would be answered in one iteration, and each step of another project's request would wait for all of them. The
    number of connections bounds how many wait, since each connection has one request in progress.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        """Waiting requests of each project that began one in this iteration."""

    async def turn(self, project: str) -> None:
        """Return at once if no request of the project has begun in this iteration, else in a later one."""
        loop = asyncio.get_running_loop()
        if (waiting := self._waiting.get(project)) is None:
            self._waiting[project] = deque()
            loop.call_soon(self._begin_next, project)
            return
        following = loop.create_future()
        waiting.append(following)
        await following

    def _begin_next(self, project: str) -> None:
        waiting = self._waiting[project]
        while waiting:
            # Skip cancelled requests.
            if not (following := waiting.popleft()).done():
                following.set_result(None)
                asyncio.get_running_loop().call_soon(self._begin_next, project)
                return
        del self._waiting[project]
