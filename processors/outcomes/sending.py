"""Sends results to the log in batches and reports them once delivered (docs/reference/protocol.md, step 8)."""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Final

from tidemill import metrics
from tidemill.processors.lines import Line
from tidemill.processors.memory_budget import Share
from tidemill.processors.outcomes.batching import LINE_BYTES_MAX, ResultBatch, ResultBatcher
from tidemill.schemas.log.codec import LineMark, LineRef, lines_headers
from tidemill.schemas.log.part import LARGE_PREFIX
from tidemill.schemas.ports import READ_BYTES, Outbox, Store

UNDELIVERED_BYTES_MAX: Final = 64 << 20
"""Results that the log does not have yet; beyond it no call is started."""
STORE_WAIT_SECONDS: Final = 1.0
"""Between two tries to store a large result."""

_log = logging.getLogger(__name__)


class ResultSender:
    """Takes results to the outbox."""

    def __init__(
        self, outbox: Outbox, store: Store, packer: ResultBatcher[Line], arrived: Callable[[list[Line]], None]
    ) -> None:
        """Take the doors; needs a running event loop.

        Args:
            outbox: Where results go.
            store: Where a result goes that is too large for a record.
            packer: How results gather.
            arrived: Called with the lines whose results the log has.
        """
        self._outbox = outbox
        self._store = store
        self._packer = packer
        self._arrived = arrived
        self._bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: set[str] = set()
        self._loop = asyncio.get_running_loop()

    @property
    def is_full(self) -> bool:
        """Whether so much is on its way that nothing should be added."""
        return self._bytes >= UNDELIVERED_BYTES_MAX

    def ship(self, line: Line, text: bytes, mark: LineMark, *, more: bool, share: Share | None = None) -> None:
        """Take a result on its way.

        Args:
            line: Whose it is.
            text: Its line.
            mark: What the fold is told of it.
            more: Whether other lines of its batch are at work here.
            share: Of the budget of replies; closed once the result is no more, or is small.
        """
        batch_id = line.head.batch_id
        self._bytes += len(text)
        if len(text) > LINE_BYTES_MAX:
            self._start(self._ship_large(ResultBatch(batch_id, [text], [mark], [line], len(text)), share))
            return
        if share is not None:
            share.close()
        for parcel in self._packer.add(batch_id, text, mark, line, self._loop.time(), more=more):
            self._start(self._ship(parcel))
        self._await_due(batch_id)

    async def close(self) -> None:
        """Give up what is on its way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ship(self, parcel: ResultBatch[Line]) -> None:
        await self._send(parcel, b"".join(parcel.lines))
        for following in self._packer.arrived(parcel.batch_id, self._loop.time()):
            self._start(self._ship(following))
        self._await_due(parcel.batch_id)

    async def _ship_large(self, parcel: ResultBatch[Line], share: Share | None) -> None:
        """A result above the record's limit is stored first; its record says where it lies."""
        try:
            await self._store_large(parcel)
        finally:
            if share is not None:
                share.close()
        await self._send(parcel, b"")

    async def _store_large(self, parcel: ResultBatch[Line]) -> None:
        text = parcel.lines.pop()
        digest = (await asyncio.to_thread(hashlib.blake2b, text, digest_size=8)).hexdigest()
        # With the digest, a second result of the same line does not overwrite what a record refers to.
        key = f"{LARGE_PREFIX}{parcel.batch_id}/{parcel.receipts[0].index}-{digest}"
        while True:
            try:
                await self._store.write(key, _chunks(text))
                break
            except OSError as error:
                _log.warning("a result of %s cannot be stored: %s", parcel.batch_id, type(error).__name__)
                await asyncio.sleep(STORE_WAIT_SECONDS)
        parcel.ref = LineRef(key, 0, len(text))

    async def _send(self, parcel: ResultBatch[Line], value: bytes) -> None:
        await self._outbox.send(
            parcel.batch_id, value, lines_headers(parcel.batch_id, parcel.marks, ref=parcel.ref)
        )
        metrics.settled(parcel.marks)
        self._bytes -= parcel.size
        self._arrived(parcel.receipts)

    def _await_due(self, batch_id: str) -> None:
        if batch_id not in self._timers and (at := self._packer.due_at(batch_id)) is not None:
            self._timers.add(batch_id)
            self._loop.call_at(at, self._due, batch_id)

    def _due(self, batch_id: str) -> None:
        self._timers.discard(batch_id)
        for parcel in self._packer.due(batch_id, self._loop.time()):
            self._start(self._ship(parcel))
        self._await_due(batch_id)


async def _chunks(text: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(text), READ_BYTES):
        yield text[start : start + READ_BYTES]
