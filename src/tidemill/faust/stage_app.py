"""The Faust app of a stage, with corrections for Faust 0.15.3 and aiokafka 0.14.

- A stage iterates over `stream.noack().events()` and acknowledges in order (`kafka/partitions/ack_gate.py`).
- A stage awaits its table's changelog records before it acknowledges (`faust/tables.py`).
- A rebalance loses no records (`faust/patches.py`).
- On a rebalance the stage's own `drain` runs before Faust's teardown, whose wait for events has no bound.
"""

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import faust

from tidemill.configuration.security import IDLE_MS, Cluster, Kafka, Security, cluster
from tidemill.configuration.settings import Settings
from tidemill.faust.loop_consumer import LoopConsumer
from tidemill.faust.patches import (
    Flow,
    Positions,
    check_no_partitions,
    commit_in_order,
    fetch_briefly,
    go_back,
    remember_assignment,
    resume_at_once,
)
from tidemill.faust.retention import Oldest
from tidemill.faust.tables import DeliveredTable, PromptTableManager
from tidemill.kafka.admin import Retention
from tidemill.kafka.connection import TRANSIENT
from tidemill.kafka.freeze_guard import SESSION_SECONDS, Membership, track_membership
from tidemill.runtime.clocks import session_clock
from tidemill.schemas.bounds import RECORD_BYTES_MAX
from tidemill.storage.locked_directory import lock_first_free

COMMIT_SECONDS = 1.0
LAST_COMMIT_SECONDS_MAX = 4.0
"""Time for the commit before partitions are revoked."""
BUFFER_EVENTS_MAX = 64
"""Records that Faust holds for an agent beyond the one in hand; each has up to 64 KiB of lines."""
FETCH_BYTES_MAX = 256 * 1024
"""Compressed bytes that one fetch reads of a partition."""
METADATA_MS_MAX = 20_000
"""Age of the view of the topics. Partitions that it lacked at an assignment are shared out after this time."""

log = logging.getLogger("tidemill.stage")

Drain = Callable[[set[Any]], Awaitable[None]]


