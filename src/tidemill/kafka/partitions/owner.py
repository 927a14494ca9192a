"""The owners of partitions in one process: each takes its records in order and does what is due, until it leaves.

1. `put` admits a record to the gate of its topic and queues it; where enough records wait, so does the consumer.
2. One worker for each partition number hands the records to the stage, so the stage's calls never overlap. Topics
   with the same number of partitions share an owner.
3. The stage acknowledges a record when it is done with it; the gate passes that on in the order of the log.
4. At a revocation the worker finishes what it has in hand, within a bound. The rest comes again to the next owner.

A table of Faust is written in the partition of the event that is being handled. The worker is started by the first
`put`, and so has that event in its context for as long as it lives: it may write also when only time has passed.
"""

import asyncio
import functools
import logging
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from tidemill.kafka.partitions.ack_gate import AckGate
from tidemill.schemas.log.codec import Headers

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.1
"""Between two looks at what is due."""
DRAIN_SECONDS_MAX: Final = 4.0

Ack = Callable[[], None]
"""Says that a record needs no second reading."""


@dataclass(slots=True, kw_only=True)
class Record:
    """A record of a partition, and how to acknowledge it."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp: float
    """Unix seconds."""
    is_logged_at: bool = False
    """Whether the broker set the timestamp, and not the producer."""
    ack: Ack = lambda: None


class Partition(Protocol):
    """What a stage does with one partition."""

    def start(self) -> None:
        """Send a record into the partition: its worker begins with it, even if no other record comes."""
        ...

    async def load(self) -> None:
        """Take over what the previous owner left; called once, before all else."""
        ...

    async def handle(self, records: list[Record]) -> None:
        """Handle records, in their order."""
        ...

    def is_due(self) -> bool:
        """Whether `tick` has something to do."""
        ...

    async def tick(self) -> None:
        """Do what is due."""
        ...

    async def leave(self) -> None:
        """Finish what was taken, so that it does not come again to the next owner."""
        ...

    def abandon(self) -> None:
        """Stop: whatever is not acknowledged comes again to the next owner."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """When the consumer waits for a partition; all three count the records that wait for the stage."""

    records: int
    bytes: int
    lines: int | None = None
    records_per_call: int
    """Records that the stage is handed at once."""


class PartitionOwner:
    """A partition, its worker, and the records that wait for it."""

    def __init__(self, partition: Partition, bounds: Bounds) -> None:
        self.partition = partition
        self.task: asyncio.Task[None] | None = None
        self.first: Ack | None = None
        """Of the first record. It keeps that record's event alive, to which Faust has a weak reference only."""
        self._bounds = bounds
        self._gates: defaultdict[str, AckGate[tuple[float, Ack]]] = defaultdict(AckGate)
        self._news, self._room = asyncio.Event(), asyncio.Event()
        self._room.set()
        self._is_woken = self.is_leaving = False
        self._waiting: deque[tuple[Record, int]] = deque()
        """Each with its number of lines, 0 where nobody asks."""
        self._bytes = self._lines = 0

    @property
    def oldest(self) -> float | None:
        """When the oldest record was written that is not acknowledged, Unix seconds."""
        heads = [gate.head for gate in self._gates.values()]
        return min((head[0] for head in heads if head is not None), default=None)

    async def put(self, record: Record, acknowledge: Ack) -> None:
        """Queue a record, and wait where there are too many; `acknowledge` is called in the order of the log."""
        gate = self._gates[record.topic]
        record.ack = functools.partial(_finish, gate, gate.admit((record.timestamp, acknowledge)))
        value = record.value or b""
        lines = 0 if self._bounds.lines is None else 1 + value.count(b"\n")
        self._waiting.append((record, lines))
        self._bytes += len(value)
        self._lines += lines
        self._news.set()
        if self._is_full:
            self._room.clear()
        await self._room.wait()

    def wake(self) -> None:
        """Have the worker do what is due."""
        self._is_woken = True
        self._news.set()

    async def run(self) -> None:
        """Take records and do what is due, until `leave`."""
        await self.partition.load()
        while not self.is_leaving:
            self._news.clear()
            if self._waiting:
                await self.partition.handle(self._next())
            if self._is_woken:
                self._is_woken = False
                await self.partition.tick()
            if not self._waiting:
                await self._news.wait()
        await self.partition.leave()

    def leave(self) -> None:
        """Have the worker end, and the consumer wait no more."""
        self.is_leaving = True
        self._news.set()
        self._room.set()

    @property
    def _is_full(self) -> bool:
        bounds = self._bounds
        return (
            len(self._waiting) >= bounds.records
            or self._bytes >= bounds.bytes
            or (bounds.lines is not None and self._lines >= bounds.lines)
        )

    def _next(self) -> list[Record]:
        taken: list[Record] = []
        while self._waiting and len(taken) < self._bounds.records_per_call:
            record, lines = self._waiting.popleft()
            self._bytes -= len(record.value or b"")
            self._lines -= lines
            taken.append(record)
        if not self._is_full:
            self._room.set()
        return taken


