"""Ingest on a log and a store in memory; see `simstages.py` for the other stages."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from support.catalog import fixed_catalog
from support.simlog import Group, Place, Record
from support.simstages import BATCHES, COMMANDS, DRAIN_SECONDS_MAX, OUTCOMES, QUEUE, Base

from tidemill.configuration.settings import Settings
from tidemill.ingest.files import packing
from tidemill.ingest.files.queue import BatchQueue, QueueRunner
from tidemill.ingest.files.stage import FileIngest
from tidemill.kafka.partitions.ack_gate import AckGate
from tidemill.kafka.partitions.dead_letters import handle_record
from tidemill.kafka.producer import partition_of
from tidemill.schemas.log import codec, topics
from tidemill.sealing.records import seal_request

RECORD_LINES = (3, 8, packing.RECORD_LINES_MAX)
"""Lines in a record of requests: the batches are small, so two of three runs have small records, too."""


@contextmanager
def packed(run: int) -> Iterator[None]:
    """Let records of requests have as many lines as is this run's turn."""
    lines = RECORD_LINES[run % len(RECORD_LINES)]
    with patch.multiple(packing, RECORD_LINES_MAX=lines, RUN_LINES=2 * lines):
        yield


class IngestProcess(Base):
    """`ingest/app.py` without Faust."""

    def __init__(self, world, group: Group, settings: Settings) -> None:
        super().__init__(world, group)
        self._stage = FileIngest(
            settings,
            catalog=fixed_catalog(settings.servers, settings.models),
            store=self.store,
            requests=self,
            clock=self.process.now,
        )
        self._gates: defaultdict[tuple[Place, int], AckGate[Record]] = defaultdict(AckGate)
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._owned: set[int] = set()
        self._queue = BatchQueue(settings, self._owns)
        self._runner = QueueRunner(
            self._queue, self._stage, sender=self, requests=self, start=self._begin, clock=self.process.now
        )
        if self._queue.is_needed:
            self.process.start(self._run_queue())

    def _owns(self, batch_id: str) -> bool:
        return partition_of(batch_id, len(self.log.places(COMMANDS))) in self._owned

    def _begin(self, batch_id: str, work) -> None:
        del batch_id
        task = self.process.start(work)
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))

    async def _run_queue(self) -> None:
        """Read the queue, then the batches, then both as they grow; each record a while after it was written."""
        seen = {QUEUE: 0, BATCHES: 0}
        running = None
        while True:
            for topic, apply in ((QUEUE, self._queue.fold), (BATCHES, self._queue.batch)):
                records = self.log.records[Place(topic, 0)]
                while seen[topic] < len(records):
                    await self.process.pass_time()
                    record = records[seen[topic]]
                    apply(record.key, record.value, record.offset)
                    seen[topic] += 1
            running = running or self.process.start(self._runner.run())
            await self.log.growth()

    async def assign(self, places: list[Place]) -> None:
        self._owned = {place.partition for place in places}
        self._queue.changed.set()

    async def take(self, record: Record) -> None:
        generation = self.seat.generation
        gate = self._gates[Place(record.topic, record.partition), generation]
        task = self.process.start(self._handle(record, gate, gate.admit(record), generation))
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))

    async def revoke(self) -> None:
        self._owned = set()
        if self._tasks:
            _, late = await asyncio.wait(list(self._tasks), timeout=DRAIN_SECONDS_MAX)
            for task in late:
                task.cancel()

    async def send_fact(self, fact) -> None:
        await self.append(OUTCOMES, fact.batch_id, codec.encode(fact), [(codec.KIND, fact.kind.encode())])

    async def begin(self, batch_id: str, project: str) -> None:
        await self.vault.sealing_cipher(batch_id, project)

    async def publish(self, records) -> None:
        async for record in records:
            head, value = await seal_request(self.vault, record.head, record.value)
            await self.append(topics.requests(record.model).name, record.key, value, codec.request_headers(head))

    async def _handle(self, record: Record, gate: AckGate[Record], ticket, generation: int) -> None:
        async def work() -> None:
            await self._runner.handle(codec.decode_command(record.value))

        await handle_record(self, record, work, stage="ingest")
        for done in gate.finish(ticket):
            self.group.ack(self.seat, generation, done)