class StageApp(faust.App):  # type: ignore[misc]  # Faust is untyped here
    """A Faust app whose stage can finish its work before a rebalance revokes its partitions."""

    cluster: Cluster
    """The broker."""
    retention: Retention = Retention()
    """The retention of the records that batches need; infinite until the broker has answered."""
    positions: Positions
    """The positions of the consumer; missing until there is one."""
    oldest: Oldest | None = None
    """When the stage's oldest unfinished record was written."""
    behind: Oldest | None = None
    """The same without records that wait for others than the stage; by default `oldest`."""
    stop_seconds: float = 7.0
    """How long `drain` may take when the process stops."""
    drain: Drain | None = None
    """Called with partitions before their revocation; it must end within a bound of its own."""
    finish: Drain | None = None
    """Called instead of `drain` before the process stops."""

    def __init__(self, *args: Any, kafka: Kafka, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.membership = Membership(session_clock(kafka))
        self.on_partitions_assigned.connect(self._joined, weak=False)

    def oldest_of(self, unfinished: Oldest) -> float | None:
        """When the oldest of the unfinished records, and of the fetched ones after skipped ones, was written."""
        positions: Positions | None = getattr(self, "positions", None)
        untaken = None if positions is None else positions.oldest()
        return min((at for at in (unfinished(), untaken) if at is not None), default=None)

    async def _joined(self, *_: Any, **__: Any) -> None:
        track_membership(self.consumer._thread._consumer._coordinator, self.membership)  # noqa: SLF001  not public
        fetch_briefly(self.consumer)

    @functools.cached_property
    def flow_control(self) -> Flow:
        """See `patches.Flow`."""
        return Flow(lambda: self.tables.__dict__.get("_changelog_queue"))

    def _new_consumer(self) -> Any:
        self.transport.Consumer = LoopConsumer
        consumer = super()._new_consumer()
        self.positions = go_back(consumer, TRANSIENT)
        commit_in_order(consumer)
        resume_at_once(consumer)
        remember_assignment(consumer)
        check_no_partitions(consumer)
        return consumer

    async def _on_partitions_revoked(self, revoked: set[Any]) -> None:
        if self.drain is not None and revoked and not self.should_stop:
            await self.drain(revoked)
            # Writes wait until the membership is cleared, so this needs a bound; Faust ignores a cancellation.
            committing = asyncio.ensure_future(self._commit_all())
            done, _ = await asyncio.wait([committing], timeout=LAST_COMMIT_SECONDS_MAX)
            if not done or committing.exception() is not None:
                log.warning("offsets were not committed before a rebalance")
        # Faust flushes its producer before it rejoins the group, so the flush must not wait for the membership.
        self.membership.clear()
        await super()._on_partitions_revoked(revoked)

    async def _on_partitions_assigned(self, assigned: set[Any], generation_id: int = 0) -> None:
        # Faust stops no flow at the revocation of a process without partitions.
        self.positions.clear()
        await super()._on_partitions_assigned(assigned, generation_id)

    async def _commit_all(self) -> None:
        """Commit also what was acknowledged since the commit that is under way: Faust leaves it to that one."""
        await self.consumer.maybe_wait_for_commit_to_finish()
        await self.consumer.commit()


def create_app(
    name: str,
    settings: Settings,
    *,
    kafka: Kafka,
    state: Path,
    tables: bool = False,
    buffer: int = BUFFER_EVENTS_MAX,
) -> StageApp:
    """Create the app of a stage.

    Args:
        name: Its id and its consumer group.
        settings: Partitions and replicas of the changelogs.
        kafka: Address and credentials.
        state: Folder of the app's tables; other processes of the stage on this machine use folders beside it.
        tables: Whether it has tables, in RocksDB.
        buffer: Records that Faust holds for an agent.
    """
    state, _ = lock_first_free(state)
    app = StageApp(
        name,
        kafka=kafka,
        broker=[f"aiokafka://{server}" for server in cluster(kafka).servers.split(",")],
        broker_credentials=_credentials(cluster(kafka).security),
        store="rocksdb://" if tables else "memory://",
        # Faust formats the path.
        datadir=str(state).replace("{", "{{").replace("}", "}}"),
        Table=DeliveredTable,
        TableManager=PromptTableManager,
        processing_guarantee="at_least_once",
        key_serializer="raw",
        value_serializer="raw",
        topic_partitions=settings.partitions,
        topic_replication_factor=settings.replication,
        # The stage has created the topics already, or lacks the right to create any.
        topic_allow_declare=False,
        topic_disable_leader=True,
        table_standby_replicas=0,
        stream_buffer_maxsize=buffer,
        stream_wait_empty=False,
        stream_recovery_delay=0.0,
        consumer_auto_offset_reset="earliest",
        consumer_max_fetch_size=FETCH_BYTES_MAX,
        consumer_metadata_max_age_ms=METADATA_MS_MAX,
        consumer_connections_max_idle_ms=IDLE_MS,
        producer_metadata_max_age_ms=IDLE_MS,
        producer_connections_max_idle_ms=IDLE_MS,
        broker_max_poll_records=buffer,
        broker_commit_interval=COMMIT_SECONDS,
        broker_session_timeout=SESSION_SECONDS,
        broker_heartbeat_interval=SESSION_SECONDS / 3,
        broker_rebalance_timeout=60.0,
        # Otherwise a consumer whose partitions are all paused would leave the group.
        broker_max_poll_interval=7 * 86_400.0,
        producer_acks=-1,
        producer_max_request_size=RECORD_BYTES_MAX,
        web_enabled=False,
        web_tables_enabled=False,
        worker_redirect_stdouts=False,
    )
    app.cluster = cluster(kafka)
    app.conf.broker_check_crcs = False
    return app


def _credentials(security: Security) -> Any:
    """`security.client_options` in Faust's classes; None if the broker asks for no credentials."""
    if security.has_password:
        return faust.SASLCredentials(
            mechanism=security.sasl_mechanism,
            username=security.username,
            password=security.password,
            ssl_context=security.tls(),
        )
    return faust.SSLCredentials(security.tls()) if security.is_encrypted else None


def raw_topic(app: StageApp, *names: str) -> Any:
    """Topics of bytes, which `kafka/admin.py` has created."""
    return app.topic(
        *names, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw", internal=False
    )


def oldest(events: Iterable[Any]) -> float | None:
    """When the oldest of these events' records was written, Unix seconds; an event may be None."""
    return min((event.message.timestamp for event in events if event is not None), default=None)
