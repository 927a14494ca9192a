"""The Faust app of `commands`; the app of direct producers (`streams/app.py`) runs alongside."""

import asyncio
import functools
import logging
import time
from collections import defaultdict
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any, Final

from tidemill.configuration.security import Kafka
from tidemill.configuration.settings import Settings
from tidemill.faust import stage_app, stage_runner
from tidemill.faust.partitions import GenerationGuard
from tidemill.ingest.files.imports import Importer
from tidemill.ingest.files.queue import BatchQueue, QueueRunner
from tidemill.ingest.files.stage import FileIngest
from tidemill.ingest.kafka import RequestProducer
from tidemill.ingest.streams.app import StreamApp
from tidemill.kafka.admin import ensure_model_topics
from tidemill.kafka.catalog import Catalog
from tidemill.kafka.follower import Follower
from tidemill.kafka.log_space import log_space
from tidemill.kafka.partitions.ack_gate import AckGate, Ticket
from tidemill.kafka.partitions.dead_letters import handle_record
from tidemill.kafka.producer import Log, partition_of
from tidemill.retrying import retry
from tidemill.schemas.log import codec, dead_letters, topics
from tidemill.schemas.log.codec import DecodeError
from tidemill.schemas.log.messages import DeadLettered
from tidemill.sealing.key_manager import KeyManager
from tidemill.storage.buckets import Buckets
from tidemill.storage.disk_space import LOG
from tidemill.tasks import Crash, drain, watched

log = logging.getLogger(__name__)

NAME: Final = "tidemill-ingest"
COMMANDS_MAX: Final = 1000
"""Commands of one process that are under way; at this bound the consumer waits."""
DRAIN_SECONDS_MAX: Final = 3.0
"""How long work may go on when partitions are revoked; unfinished work starts again in another process."""


