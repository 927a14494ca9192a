"""The partitions of a Faust app: which ones the process holds, and how its stage reads and acknowledges them."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from tidemill.faust.stage_app import StageApp, raw_topic
from tidemill.kafka.freeze_guard import guard_requests
from tidemill.kafka.partitions.owner import PartitionOwners, Record
from tidemill.kafka.producer import rest_between_requests

LOG_APPEND_TIME: Final = 1
"""Kafka's `timestamp_type` of a record that the broker stamped."""


class GenerationGuard:
    """Recognises records of revoked partitions, which Faust may still deliver."""

    def __init__(self, app: StageApp) -> None:
        self._app = app
        self._left: dict[Any, int] = {}

    def leave(self, revoked: set[Any]) -> None:
        """Leave partitions until their next assignment."""
        for tp in revoked:
            self._left[tp] = self._app.consumer_generation_id

    def holds(self, message: Any) -> bool:
        """Whether the process has held the record's partition since before it fetched the record."""
        generation: int = message.generation_id
        return generation == self._app.consumer_generation_id and self._left.get(message.tp) != generation


class PartitionHandle:
    """Acknowledges records of one partition, and pauses its fetching.

    `Consumer.pause_partitions` would lose records: Faust 0.15.3 drops the fetched records of a paused partition,
    and then counts the gap as acknowledged. The calls that Faust makes for a full buffer keep them: fetched
    records are still delivered, and the consumer fetches no others.
    """

    def __init__(self, app: StageApp, tp: Any) -> None:
        self._app = app
        self._tp = tp

    def ack(self, token: Any) -> None:
        """Acknowledge a record, unless the partition has had another owner since its fetch."""
        if token.message.generation_id == self._app.consumer_generation_id:
            token.ack()

    def pause(self) -> None:
        """Stop fetching; fetched records are still delivered."""
        self._app.consumer.on_buffer_full(self._tp)

    def resume(self) -> None:
        """Fetch again."""
        self._app.consumer.on_buffer_drop(self._tp)


class OwnedPartitions:
    """Feeds partition owners (`kafka/partitions/owner.py`) from topics, and follows the group's assignments."""

    def __init__(
        self,
        app: StageApp,
        owners: PartitionOwners[Any],
        *topics: str,
        before_request: Callable[[], Awaitable[None]] | None = None,
        rest: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        """Attach to the app, which has not started yet.

        All topics have the same number of partitions; the assignment of the last one starts an owner.
        `before_request` is awaited before each write to a changelog, and by default waits for a valid membership;
        `rest` after it (`kafka/producer.py::rest_between_requests`).
        """
        self._app = app
        self._owners = owners
        self._last_topic = topics[-1]
        self._before_request = before_request or app.membership.wait_valid
        self._rest = rest
        self._guard = GenerationGuard(app)
        self._agent = app.agent(raw_topic(app, *topics), isolated_partitions=True)(self._consume)
        app.drain = self._leave
        app.oldest = owners.oldest
        app.on_partitions_assigned.connect(self._assigned, weak=False)

    async def _consume(self, events: Any) -> None:
        async for event in events.noack().events():
            message = event.message
            if self._guard.holds(message):
                record = Record(
                    topic=message.topic,
                    partition=message.partition,
                    offset=message.offset,
                    key=message.key,
                    value=message.value,
                    headers=tuple(message.headers or ()),
                    timestamp=message.timestamp,
                    is_logged_at=message.timestamp_type == LOG_APPEND_TIME,
                )
                # Faust's reference cycles keep the event until a collection; free the value now.
                event.value = message.value = None
                await self._owners.put(record, event.ack)

    async def _assigned(self, _: Any, assigned: Iterable[Any], **__: Any) -> None:
        # A frozen process would otherwise append its queued changelog records after those of its successor.
        client = self._app.producer._producer  # noqa: SLF001  not public
        guard_requests(client.client, self._before_request)
        if self._rest is not None:
            rest_between_requests(client, self._rest)
        self._owners.assign(tp.partition for tp in assigned if tp.topic == self._last_topic)

    async def _leave(self, revoked: set[Any]) -> None:
        """Leave partitions: records in hand are finished, and the next owner reads the rest again."""
        self._guard.leave(revoked)
        await self._owners.leave({tp.partition for tp in revoked})
