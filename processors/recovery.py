"""Reads back, after an assignment, which lines of its partitions earlier owners have completed.

These are the steps 5 and 6 of docs/reference/protocol.md; `partitions/assignment.py` decides what must be read.
One recovery serves all models of a process: the outcomes of a batch are in one partition, whatever its model.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import aclosing
from typing import Any, Final

from tidemill.configuration.security import Kafka
from tidemill.kafka.history import reading
from tidemill.processors.partitions.assignment import Assignment
from tidemill.processors.partitions.closed_batches import ClosedBatches
from tidemill.retrying import retry
from tidemill.schemas.log import codec, topics
from tidemill.schemas.ports import Edge
from tidemill.tasks import Crash, watched

GATHER_SECONDS: Final = 0.05
"""How long to wait for records of other partitions before reading the outcomes for all of them."""

_log = logging.getLogger(__name__)


class Recovery:
    """The recovery of a process."""

    def __init__(
        self, kafka: Kafka, assignment: Assignment, mark: Callable[[str, int], None], closed: ClosedBatches
    ) -> None:
        """Read nothing yet.

        Args:
            kafka: Brokers and credentials.
            assignment: The partitions of this process.
            mark: Notes that a line, by batch id and index, is completed.
            closed: The batches whose lines need not be marked.
        """
        self._kafka = kafka
        self._assignment = assignment
        self._mark = mark
        self._closed = closed
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self, crash: Crash) -> None:
        """Begin after an assignment."""
        self._wanted.clear()
        self._task = watched(asyncio.create_task(self._run(), name="recover outcomes"), crash)

    def stop(self) -> None:
        """Stop reading."""
        if self._task is not None:
            self._task.cancel()

    def wake(self) -> None:
        """Note that a record waits for the outcomes of earlier owners."""
        self._wanted.set()

    async def _run(self) -> None:
        """Read outcomes whenever a record needs them."""
        # A library may have swallowed the cancellation of an earlier assignment's task.
        while self._task is asyncio.current_task():
            if not self._assignment.release():
                await self._wanted.wait()
            await asyncio.sleep(GATHER_SECONDS)
            await retry("reading outcomes", self._read_outcomes, faults=Exception)

    async def _read_outcomes(self) -> None:
        self._wanted.clear()
        if not (wanted := self._assignment.wanted()):
            return
        handovers = self._assignment.handovers
        starts = {number: Edge(at_ms=max(0, int(since * 1000))) for number, since in wanted.items()}
        async with (
            reading(self._kafka) as reader,
            aclosing(reader.records(topics.OUTCOMES.name, starts)) as records,
        ):
            async for record in records:
                for batch_id, index in _completed_lines(record):
                    if batch_id not in self._closed:
                        self._mark(batch_id, index)
        if self._task is asyncio.current_task():
            self._assignment.recovered(wanted, handovers)


def _completed_lines(record: Any) -> Iterator[tuple[str, int]]:
    """The lines whose results a record of `outcomes` holds, as batch id and index; none if it holds a fact."""
    if codec.kind_of(record.headers) != codec.LINES:
        return
    try:
        batch_id, marks = codec.lines_marks(record.headers, len(record.value or b""))
    except codec.DecodeError as error:
        _log.warning("the outcome at %d/%d cannot be read: %s", record.partition, record.offset, error)
        return
    for line in marks:
        yield batch_id, line.index
