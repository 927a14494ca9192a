"""Creates an event for each batch that ends, and sends it to the endpoints of its project.

The owner of the first partition of `tidemill.events` reads `tidemill.batches` from its cursor. The cursor moves
once the log has the events, so a crash repeats some of them; their ids are the same, and the owner of the endpoint
ignores copies.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import Final

import msgspec

from tidemill.configuration.security import Kafka
from tidemill.kafka.connection import TRANSIENT
from tidemill.kafka.history import Reader, reading
from tidemill.retrying import pause_seconds, reason
from tidemill.schemas import decoded, ids
from tidemill.schemas.bounds import CLOCK_SKEW_SECONDS
from tidemill.schemas.log import codec, topics
from tidemill.schemas.ports import Clock, Edge, Sender
from tidemill.schemas.resources.batch import TERMINAL, Status
from tidemill.schemas.webhooks import messages
from tidemill.schemas.webhooks.messages import CURSOR, Cursor, Due
from tidemill.schemas.webhooks.table import Endpoints
from tidemill.webhooks.schedule import LIFE_SECONDS

POLL_SECONDS: Final = 0.5
"""How often the router looks for new records."""
ROUND_RECORDS_MAX: Final = 500
"""Records until the cursor is stored."""
SENDS_AT_ONCE_MAX: Final = 100

_log = logging.getLogger(__name__)


class _Extras(msgspec.Struct, frozen=True):
    callback_url: str | None = None
    traceparent: str | None = None


class _Batch(msgspec.Struct, frozen=True):
    id: str
    status: Status
    tidemill: _Extras = _Extras()
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelled_at: int | None = None

    @property
    def ended_at(self) -> int:
        """When it ended, Unix seconds."""
        return getattr(self, f"{self.status}_at") or 0


class _Record(msgspec.Struct, frozen=True):
    project: str
    batch: _Batch


_records = msgspec.json.Decoder(_Record)


class Router:
    """Reads the states of batches from an offset on."""

    def __init__(
        self,
        kafka: Kafka,
        sender: Sender,
        endpoints: Endpoints,
        *,
        catch_up: Callable[[], Awaitable[None]],
        clock: Clock,
        cursor: int,
    ) -> None:
        """Read nothing before `run`; `catch_up` waits until `endpoints` has every record that the log has."""
        self._kafka = kafka
        self._sender = sender
        self._endpoints = endpoints
        self._catch_up = catch_up
        self._clock = clock
        self._next = cursor
        self._stored = cursor

    async def run(self) -> None:
        """Read until the task is cancelled."""
        failures = 0
        while True:
            try:
                async with reading(self._kafka) as reader:
                    while True:
                        await self._round(reader)
                        failures = 0
                        await asyncio.sleep(POLL_SECONDS)
            except TRANSIENT as error:
                pause = pause_seconds(failures)
                failures += 1
                _log.warning("batches cannot be read (%s); next attempt in %.1f s", reason(error), pause)
                await asyncio.sleep(pause)

    async def _round(self, reader: Reader) -> None:
        """Read up to the current end."""
        _, end = (await reader.ends(topics.BATCHES.name, [0]))[0]
        if self._next > end:
            _log.warning("%s was created anew; reading it from the beginning", topics.BATCHES.name)
            self._next = 0
        while self._next < end:
            stop = min(end, self._next + ROUND_RECORDS_MAX)
            edges = {0: Edge(offset=self._next)}
            async with aclosing(reader.records(topics.BATCHES.name, edges, end=Edge(offset=stop))) as records:
                ended = [found async for record in records if (found := self._ended(record.value)) is not None]
            await self._send(ended)
            self._next = stop
            if ended or stop - self._stored >= ROUND_RECORDS_MAX:
                await self._store()

    def _ended(self, value: bytes | None) -> _Record | None:
        """The batch of a record, if it has ended and its event is still to be sent."""
        # The other readers of the topic report an unreadable record.
        if value is None or (record := decoded(_records, value)) is None:
            return None
        is_over = record.batch.status in TERMINAL
        return record if is_over and record.batch.ended_at > self._clock() - LIFE_SECONDS else None

    async def _send(self, ended: list[_Record]) -> None:
        """Send the events of batches that have ended."""
        if not ended:
            return
        # Catch up, so that an endpoint whose creation was answered before the batch ended is known.
        await self._catch_up()
        dues = [due for record in ended for due in self._dues(record)]
        for first in range(0, len(dues), SENDS_AT_ONCE_MAX):
            await asyncio.gather(*map(self._send_one, dues[first : first + SENDS_AT_ONCE_MAX]))

    def _dues(self, record: _Record) -> Iterator[Due]:
        event = messages.event_of(record.batch.id, record.batch.status, record.batch.ended_at)
        trace = record.batch.tidemill.traceparent
        # The api and results may have different clocks: better an event from before the creation than a lost one.
        created_max = event.created_at + CLOCK_SKEW_SECONDS
        for found in self._endpoints.of(record.project):
            if event.type in found.endpoint.event_types and found.endpoint.created_at <= created_max:
                yield Due(project=record.project, endpoint_id=found.endpoint.id, event=event, traceparent=trace)
        callbacks, url = ids.callback_endpoint_id(record.project), record.batch.tidemill.callback_url
        if url is not None and self._endpoints.get(callbacks) is not None:
            yield Due(project=record.project, endpoint_id=callbacks, event=event, url=url, traceparent=trace)

    async def _send_one(self, due: Due) -> None:
        await self._sender.send(topics.EVENTS.name, due.endpoint_id, codec.encode(due))

    async def _store(self) -> None:
        value = codec.encode(Cursor(offset=self._next))
        await self._sender.send(topics.DELIVERIES.name, CURSOR, value)
        self._stored = self._next
