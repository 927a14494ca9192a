"""The owners of a process's partitions: each handles its records in order and runs its timers until it leaves.

1. `put` adds a record to the gate of its topic and to the queue; at a bound the consumer waits.
2. One worker per partition number hands records to the stage, so the stage's calls never overlap. Topics with the
   same number of partitions share an owner.
3. The stage acknowledges finished records; the gate forwards the acknowledgements in the order of the log.
4. At a revocation the worker finishes the records in hand, within a bound; the next owner reads the rest again.

Faust writes a table in the partition of the current event. The first `put` starts the worker, whose context
therefore contains that event from then on, so a worker can also write when only a timer is due.
"""

import asyncio
import functools
import logging
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from math import ceil
from typing import Any, Final, Generic, Protocol, TypeVar

from tidemill.kafka.partitions.ack_gate import AckGate
from tidemill.schemas.log.codec import Headers
from tidemill.tasks import Crash, drain
from tidemill.wording import counted

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.1
"""How often the owners check their timers."""
DRAIN_SECONDS_MAX: Final = 4.0
"""How long the work on a partition may go on when another process gets it."""

Ack = Callable[[], None]
"""Acknowledges a record."""


@dataclass(slots=True, kw_only=True)
class Record:
    """A record of a partition, with its acknowledgement."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp: float
    """Unix seconds."""
    is_logged_at: bool = False
    """Whether the broker set the timestamp, instead of the producer."""
    ack: Ack = lambda: None


class PartitionWork(Protocol):
    """The stage's work on one partition."""

    def start(self) -> None:
        """Send a record into the partition, so that its worker starts even if no other record arrives."""
        ...

    async def load(self) -> None:
        """Load the state that the previous owner left; called once, before the other methods."""
        ...

    async def handle(self, records: list[Record]) -> None:
        """Handle records in order."""
        ...

    def is_due(self) -> bool:
        """Whether `tick` has work."""
        ...

    async def tick(self) -> None:
        """Do the work that is due."""
        ...

    async def leave(self) -> None:
        """Finish the records in hand, so that the next owner does not read them again."""
        ...

    def abandon(self) -> None:
        """Stop; the next owner reads all unacknowledged records again."""
        ...


