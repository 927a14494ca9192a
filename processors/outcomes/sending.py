"""Sends results to the log, and reports the lines whose results have arrived (docs/reference/protocol.md, 8)."""

import asyncio
import hashlib
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Final

from tidemill.processors.backends.pool import BackendPool
from tidemill.processors.lines import Line
from tidemill.processors.memory_budget import ReplyBytes
from tidemill.processors.outcomes.batching import LINE_BYTES_MAX, ResultBatch, ResultBatcher
from tidemill.processors.partitions.closed_batches import ClosedBatches
from tidemill.retrying import pause_seconds, reason
from tidemill.schemas.log.codec import LineMark, LineRef, lines_headers
from tidemill.schemas.log.part import LARGE_PREFIX
from tidemill.schemas.ports import READ_BYTES, Outbox, Store

UNDELIVERED_BYTES_MAX: Final = 64 << 20
"""Bytes of results that the log does not have yet; above this no call starts."""

_log = logging.getLogger(__name__)


class ResultSender:
    """Sends results through the outbox."""

    def __init__(
        self,
        pool: BackendPool,
        outbox: Outbox,
        store: Store,
        batcher: ResultBatcher[Line],
        on_arrival: Callable[[list[Line]], None],
        *,
        closed: ClosedBatches,
    ) -> None:
        """Send nothing yet; needs a running event loop.

        The lines name the model of `pool`, which counts them. Results that are too large for a record go to the
        store, until their batch is closed; `on_arrival` gets the lines whose results are in the log.
        """
        self._model = pool.model
        self._counts = pool.line_counts
        self._outbox = outbox
        self._store = store
        self._batcher = batcher
        self._on_arrival = on_arrival
        self._closed = closed
        self._bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: set[str] = set()
        self._store_fault = ""
        """Why the store refused the last large result, so that each outage is logged once."""
        self._loop = asyncio.get_running_loop()

    @property
    def is_full(self) -> bool:
        """Whether unsent results have reached their bound, so that no call should start."""
        return self._bytes >= UNDELIVERED_BYTES_MAX

    def send(
        self, line: Line, text: bytes, mark: LineMark, *, more: bool, share: ReplyBytes | None = None
    ) -> None:
        """Send the result of a line, with its mark.

        `more` says that other lines of the batch are pending in this process. The share of the memory budget is
        closed once the result is sent, or at once if it is small.
        """
        batch_id = line.head.batch_id
        self._bytes += len(text)
        if len(text) > LINE_BYTES_MAX:
            self._start(self._send_large(ResultBatch(batch_id, [text], [mark], [line], len(text)), share))
            return
        if share is not None:
            share.close()
        for results in self._batcher.add(batch_id, text, mark, line, self._loop.time(), more=more):
            self._start(self._send_record(results))
        self._await_due(batch_id)

    async def close(self) -> None:
        """Cancel all sends."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send_record(self, results: ResultBatch[Line]) -> None:
        await self._append(results, b"".join(results.lines))
        for following in self._batcher.arrived(results.batch_id, self._loop.time()):
            self._start(self._send_record(following))
        self._await_due(results.batch_id)

    async def _send_large(self, results: ResultBatch[Line], share: ReplyBytes | None) -> None:
        """Store a result that is too large for a record; its record refers to it."""
        try:
            is_stored = await self._store_large(results)
        finally:
            if share is not None:
                share.close()
        if is_stored:
            await self._append(results, b"")
        else:
            self._finish(results)

    async def _store_large(self, results: ResultBatch[Line]) -> bool:
        """Retry until it is stored; returns False if its batch is closed meanwhile."""
        text = results.lines.pop()
        digest = (await asyncio.to_thread(hashlib.blake2b, text, digest_size=8)).hexdigest()
        # With the digest in its key, a second result of the line does not overwrite the one that a record refers
        # to.
        key = f"{LARGE_PREFIX}{results.batch_id}/{results.receipts[0].index}-{digest}"
        for failures in itertools.count():
            try:
                await self._store.write(key, _chunks(text))
            except OSError as error:
                if (why := reason(error)) != self._store_fault:
                    _log.warning("large results cannot be stored, like one of %s: %s", results.batch_id, why)
                self._store_fault = why
            else:
                self._store_fault = ""
                break
            await asyncio.sleep(pause_seconds(failures))
            # The results of a cancelled batch count for a grace.
            if results.batch_id in self._closed and not self._closed.grace(results.batch_id):
                return False
        results.ref = LineRef(key, 0, len(text))
        return True

    async def _append(self, results: ResultBatch[Line], value: bytes) -> None:
        headers = lines_headers(results.batch_id, results.marks, model=self._model, ref=results.ref)
        await self._outbox.send(results.batch_id, value, headers)
        self._counts.add(results.marks)
        self._finish(results)

    def _finish(self, results: ResultBatch[Line]) -> None:
        self._bytes -= results.size
        self._on_arrival(results.receipts)

    def _await_due(self, batch_id: str) -> None:
        if batch_id not in self._timers and (at := self._batcher.due_at(batch_id)) is not None:
            self._timers.add(batch_id)
            self._loop.call_at(at, self._due, batch_id)

    def _due(self, batch_id: str) -> None:
        self._timers.discard(batch_id)
        for results in self._batcher.due(batch_id, self._loop.time()):
            self._start(self._send_record(results))
        self._await_due(batch_id)


async def _chunks(text: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(text), READ_BYTES):
        yield text[start : start + READ_BYTES]
