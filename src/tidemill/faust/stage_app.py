"""The door to Faust: how every stage's app is set up, started and stopped.

What is set here, and what the classes add, answers to defects and habits of Faust 0.15.3 and aiokafka 0.14:

- a stage iterates over `stream.noack().events()` and acknowledges in order (`tidemill.kafka.partitions.ack_gate`);
- a flush of Faust's producer can return before everything is sent, so a table keeps its changelog futures
  (`DeliveredTable`) and a stage awaits them before it acknowledges;
- records that wait for an agent when tables have been recovered are not thrown away (`tidemill.faust.patches`);
- on a rebalance the stage's own `drain` runs before Faust takes anything apart, since Faust's own way of waiting
  for events has no bound.
"""

import asyncio
import functools
import logging
import signal
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import faust
import uvloop
from faust.exceptions import ConsumerNotStarted

from tidemill import metrics
from tidemill.configuration.security import Cluster, Kafka, Security, cluster
from tidemill.configuration.settings import Settings
from tidemill.faust.monitored_apps import MonitoredApps
from tidemill.faust.patches import Flow, go_back, resume_at_once, seek_all
from tidemill.faust.retention_guard import Oldest
from tidemill.kafka.admin import TopicError, ensure_topics, kept_seconds
from tidemill.kafka.connection import TRANSIENT, reachable
from tidemill.kafka.freeze_guard import SESSION_SECONDS, Membership, track_membership
from tidemill.kafka.producer import too_large
from tidemill.runtime import gc_tuning, health, log_dedup, notify
from tidemill.runtime.heartbeat import Heartbeat
from tidemill.schemas.bounds import RECORD_BYTES_EXTRA, RECORD_BYTES_MAX
from tidemill.schemas.ports import RecordTooLarge, Store
from tidemill.storage import locked_directory

# Not named after this module: mode logs each step of `StageApp` under that name.
log = logging.getLogger("tidemill.stage")

STOP_SECONDS_MAX = 9.0
"""A stage that is asked to stop and has not done so by then is left to its supervisor."""
COMMIT_SECONDS = 1.0
BUFFER_EVENTS_MAX = 64
"""Records that Faust may hold for an agent beyond the one it works on; one has up to 64 KiB of lines."""
FETCH_BYTES_MAX = 256 * 1024
"""Of a partition at one time, compressed."""

Drain = Callable[[set[Any]], Awaitable[None]]


class DeliveredTable(faust.Table):  # type: ignore[misc]  # Faust is untyped here
    """A table that knows which of its changelog records the broker has."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._undelivered: list[asyncio.Future[Any]] = []

    def send_changelog(self, partition: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        """Send as Faust does, and remember the future.

        Raises:
            RecordTooLarge: It is, and neither the changelog nor the table has it.
        """
        if len(key) + len(value or b"") + RECORD_BYTES_EXTRA > RECORD_BYTES_MAX:
            raise too_large(self.changelog_topic.get_topic_name(), key, value)
        future = super().send_changelog(partition, key, value, *args, **kwargs)
        self._undelivered.append(future)
        return future

    def _on_changelog_sent(self, fut: Any) -> None:
        """Remember up to where the local table has its changelog: not past what somebody else has written.

        Faust remembers the offset of its own last record. Where a successor wrote before it, as one does while
        this process is cut off from its group, these records would never be read here.
        """
        record = fut.result()
        known = self.data.persisted_offset(record.topic_partition)
        if record.offset == (-1 if known is None else known) + 1:
            super()._on_changelog_sent(fut)

    async def delivered(self) -> None:
        """Wait until the broker has every change made so far; raises what the broker says against one."""
        pending, self._undelivered = self._undelivered, []
        for future in pending:
            await future


@contextmanager
def of_the_table() -> Iterator[None]:
    """Make what the local database of a table raises an `OSError`: a full disk says nothing against a record."""
    try:
        yield
    except (RecordTooLarge, OSError):
        raise
    except Exception as error:
        raise OSError(f"the table failed: {type(error).__name__}: {error}") from error


class StageApp(faust.App):  # type: ignore[misc]  # Faust is untyped here
    """A Faust app whose stage gets time to finish before its partitions go."""

    kept_seconds: float = float("inf")
    """How long the log keeps the records that a stage needs, as far as the broker has said."""
    oldest: Oldest | None = None
    """When the oldest record was written that the stage has not done with."""
    drain: Drain | None = None
    """Called with the revoked partitions before they go; it must end within a bound of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.membership = Membership()
        self.on_partitions_assigned.connect(self._joined, weak=False)

    async def _joined(self, *_: Any, **__: Any) -> None:
        coordinator = self.consumer._thread._consumer._coordinator  # noqa: SLF001  not public
        track_membership(coordinator, self.membership)

    @functools.cached_property
    def flow_control(self) -> Flow:
        """What lets records flow to the agents."""
        return Flow(lambda: self.tables.__dict__.get("_changelog_queue"))

    def _new_consumer(self) -> Any:
        consumer = super()._new_consumer()
        seek_all(consumer)
        go_back(consumer, TRANSIENT)
        resume_at_once(consumer)
        return consumer

    async def _on_partitions_revoked(self, revoked: set[Any]) -> None:
        if self.drain is not None and revoked and not self.should_stop:
            await self.drain(revoked)
            await self.consumer.commit()
        # Faust flushes its producer before it joins anew, and the coordinator counts nobody in before that.
        self.membership.clear()
        await super()._on_partitions_revoked(revoked)