P = TypeVar("P", bound=PartitionWork)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Limits of the queue at which the consumer waits for a partition."""

    records: int
    bytes: int
    lines: int | None = None
    records_per_call: int
    """Records that one call hands to the stage."""


class PartitionOwner(Generic[P]):
    """A partition, its worker and its queue."""

    def __init__(self, work: P, bounds: Bounds) -> None:
        self.work = work
        self.task: asyncio.Task[None] | None = None
        self.first: Ack | None = None
        """The first record's acknowledgement. It keeps the event alive, to which Faust has only a weak
        reference."""
        self._bounds = bounds
        self._gates: defaultdict[str, AckGate[tuple[float, Ack]]] = defaultdict(AckGate)
        self._has_work, self._room = asyncio.Event(), asyncio.Event()
        self._room.set()
        self._is_woken = self.is_leaving = False
        self._waiting: deque[tuple[Record, int]] = deque()
        """Records with their numbers of lines; 0 without a bound on lines."""
        self._bytes = self._lines = 0

    @property
    def oldest(self) -> float | None:
        """When the oldest unacknowledged record was written, Unix seconds."""
        heads = [gate.head for gate in self._gates.values()]
        return min((head[0] for head in heads if head is not None), default=None)

    async def put(self, record: Record, acknowledge: Ack) -> None:
        """Queue a record, and wait while the queue is full; `acknowledge` is called in the order of the log."""
        gate = self._gates[record.topic]
        record.ack = functools.partial(_finish, gate, gate.admit((record.timestamp, acknowledge)))
        value = record.value or b""
        lines = 0 if self._bounds.lines is None else 1 + value.count(b"\n")
        self._waiting.append((record, lines))
        self._bytes += len(value)
        self._lines += lines
        self._has_work.set()
        if self._is_full:
            self._room.clear()
        await self._room.wait()

    def wake(self) -> None:
        """Wake the worker, which calls `tick`."""
        self._is_woken = True
        self._has_work.set()

    async def run(self) -> None:
        """Handle records and timers until `leave`."""
        await self.work.load()
        while not self.is_leaving:
            self._has_work.clear()
            # Handle only the records that wait now, before a tick that may take long.
            for _ in range(ceil(len(self._waiting) / self._bounds.records_per_call)):
                if self._waiting and not self.is_leaving:
                    await self.work.handle(self._next())
            if self._is_woken:
                self._is_woken = False
                await self.work.tick()
            if not self._waiting:
                await self._has_work.wait()
        await self.work.leave()

    def leave(self) -> None:
        """End the worker, and release a waiting consumer."""
        self.is_leaving = True
        self._has_work.set()
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


class PartitionOwners(Generic[P]):
    """The owners of a process's partitions."""

    def __init__(
        self,
        make: Callable[[int], P],
        bounds: Bounds,
        *,
        crash: Crash,
        start: Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"] = asyncio.create_task,
    ) -> None:
        """Start without partitions; `make` creates the stage's part of a partition from its number.

        `crash` ends the process after a failure of unknown extent; its successor reads the records again.
        """
        self._make = make
        self._bounds = bounds
        self._crash = crash
        self._start = start
        self._owners: dict[int, PartitionOwner[P]] = {}

    @property
    def works(self) -> list[P]:
        """The stage's part of each partition."""
        return [owner.work for owner in self._owners.values()]

    def oldest(self) -> float | None:
        """When the oldest unacknowledged record was written, Unix seconds."""
        times = [owner.oldest for owner in self._owners.values()]
        return min((time for time in times if time is not None), default=None)

    def assign(self, numbers: Iterable[int]) -> None:
        """Own these partitions and start their work."""
        for number in numbers:
            self._owner(number).work.start()

    async def put(self, record: Record, acknowledge: Ack) -> None:
        """Give a record to its owner; call this in the context of its event."""
        owner = self._owner(record.partition)
        if owner.task is None:
            owner.first = acknowledge
            owner.task = self._start(self._run(owner))
        await owner.put(record, acknowledge)

    async def run_timers(self) -> None:
        """Wake owners whose timers are due; never returns."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for owner in self._owners.values():
                if owner.work.is_due():
                    owner.wake()

    def wake(self) -> None:
        """Wake all owners."""
        for owner in self._owners.values():
            owner.wake()

    async def leave(self, numbers: Iterable[int]) -> None:
        """Leave partitions within `DRAIN_SECONDS_MAX`; the caller must not `put` their records meanwhile."""
        owners = {number: self._owners[number] for number in numbers if number in self._owners}
        for owner in owners.values():
            owner.leave()
        tasks = [owner.task for owner in owners.values() if owner.task is not None]
        if late := await drain(tasks, DRAIN_SECONDS_MAX, self._crash):
            log.warning("left with a record unfinished: %s", counted(late, "partition"))
        for number, owner in owners.items():
            owner.work.abandon()
            self._owners.pop(number, None)

    def _owner(self, number: int) -> PartitionOwner[P]:
        if (owner := self._owners.get(number)) is None:
            owner = self._owners[number] = PartitionOwner(self._make(number), self._bounds)
        return owner

    async def _run(self, owner: PartitionOwner[P]) -> None:
        try:
            await owner.run()
        except asyncio.CancelledError:
            if _is_cancelled() or owner.is_leaving:
                raise
            await self._crash(RuntimeError("a future that the work on a partition awaits was cancelled"))
        except Exception as error:  # noqa: BLE001  the error ends the process
            log.error("the work on a partition failed: %s", type(error).__name__)  # noqa: TRY400
            await self._crash(error)


def _is_cancelled() -> bool:
    """Whether this task was cancelled, and not a future that it awaited."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _finish(gate: AckGate[tuple[float, Ack]], ticket: Any) -> None:
    for _, acknowledge in gate.finish(ticket):
        acknowledge()
