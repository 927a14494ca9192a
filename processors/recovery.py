"""Reads back, after an assignment, which lines of its partitions earlier owners have completed.

These are the steps 5 and 6 of docs/reference/protocol.md; `partitions/assignment.py` decides what must be read.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Final

from tidemill.configuration.security import Kafka
from tidemill.kafka.connection import LogUnavailable
from tidemill.kafka.history import reading
from tidemill.kafka.producer import partition_of
from tidemill.processors.kafka import completed_lines
from tidemill.processors.partitions.assignment import Assignment
from tidemill.processors.partitions.closed_batches import ClosedBatches
from tidemill.retrying import retry
from tidemill.schemas.log import topics
from tidemill.schemas.ports import Edge

GATHER_SECONDS: Final = 0.05
"""How long to wait for records of other partitions before reading the outcomes for all of them."""


class Recovery:
    """The recovery of one model."""

    def __init__(
        self,
        kafka: Kafka,
        names: Sequence[str],
        assignment: Assignment,
        mark: Callable[[str, int], None],
        *,
        closed: ClosedBatches,
        set_part: Callable[[float], None],
        partitions: int,
    ) -> None:
        """Read nothing yet.

        Args:
            kafka: Brokers and credentials.
            names: The model's topics.
            assignment: The partitions of this process.
            mark: Notes that a line, by batch id and index, is completed.
            closed: The batches whose lines need no note.
            set_part: Called with this process's part of the model's partitions.
            partitions: Partitions that topics are created with.
        """
        self._kafka = kafka
        self._names = names
        self._assignment = assignment
        self._mark = mark
        self._closed = closed
        self._set_part = set_part
        self._partitions = partitions
        self._outcome_partitions = 1
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def partition_of(self, batch_id: str) -> int:
        """The partition of `outcomes` that has the results of a batch."""
        return partition_of(batch_id, self._outcome_partitions)

    def start(self) -> None:
        """Begin after an assignment."""
        self._wanted.clear()
        # The partitions that topics are created with, until Kafka says how many there are.
        self._note_part(self._partitions * len(self._names))
        self._task = asyncio.create_task(self._run())

    def stop(self) -> None:
        """Stop reading."""
        if self._task is not None:
            self._task.cancel()

    def wake(self) -> None:
        """A record waits for what earlier owners have completed."""
        self._wanted.set()

    async def _run(self) -> None:
        """Look up where the partitions end, then read outcomes whenever a record needs them."""
        await retry("finding the ends of partitions", self._find_ends, faults=Exception)
        while True:
            if not self._assignment.release():
                await self._wanted.wait()
            await asyncio.sleep(GATHER_SECONDS)
            await retry("reading outcomes", self._read_outcomes, faults=Exception)

    def _note_part(self, partitions: int) -> None:
        """Make as large a part of the calls as this process has of the partitions."""
        self._set_part(min(1.0, len(self._assignment.partitions) / partitions))

    async def _find_ends(self) -> None:
        partitions = self._assignment.partitions
        async with reading(self._kafka) as reader:
            found = {name: reader.partitions(name) for name in (topics.OUTCOMES.name, *self._names)}
            if not all(found.values()):
                raise LogUnavailable("the broker does not know all topics yet")
            ends = {
                name: await reader.ends(name, [tp.partition for tp in partitions if tp.topic == name])
                for name in self._names
            }
        self._outcome_partitions = len(found.pop(topics.OUTCOMES.name))
        self._note_part(sum(map(len, found.values())))
        self._assignment.set_ends({tp: ends[tp.topic][tp.partition][1] for tp in partitions})

    async def _read_outcomes(self) -> None:
        self._wanted.clear()
        if not (wanted := self._assignment.wanted()):
            return
        starts = {number: Edge(at_ms=max(0, int(since * 1000))) for number, since in wanted.items()}
        async with (
            reading(self._kafka) as reader,
            aclosing(reader.records(topics.OUTCOMES.name, starts)) as records,
        ):
            async for record in records:
                for batch_id, index in completed_lines(record):
                    if batch_id not in self._closed:
                        self._mark(batch_id, index)
        self._assignment.recovered(wanted)