def create_app(
    name: str,
    settings: Settings,
    *,
    kafka: Kafka,
    state: Path,
    tables: bool = False,
    buffer: int = BUFFER_EVENTS_MAX,
) -> StageApp:
    """Make the app of a stage.

    Args:
        name: Its id, which is its consumer group as well.
        settings: Partitions and copies of the changelogs are taken from here.
        kafka: Where, and how to get in.
        state: Folder of the app's tables; another process of the stage on this machine takes one beside it.
        tables: Whether it has tables, which are kept in RocksDB.
        buffer: Records that Faust may hold for an agent.
    """
    state = locked_directory.take(state)
    app = StageApp(
        name,
        broker=[f"aiokafka://{server}" for server in cluster(kafka).servers.split(",")],
        broker_credentials=_credentials(cluster(kafka).security),
        store="rocksdb://" if tables else "memory://",
        # It formats what it is given.
        datadir=str(state).replace("{", "{{").replace("}", "}}"),
        Table=DeliveredTable,
        processing_guarantee="at_least_once",
        key_serializer="raw",
        value_serializer="raw",
        topic_partitions=settings.partitions,
        topic_replication_factor=settings.replication,
        # They are there (`_with_topics`), and a stage need not have the right to make one.
        topic_allow_declare=False,
        topic_disable_leader=True,
        table_standby_replicas=0,
        stream_buffer_maxsize=buffer,
        stream_wait_empty=False,
        stream_recovery_delay=0.0,
        consumer_auto_offset_reset="earliest",
        consumer_max_fetch_size=FETCH_BYTES_MAX,
        broker_max_poll_records=buffer,
        broker_commit_interval=COMMIT_SECONDS,
        broker_session_timeout=SESSION_SECONDS,
        broker_heartbeat_interval=SESSION_SECONDS / 3,
        broker_rebalance_timeout=60.0,
        # An idle consumer whose partitions are all paused would leave the group otherwise.
        broker_max_poll_interval=7 * 86_400.0,
        producer_acks=-1,
        producer_max_request_size=RECORD_BYTES_MAX,
        web_enabled=False,
        web_tables_enabled=False,
        worker_redirect_stdouts=False,
    )
    app.conf.broker_check_crcs = False
    return app


def _credentials(security: Security) -> Any:
    """The same as `security.client_options` in Faust's words; None where the broker asks for nothing."""
    if security.has_password:
        return faust.SASLCredentials(
            mechanism=security.sasl_mechanism,
            username=security.username,
            password=security.password,
            ssl_context=security.tls(),
        )
    return faust.SSLCredentials(security.tls()) if security.is_encrypted else None


def raw_topic(app: StageApp, *names: str) -> Any:
    """Topics whose keys and values are bytes, created elsewhere (`schemas/log/topics.py`)."""
    return app.topic(
        *names, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw", internal=False
    )


class Stage(Protocol):
    """A stage as its process runs it."""

    @property
    def store(self) -> Store:
        """The store that it works with, once it is started."""
        ...

    async def start(self) -> Sequence[StageApp]:
        """Connect the doors, and give the apps to run."""
        ...

    async def stop(self) -> None:
        """Close the doors; the apps have stopped."""
        ...


class GenerationGuard:
    """Which partitions a process holds.

    Faust may hand over records of partitions that the stage has let go of; they are not the stage's any more.
    """

    def __init__(self, app: StageApp) -> None:
        self._app = app
        self._left: dict[Any, int] = {}

    def leave(self, revoked: set[Any]) -> None:
        """Let go of partitions until they are assigned anew."""
        for tp in revoked:
            self._left[tp] = self._app.consumer_generation_id

    def holds(self, message: Any) -> bool:
        """Whether the record's partition is this process's, since before the record was fetched."""
        generation: int = message.generation_id
        return generation == self._app.consumer_generation_id and self._left.get(message.tp) != generation


