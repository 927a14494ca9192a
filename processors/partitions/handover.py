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
"""No process holds a partition longer, and no owner waits longer; calls that take longer are repeated."""
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
        self._turn = asyncio.Lock()
        """A rebalance and a stop may come at the same time."""
        self._token = f"{secrets.token_hex(4)} "
        """Begins the marks of this process."""
        self._held: dict[int, list[Work]] = {}
        self._lost: dict[int, float] = {}
        """Since when other processes own the partitions whose lines are in flight here."""
        self._unwanted: dict[int, str] = {}
        """Where to remove the marks of this process, and the mark with this text, of a process that has ended."""
        self._renewals = 0
        self._renewed_at = float("-inf")
        self._seen: dict[int, tuple[str, float]] = {}
        """The latest mark of each partition that was waited for, and since when it has been the same."""
        self._waiting: dict[int, float] = {}
        """When the wait for each partition began; a rebalance that gives it back does not begin it anew."""
        self._is_silent = False
        """Whether the coordinator gave no answer to the last question."""

    @property
    def is_busy(self) -> bool:
        """Whether a partition is held, or waited for."""
        return bool(self._held or self._unwanted or self._waiting)

    @property
    def waits_since(self) -> float | None:
        """When the longest wait for a partition began; None if there is none."""
        return min(self._waiting.values(), default=None)

    async def hold(self, work: Mapping[int, list[Work]]) -> None:
        """Mark the partitions whose lines are in flight, before the group divides all anew."""
        async with self._turn:
            await self._let_go()
            self._lost = {number: at for number, at in self._lost.items() if number in work}
            # The calls for which it waits came after its own, which another process has repeated.
            others = self._waiting.keys() & self._seen.keys()
            self._held = {number: calls for number, calls in work.items() if number not in others}
            self._give_up()
            await self._renew()

    async def take(self, numbers: Collection[int]) -> set[int]:
        """Begin after an assignment of these partitions; returns those that may be read at once."""
        async with self._turn:
            now = self._monotonic()
            for number in numbers:
                self._held.pop(number, None)
                self._lost.pop(number, None)
            self._lost = dict.fromkeys(self._held, now) | self._lost
            await self._unmark()
            self._waiting = {number: self._waiting.get(number, now) for number in numbers}
            free = await self._freed()
        if self._waiting:
            _log.info("calls of others are in flight in %s", counted(len(self._waiting), "partition"))
        return free

    async def step(self) -> set[int]:
        """Renew and remove own marks; returns the partitions that need not be waited for any longer."""
        async with self._turn:
            self._held = {
                number: left for number, work in self._held.items() if (left := [one for one in work if one()])
            }
            self._give_up()
            await self._unmark()
            if self._monotonic() >= self._renewed_at + RENEW_SECONDS:
                await self._let_go()
                await self._renew()
            return await self._freed()

    async def release(self) -> None:
        """Hold nothing, and wait for nothing: the process ends, and calls that are still in flight with it."""
        async with self._turn:
            self._held, self._waiting = {}, {}
            await self._unmark()

    def _give_up(self) -> None:
        """Hold no partition that was lost long ago: its owner waits no longer, and may have marks of its own."""
        oldest = self._monotonic() - WAIT_SECONDS_MAX
        self._held = {
            number: work for number, work in self._held.items() if self._lost.get(number, oldest + 1) > oldest
        }

    async def _let_go(self) -> None:
        """Hold no partition whose mark has gone: others took this process for dead, and may mark it themselves."""
        if self._held and (marks := await self._answer(self._marks.read(self._held))) is not None:
            gone = (number for number in self._held if not self._is_own(marks.get(number, "")))
            self._lost |= dict.fromkeys(gone, float("-inf"))
            self._give_up()

    async def _renew(self) -> None:
        self._renewals += 1
        self._renewed_at = self._monotonic()
        if self._held:
            self._unwanted |= dict.fromkeys(self._held, "")
            text = f"{self._token}{self._renewals}"
            await self._answer(self._marks.write(dict.fromkeys(self._held, text)))

    async def _unmark(self) -> None:
        """Remove marks, but none that another process has written since."""
        if not (gone := {number: text for number, text in self._unwanted.items() if number not in self._held}):
            return

        async def unmark() -> None:
            found = await self._marks.read(gone)
            if mine := [number for number, text in found.items() if self._is_own(text) or text == gone[number]]:
                await self._marks.write(dict.fromkeys(mine, ""))
            for number in gone:
                del self._unwanted[number]

        await self._answer(unmark())

    def _is_own(self, text: str) -> bool:
        return text.startswith(self._token)

    async def _freed(self) -> set[int]:
        """The partitions whose wait is over."""
        if not self._waiting:
            return set()
        marks = await self._answer(self._marks.read(self._waiting))
        now = self._monotonic()
        free = set()
        for number, began_at in self._waiting.items():
            if marks is None:
                # Others could not renew their marks either.
                self._seen.pop(number, None)
                is_free = False
            elif not (text := marks.get(number, "")) or self._is_own(text):
                is_free = True
            else:
                seen = self._seen.get(number, ("", now))
                _, since = self._seen[number] = seen if seen[0] == text else (text, now)
                if is_free := now >= since + STALE_SECONDS:
                    self._unwanted[number] = text
            if is_free or now >= began_at + WAIT_SECONDS_MAX:
                free.add(number)
                self._seen.pop(number, None)
        self._waiting = {number: at for number, at in self._waiting.items() if number not in free}
        return free

    async def _answer(self, asking: Coroutine[Any, Any, T]) -> T | None:
        """What the coordinator answers in time; otherwise None, and the next step asks again."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                found = await asking
        except Exception as error:  # noqa: BLE001  of a client library
            if not self._is_silent:
                why = error or type(error).__name__
                _log.info("the coordinator of the group does not take or give marks: %s", why)
            self._is_silent = True
            return None
        if self._is_silent:
            _log.info("the coordinator of the group takes and gives marks again")
        self._is_silent = False
        return found
