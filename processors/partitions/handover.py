"""Partitions change hands without a second call for a line in flight.

A process that leaves a partition while calls of its lines are in flight holds the partition: it marks it, and
renews the mark until the log has the results of these calls. The next owner reads no record of a marked partition
before the mark is gone, or has not been renewed for a while because its process has ended. All other partitions go
on meanwhile.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from typing import Any, Final, Protocol, TypeVar

from tidemill.schemas.ports import Monotonic
from tidemill.wording import counted

T = TypeVar("T")

WAIT_SECONDS_MAX: Final = 600.0
"""The next owner waits no longer; calls that take longer are repeated."""
STALE_SECONDS: Final = 8.0
"""A mark that was not renewed for longer than a session is of a process that has ended."""
RENEW_SECONDS: Final = 2.0
ANSWER_SECONDS_MAX: Final = 3.0
"""How long to wait for the group's coordinator. Without its answer calls in flight may be repeated."""

_log = logging.getLogger(__name__)

Work = Callable[[], bool]
"""Whether the log still lacks the result of a call."""


class Marks(Protocol):
    """The marks that all processes see (`tidemill.faust.marks`)."""

    async def write(self, marks: Mapping[int, str]) -> None:
        """Set marks of partitions; an empty text removes one."""
        ...

    async def read(self, numbers: Iterable[int]) -> dict[int, str]:
        """The marks of those of these partitions that have one."""
        ...


class Handover:
    """The partitions that this process holds for others, and those that it waits for."""

    def __init__(self, marks: Marks, monotonic: Monotonic) -> None:
        """Start without partitions."""
        self._marks = marks
        self._monotonic = monotonic
        self._held: dict[int, list[Work]] = {}
        self._marked: set[int] = set()
        """The partitions that have a mark of this process."""
        self._renewals = 0
        self._renewed_at = float("-inf")
        self._seen: dict[int, tuple[str, float]] = {}
        """The latest mark of each partition that was waited for, and since when it has been the same."""
        self._waiting: dict[int, float] = {}
        """When the wait for each partition began."""

    @property
    def is_busy(self) -> bool:
        """Whether a partition is held, or waited for."""
        return bool(self._held or self._marked or self._waiting)

    async def hold(self, work: Mapping[int, list[Work]]) -> None:
        """Mark the partitions whose lines are in flight, before the group divides all anew."""
        self._held = dict(work)
        self._waiting.clear()
        await self._renew()

    async def take(self, numbers: Collection[int]) -> set[int]:
        """Begin after an assignment of these partitions; returns those that may be read at once."""
        for number in numbers:
            self._held.pop(number, None)
        await self._unmark()
        self._waiting = dict.fromkeys(numbers, self._monotonic())
        free = await self._freed()
        if self._waiting:
            _log.info("calls of others are in flight in %s", counted(len(self._waiting), "partition"))
        return free

    async def step(self) -> set[int]:
        """Renew and remove own marks; returns the partitions that need not be waited for any longer."""
        self._held = {
            number: left for number, work in self._held.items() if (left := [one for one in work if one()])
        }
        await self._unmark()
        if self._monotonic() >= self._renewed_at + RENEW_SECONDS:
            await self._renew()
        return await self._freed()

    async def _renew(self) -> None:
        self._renewals += 1
        self._renewed_at = self._monotonic()
        if self._held:
            self._marked |= self._held.keys()
            text = f"{secrets.token_hex(4)} {self._renewals}"
            await _answer(self._marks.write(dict.fromkeys(self._held, text)), None)

    async def _unmark(self) -> None:
        if not (gone := self._marked - self._held.keys()):
            return

        async def unmark() -> None:
            await self._marks.write(dict.fromkeys(gone, ""))
            self._marked -= gone

        await _answer(unmark(), None)

    async def _freed(self) -> set[int]:
        """The partitions whose wait is over."""
        if not self._waiting:
            return set()
        # Without an answer the wait goes on, within its bound.
        marks = await _answer(self._marks.read(self._waiting), dict.fromkeys(self._waiting, "unknown"))
        now = self._monotonic()
        free = set()
        for number, began_at in self._waiting.items():
            text = marks.get(number, "")
            seen = self._seen.get(number, ("", now))
            _, since = self._seen[number] = seen if seen[0] == text else (text, now)
            if not text or now >= min(since + STALE_SECONDS, began_at + WAIT_SECONDS_MAX):
                free.add(number)
                self._seen.pop(number)
        self._waiting = {number: at for number, at in self._waiting.items() if number not in free}
        return free


async def _answer(asking: Coroutine[Any, Any, T], otherwise: T) -> T:
    """What the coordinator answers in time, or `otherwise`."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            return await asking
    except Exception as error:  # noqa: BLE001  of a client library; the next step tries again
        _log.info("the coordinator of the group does not take or give marks: %s", error or type(error).__name__)
        return otherwise