def oldest(events: Iterable[Any]) -> float | None:
    """When the oldest of these events' records was written, Unix seconds; an event may be None."""
    return min((event.message.timestamp for event in events if event is not None), default=None)


def run(settings: Settings, role: str, make: Callable[[Settings, Cluster], Stage]) -> None:
    """Run a stage until SIGTERM or SIGINT; the topics are made first, where they are not there yet.

    Args:
        settings: All settings.
        role: The stage's name.
        make: Makes the stage from these, with the number of partitions that there really are, and Kafka's
            address; called on the event loop.

    Raises:
        SystemExit: An app crashed, and its traceback is in the log; or no broker is named.
    """
    if settings.kafka is None:
        raise SystemExit("TIDEMILL_KAFKA is not set; `tidemill up` runs every stage with a broker of its own")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for chatty in ("faust", "mode", "aiokafka", __name__):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    log_dedup.install()
    watched = MonitoredApps()
    pulse = Heartbeat(watched.look)
    with pulse.guarded(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        crashed = runner.run(_run(settings, role, make, watched, pulse))
    if crashed:
        raise SystemExit(1)


async def _run(
    settings: Settings,
    role: str,
    make: Callable[[Settings, Cluster], Stage],
    watched: MonitoredApps,
    pulse: Heartbeat,
) -> bool:
    """Run the stage; says whether it crashed."""
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    beating = loop.create_task(pulse.run())
    stage = make(await _with_topics(settings, role), settings.cluster)
    state = health.Health(
        ill=pulse.ill,
        probes={
            "kafka": functools.partial(reachable, settings.cluster),
            "store": lambda: health.writable(stage.store, role),
            "assignment": watched.assigned,
        },
        metrics=metrics.text,
    )
    async with health.served(state, settings.health_host, settings.health_port):
        ask = functools.partial(kept_seconds, settings.cluster, settings.models)
        return await _until_asked(stage, asked, watched, beating, ask)


async def _with_topics(settings: Settings, role: str) -> Settings:
    """Have the topics. Their partitions are what counts from then on, whatever was set before they were made."""
    try:
        partitions = await ensure_topics(settings, settings.cluster, role=role)
    except TopicError as error:
        raise SystemExit(str(error)) from error
    return settings.model_copy(update={"partitions": partitions})


async def _until_asked(
    stage: Stage,
    asked: asyncio.Event,
    watched: MonitoredApps,
    beating: "asyncio.Task[None]",
    ask: Callable[[], Awaitable[float]],
) -> bool:
    apps = await stage.start()
    watched.add(apps)
    guarding = asyncio.ensure_future(watched.guard(ask))
    tasks = {asyncio.ensure_future(asked.wait()), asyncio.ensure_future(_serve(apps)), beating}
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        if (error := task.exception()) is not None:
            log.error("the stage broke off", exc_info=error)
    crashed = not asked.is_set()
    try:
        async with asyncio.timeout(STOP_SECONDS_MAX):
            await _leave(apps, stage, crashed=crashed)
    except TimeoutError:
        log.warning("not everything had stopped after %s s", STOP_SECONDS_MAX)
    for task in (*tasks, guarding):
        task.cancel()
    return crashed


async def _serve(apps: Sequence[StageApp]) -> None:
    """Start the apps, say when they are ready, and return or raise when one of them has crashed."""
    assigned = [_assigned(app) for app in apps]
    await asyncio.gather(*(app.start() for app in apps))
    crashes = [asyncio.ensure_future(app._crashed.wait()) for app in apps]  # noqa: SLF001
    ready = asyncio.gather(*assigned)
    await asyncio.wait([*crashes, ready], return_when=asyncio.FIRST_COMPLETED)
    if ready.done():
        gc_tuning.settle()
        notify.ready(beats=True)
        log.info("ready")
        await asyncio.wait(crashes, return_when=asyncio.FIRST_COMPLETED)
    for app in apps:
        if app._crash_reason is not None:  # noqa: SLF001
            raise app._crash_reason  # noqa: SLF001


async def _leave(apps: Sequence[StageApp], stage: Stage, *, crashed: bool) -> None:
    for app in apps:
        # One that is asked to stop while it starts has nothing to let go of yet.
        with suppress(ConsumerNotStarted):
            if app.drain is not None and not crashed:
                await app.drain(set(app.consumer.assignment()))
                await app.consumer.commit()
    await asyncio.gather(*(app.stop() for app in apps), return_exceptions=True)
    await stage.stop()


def _assigned(app: StageApp) -> "asyncio.Future[None]":
    """Done at the app's first assignment, its tables recovered."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def first(*_: Any, **__: Any) -> None:
        if not future.done():
            future.set_result(None)

    app.on_partitions_assigned.connect(first, weak=False)
    return future
