"""Records whose lines cannot be opened at the moment, since the key of their batch is not to be had.

They wait beside their lanes, and the others of their partition go on. What is kept of one is its place in the log,
from where it is read again once the key is there; so a lane has as many of them as it may have records. The batch
is told why it waits, again and again while it does. What a batch that is over has here is done.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final

from tidemill.processors.partitions.closed_batches import ClosedBatches
from tidemill.processors.partitions.seals import Opened
from tidemill.processors.partitions.window import Entry
from tidemill.schemas.log.codec import DecodeError, RequestHead
from tidemill.schemas.log.messages import Stalled
from tidemill.schemas.ports import Monotonic
from tidemill.schemas.resources.waiting import MESSAGE_CHARS_MAX, Reason, Waiting
from tidemill.sealing.wrapping import KeyUnavailable

TRY_SECONDS: Final = 5.0
"""Between two tries to get a key."""
TELL_SECONDS: Final = 30.0
"""Between two times that a batch is told why it waits."""
HOLD_SECONDS: Final = 3 * int(TELL_SECONDS)

ROOM_SECONDS: Final = 0.1
"""Between two looks whether a lane has room for lines that waited."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A record that waits, in its lane with one line and no bytes."""

    head: RequestHead
    entry: Entry
    message: Any
    """Without its value."""


@dataclass(slots=True)
class _Waiting:
    """What a batch has here."""

    why: str
    records: list[Held] = field(default_factory=list)
    since: int = field(default_factory=lambda: int(time.time()))
    told_at: float = float("-inf")


Reopen = Callable[[Sequence[Held]], AsyncGenerator[Opened | DecodeError, None]]
"""Reads records of one batch from the log again and opens them, in their order; raises `KeyUnavailable`."""
Admit = Callable[[Held, Opened | DecodeError], None]
"""Takes a record that waits no more."""
Tell = Callable[[Stalled], Awaitable[None]]
"""Tells a batch why it waits, or that it does not."""


class HeldRecords:
    """The waiting records of one model."""

    def __init__(
        self,
        *,
        reopened: Reopen,
        admit: Admit,
        tell: Tell,
        ended: ClosedBatches,
        monotonic: Monotonic = time.monotonic,
    ) -> None:
        """Hold nothing yet; `ended` has the batches that are over, and what lasts is measured by `monotonic`."""
        self._reopened = reopened
        self._admit = admit
        self._tell = tell
        self._ended = ended
        self._monotonic = monotonic
        self._waiting: dict[str, _Waiting] = {}
        self._source = f"keys-{secrets.token_hex(8)}"
        self._number = 0
        self._news = asyncio.Event()
        ended.listen(self._drop)

    def __len__(self) -> int:
        return sum(len(waiting.records) for waiting in self._waiting.values())

    def why(self, batch_id: str) -> str | None:
        """Why the records of a batch wait; None where they do not."""
        return None if (waiting := self._waiting.get(batch_id)) is None else waiting.why

    def put(self, held: Held, why: str) -> None:
        """Have a record wait."""
        self._waiting.setdefault(held.head.batch_id, _Waiting(why)).records.append(held)
        self._news.set()

    def clear(self) -> None:
        """The partitions are gone: what waits comes again to their next owner."""
        self._waiting.clear()

    async def run(self) -> None:
        """Try again for as long as anything waits; never returns."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._waiting:
                for batch_id, waiting in list(self._waiting.items()):
                    await self._try(batch_id, waiting)
                if self._waiting:
                    await asyncio.sleep(TRY_SECONDS)

    async def _try(self, batch_id: str, waiting: _Waiting) -> None:
        try:
            while self._waiting.get(batch_id) is waiting and waiting.records:
                await self._open(batch_id, waiting)
        except KeyUnavailable as error:
            waiting.why = str(error)
            if self._monotonic() >= waiting.told_at + TELL_SECONDS:
                waiting.told_at = self._monotonic()
                _log.error("%d records of %s wait: %s", len(waiting.records), batch_id, error)
                await self._tell(self._stalled(batch_id, waiting))
        except Exception as error:  # noqa: BLE001  whatever it was, they wait on
            _log.warning("records of %s cannot be read again (%s)", batch_id, type(error).__name__)
        else:
            if self._waiting.get(batch_id) is waiting:
                del self._waiting[batch_id]
                await self._tell(self._stalled(batch_id, None))

    async def _open(self, batch_id: str, waiting: _Waiting) -> None:
        records = list(waiting.records)
        async with aclosing(self._reopened(records)) as reopened:
            for held in records:
                while held.entry.lane.is_laden:  # noqa: ASYNC110  nothing tells when it is not
                    await asyncio.sleep(ROOM_SECONDS)
                opened = await anext(reopened)
                if self._waiting.get(batch_id) is not waiting:
                    return
                waiting.records.remove(held)
                self._admit(held, opened)

    def _stalled(self, batch_id: str, waiting: _Waiting | None) -> Stalled:
        self._number += 1
        found: tuple[Waiting, ...] = ()
        if waiting is not None:
            lines = sum(held.head.seal.lines for held in waiting.records if held.head.seal is not None)
            words = f"The key of the batch cannot be had: {waiting.why}."[:MESSAGE_CHARS_MAX]
            found = (Waiting(reason=Reason.KEY, lines=lines, message=words, since=waiting.since),)
        return Stalled(
            batch_id=batch_id, source=self._source, number=self._number, waiting=found, hold_seconds=HOLD_SECONDS
        )

    def _drop(self, batch_id: str) -> None:
        if (waiting := self._waiting.pop(batch_id, None)) is not None:
            for held in waiting.records:
                held.entry.lane.done(held.entry)
