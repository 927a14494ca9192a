"""Connects the owners of partitions (`kafka/partitions/owner.py`) to an app of Faust."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from tidemill.faust import stage_app
from tidemill.kafka.freeze_guard import guard_requests
from tidemill.kafka.partitions.owner import PartitionOwners, Record

LOG_APPEND_TIME: Final = 1
"""Kafka's `timestamp_type` of a record whose time is the broker's."""


class OwnedPartitions:
    """Feeds owners from topics, and follows the assignments of the app's group."""

    def __init__(
        self,
        app: stage_app.StageApp,
        owners: PartitionOwners,
        *topics: str,
        before_request: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Take over the app's agent and its hooks.

        Args:
            app: The app, not started yet.
            owners: Of its partitions.
            topics: Topics with the same number of partitions; the app takes over a partition with the last one.
            before_request: Awaited before each write to a changelog; by default waits for a valid membership.
        """
        self._app = app
        self._owners = owners
        self._last_topic = topics[-1]
        self._before_request = before_request or app.membership.wait_valid
        self._guard = stage_app.GenerationGuard(app)
        self._agent = app.agent(stage_app.raw_topic(app, *topics), isolated_partitions=True)(self._consume)
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
                # Faust's rings around an event last until a collection; the value need not.
                event.value = message.value = None
                await self._owners.put(record, event.ack)

    async def _assigned(self, _: Any, assigned: Iterable[Any], **__: Any) -> None:
        # A frozen process would otherwise append its queued changelog records after those of its successor.
        guard_requests(self._app.producer._producer.client, self._before_request)  # noqa: SLF001  not public
        self._owners.assigned(tp.partition for tp in assigned if tp.topic == self._last_topic)

    async def _leave(self, revoked: set[Any]) -> None:
        """Let go of partitions: no record of theirs is under way afterwards, and what waits comes again."""
        self._guard.leave(revoked)
        await self._owners.leave({tp.partition for tp in revoked})