class PartitionOwners:
    """The partitions that a process owns."""

    def __init__(
        self,
        make: Callable[[int], Partition],
        bounds: Bounds,
        *,
        crash: Callable[[Exception], Awaitable[None]],
        start: Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"] = asyncio.create_task,
    ) -> None:
        """Own none yet.

        Args:
            make: Makes the stage's part of a partition from its number.
            bounds: Of each partition.
            crash: Ends the process: nothing may be built on what failed, and its successor reads again.
            start: Starts a worker.
        """
        self._make = make
        self._bounds = bounds
        self._crash = crash
        self._start = start
        self._owners: dict[int, PartitionOwner] = {}

    @property
    def partitions(self) -> list[Partition]:
        """What the stage has made of each."""
        return [owner.partition for owner in self._owners.values()]

    def oldest(self) -> float | None:
        """When the oldest record was written that is not acknowledged, Unix seconds."""
        times = [owner.oldest for owner in self._owners.values()]
        return min((time for time in times if time is not None), default=None)

    def assign(self, numbers: Iterable[int]) -> None:
        """Own these partitions, and begin to work on them."""
        for number in numbers:
            self._owner(number).partition.start()

    async def put(self, record: Record, acknowledge: Ack) -> None:
        """Hand a record to its owner; to be called while its event is being handled."""
        owner = self._owner(record.partition)
        if owner.task is None:
            owner.first = acknowledge
            owner.task = self._start(self._run(owner))
        await owner.put(record, acknowledge)

    async def run_timers(self) -> None:
        """Wake owners that have something to do; never returns."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for owner in self._owners.values():
                if owner.partition.is_due():
                    owner.wake()

    def wake(self) -> None:
        """Have each owner do what is due."""
        for owner in self._owners.values():
            owner.wake()

    async def leave(self, numbers: Iterable[int]) -> None:
        """Let go of partitions, within `DRAIN_SECONDS_MAX`; no record of theirs may be put meanwhile."""
        owners = {number: self._owners[number] for number in numbers if number in self._owners}
        for owner in owners.values():
            owner.leave()
        if tasks := [owner.task for owner in owners.values() if owner.task is not None]:
            _, late = await asyncio.wait(tasks, timeout=DRAIN_SECONDS_MAX)
            for task in late:
                task.cancel()
            if late:
                log.warning("%d partitions were left in the middle of a record", len(late))
                await asyncio.wait(late)
        for number, owner in owners.items():
            owner.partition.abandon()
            self._owners.pop(number, None)

    def _owner(self, number: int) -> PartitionOwner:
        if (owner := self._owners.get(number)) is None:
            owner = self._owners[number] = PartitionOwner(self._make(number), self._bounds)
        return owner

    async def _run(self, owner: PartitionOwner) -> None:
        try:
            await owner.run()
        except asyncio.CancelledError:
            if _is_cancelled() or owner.is_leaving:
                raise
            await self._crash(RuntimeError("what the work on a partition waited for was cancelled"))
        except Exception as error:  # noqa: BLE001  the process ends by it
            log.error("the work on a partition broke off: %s", type(error).__name__)  # noqa: TRY400
            await self._crash(error)


def _is_cancelled() -> bool:
    """Whether this task was cancelled, and not a future that it awaited."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _finish(gate: AckGate[tuple[float, Ack]], ticket: Any) -> None:
    for _, acknowledge in gate.finish(ticket):
        acknowledge()