class Queue:
    """The queue of batches in this process, with the partitions of commands that it owns."""

    def __init__(
        self, settings: Settings, kafka: Kafka, stage: FileIngest, *, sender: Log, requests: RequestProducer
    ) -> None:
        """Start without partitions or connections."""
        self._partitions = settings.partitions
        self._queue = BatchQueue(settings, lambda batch_id: self._partition_of(batch_id) in self._owned)
        self.erased = self._queue.erased
        self.runner = QueueRunner(
            self._queue, stage, sender=sender, requests=requests, start=self._publish, clock=time.time
        )
        self._followers = (
            Follower(kafka, topics.QUEUE.name, self._queue.fold),
            Follower(kafka, topics.BATCHES.name, self._queue.batch),
        )
        self._owned: set[int] = set()
        self._publishing: dict[asyncio.Task[None], int] = {}
        """Batches that are being published, with their partitions of commands."""
        self._running: asyncio.Task[None] | None = None

    def start(self, crash: Crash) -> None:
        """Begin to read the queue; call `crash` with an unexpected error."""
        self._running = watched(asyncio.create_task(self._run(), name="run the queue"), crash)

    async def stop(self) -> None:
        """Stop reading."""
        if self._running is not None:
            self._running.cancel()
        for follower in self._followers:
            await follower.stop()

    async def assigned(self, _: Any, assigned: Iterable[Any], **__: Any) -> None:
        """Own these partitions of commands."""
        self._owned = {tp.partition for tp in assigned}
        self._queue.changed.set()

    def leave(self, revoked: Iterable[Any]) -> "list[asyncio.Task[None]]":
        """Leave partitions; returns the tasks that publish their batches."""
        gone = {tp.partition for tp in revoked}
        self._owned -= gone
        return [task for task, partition in self._publishing.items() if partition in gone]

    async def _run(self) -> None:
        """Run the queue; read the batches only if projects have a queue, since there may be millions."""
        queue, batches = self._followers
        await queue.start()
        await queue.caught_up()
        if self._queue.is_needed:
            await batches.start()
            await batches.caught_up()
        await self.runner.run()

    def _partition_of(self, batch_id: str) -> int:
        return partition_of(batch_id, self._partitions)

    def _publish(self, batch_id: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._publishing[task] = self._partition_of(batch_id)
        task.add_done_callback(self._publishing.pop)


class Ingest:
    """The stage's app, its connections and its store."""

    def __init__(self, settings: Settings, kafka: Kafka, catalog: Catalog) -> None:
        """Set up the app; nothing is connected yet."""
        self._catalog = catalog
        self._log = Log(kafka)
        self._key_manager = KeyManager(settings, kafka, self._log, on_record=self._erased)
        self.store = self._key_manager.open_store()
        self._space = log_space(kafka, settings.disk_reserve_bytes)
        self._requests = RequestProducer(
            kafka,
            self._log,
            partitions=settings.partitions,
            ensure_topics=functools.partial(ensure_model_topics, settings, kafka),
            vault=self._key_manager.vault,
            encrypted=settings.encrypt_log,
            check_disk=lambda: self._space.check(LOG),
        )
        self._stream_app = StreamApp(
            settings,
            kafka,
            catalog=catalog,
            sender=self._log,
            store=self.store,
            requests=self._requests,
            vault=self._key_manager.vault,
        )
        self._stage = self._file_stage(settings)
        self._queue = Queue(settings, kafka, self._stage, sender=self._log, requests=self._requests)
        state = Path(settings.data) / "state" / "ingest"
        self.app = stage_app.create_app(NAME, settings, kafka=kafka, state=state)
        self._room = asyncio.Semaphore(COMMANDS_MAX)
        self._gates: defaultdict[tuple[Any, int], AckGate[Any]] = defaultdict(AckGate)
        """By partition and generation: after a rebalance a partition starts with a new gate."""
        self._guard = GenerationGuard(self.app)
        """Rejects events of revoked partitions."""
        self._tasks: dict[asyncio.Task[None], Any] = {}
        """The commands under way, with their partitions."""
        self._agent = self.app.agent(stage_app.raw_topic(self.app, topics.COMMANDS.name))(self._consume)
        self.app.drain = self._drain
        self.app.on_partitions_assigned.connect(self._queue.assigned, weak=False)
        self.app.oldest = lambda: stage_app.oldest(gate.head for gate in self._gates.values())
        self.app.behind = lambda: stage_app.oldest(
            event
            for gate in self._gates.values()
            for event in gate.unfinished
            if not self._stage.is_importing((event.message.key or b"").decode(errors="replace"))
        )

    def _file_stage(self, settings: Settings) -> FileIngest:
        importer = Importer(
            Buckets(settings.buckets),
            self.store,
            sender=self._log,
            requests=self._requests,
            room=self._stream_app.quotas,
            caught_up=self._stream_app.caught_up,
        )
        return FileIngest(
            settings,
            catalog=self._catalog,
            store=self.store,
            requests=self._requests,
            clock=time.time,
            importer=importer,
        )

    def _erased(self, key: str, value: bytes | None) -> None:
        # The queue is made after the key manager, whose store it needs.
        self._queue.erased(key, value)

    async def start(self) -> list[stage_app.StageApp]:
        """Connect, and return the apps to run."""
        await self._log.start()
        await self._requests.start(self._catalog.contents.serving.models)
        await self._space.start()
        await self._key_manager.start()
        self._queue.start(self.app.crash)
        return [self.app, await self._stream_app.start()]

    async def stop(self) -> None:
        """Disconnect."""
        await self._queue.stop()
        await self._space.stop()
        await self._stream_app.stop()
        await self._key_manager.stop()
        await self._requests.stop()
        await self._log.stop()
        await self._stage.close()
        await self.store.close()

    async def _consume(self, events: Any) -> None:
        async for event in events.noack().events():
            message = event.message
            await self._room.acquire()
            if not self._guard.holds(message):
                self._room.release()
                continue
            ticket = self._gates[message.tp, message.generation_id].admit(event)
            task = asyncio.create_task(self._handle(event, ticket))
            self._tasks[task] = message.tp
            task.add_done_callback(self._forget)

    async def _handle(self, event: Any, ticket: Ticket[Any]) -> None:
        message = event.message
        try:
            await self._do(message)
        except Exception as error:
            # Later commands stay unacknowledged, too: the process ends, and the next owner handles them again.
            log.error("could not handle a command: %s", type(error).__name__)  # noqa: TRY400
            await self.app.crash(error)
            raise
        if message.generation_id == self.app.consumer_generation_id:
            for done in self._gates[message.tp, message.generation_id].finish(ticket):
                done.ack()

    async def _do(self, message: Any) -> None:
        letter = await handle_record(self._log, message, lambda: self._command(message), stage="ingest")
        if letter is None or letter.unreadable:
            return
        if (identified := dead_letters.identify_batch(message.topic, message.headers, message.value)) is not None:
            fact = DeadLettered(
                batch_id=identified.batch_id, source=letter.source, reason=letter.reason, at=int(time.time())
            )
            await retry(
                f"sending that {identified.batch_id} has a dead letter",
                lambda: self._requests.send_fact(fact),
            )

    async def _command(self, message: Any) -> None:
        command = codec.decode_command(message.value)
        if message.key != (codec.batch_of(command) or "").encode():
            raise DecodeError("its key is not that of its batch")
        await self._queue.runner.handle(command)

    async def _drain(self, revoked: set[Any]) -> None:
        """Wait for the commands of revoked partitions, within a bound, then cancel the rest."""
        self._guard.leave(revoked)
        tasks = [task for task, tp in self._tasks.items() if tp in revoked] + self._queue.leave(revoked)
        await drain(tasks, DRAIN_SECONDS_MAX, self.app.crash)
        for tp, generation in list(self._gates):
            if tp in revoked:
                del self._gates[tp, generation]

    def _forget(self, task: "asyncio.Task[None]") -> None:
        self._room.release()
        del self._tasks[task]
        if not task.cancelled():
            task.exception()  # `_handle` has logged the error


def main(settings: Settings) -> None:
    """Run the stage until SIGTERM.

    Raises:
        SystemExit: It crashed, or a setting is missing.
    """
    stage_runner.run(settings, "ingest", Ingest)
