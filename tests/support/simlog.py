"""A log in memory: topics of partitions, and groups of consumers that share them as Kafka's do."""

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from support.simtime import Process, SimulatedLoop

from tidemill.kafka.producer import partition_of

SESSION_SECONDS = 6.0
COMMIT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Record:
    """One record."""

    topic: str
    partition: int
    offset: int
    key: str
    headers: tuple[tuple[str, bytes], ...]
    value: bytes
    time: float


class Place(NamedTuple):
    """A partition of a topic."""

    topic: str
    partition: int


class MemoryLog:
    """All topics."""

    def __init__(self, loop: SimulatedLoop, partitions: dict[str, int]) -> None:
        self._loop = loop
        self._partitions = partitions
        self.records: defaultdict[Place, list[Record]] = defaultdict(list)
        self._grown = asyncio.Event()

    def append(
        self,
        topic: str,
        key: str,
        value: bytes,
        headers: Any = (),
        partition: int | None = None,
        *,
        time: float | None = None,
    ) -> Record:
        """Append a record to the partition of its key; `time` is its producer's, whose clock may be wrong."""
        if partition is None:
            partition = partition_of(key, self._partitions.get(topic, 1))
        place = self.records[Place(topic, partition)]
        record = Record(
            topic, partition, len(place), key, tuple(headers), value, self._loop.now() if time is None else time
        )
        place.append(record)
        self._grown.set()
        self._grown = asyncio.Event()
        return record

    def places(self, *topics: str) -> list[Place]:
        """The partitions of topics."""
        return [Place(topic, number) for topic in topics for number in range(self._partitions.get(topic, 1))]

    async def growth(self) -> None:
        """Wait for the next record of any topic."""
        await self._grown.wait()


class Member(Protocol):
    """A member of a consumer group."""

    process: Process

    async def assign(self, places: list[Place]) -> None:
        """Assign partitions to the process."""
        ...

    async def take(self, record: Record) -> None:
        """Handle the next record of an assigned partition."""
        ...

    async def revoke(self) -> None:
        """Prepare to lose the partitions: finish the work under way, within a bound."""
        ...


class Seat:
    """A member of a group: its partitions, and the records it has read and acknowledged."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.generation = 0
        self.acked: dict[Place, int] = {}
        self.feeds: list[asyncio.Task[Any]] = []


class Group:
    """A consumer group: each partition has one owner, and a committed offset for its next owner."""

    def __init__(self, log: MemoryLog, *topics: str) -> None:
        self._log = log
        self._topics = topics
        self._seats: list[Seat] = []
        self._expelled: list[Seat] = []
        self._committed: dict[Place, int] = {}
        self._turn = asyncio.Lock()
        self._generation = 0

    def seat(self, member: Member) -> Seat:
        """The place of a member."""
        return next(seat for seat in (*self._seats, *self._expelled) if seat.member is member)

    async def join(self, member: Member) -> None:
        """Add a member."""
        async with self._turn:
            if member.process.is_alive:
                self._seats.append(Seat(member))
                await self._rebalance()

    async def leave(self, member: Member) -> None:
        """Remove a member that stops gracefully."""
        async with self._turn:
            if not self.has(member):
                return
            seat = self.seat(member)
            await self._revoke(seat)
            # Its unfinished work ends with its process.
            member.process.kill()
            self._seats.remove(seat)
            await self._rebalance()

    async def lose(self, member: Member) -> None:
        """Remove a killed member after its session timeout."""
        await asyncio.sleep(SESSION_SECONDS)
        async with self._turn:
            if self.has(member):
                self._seats.remove(self.seat(member))
                await self._rebalance()

    async def expel(self, member: Member) -> None:
        """Isolate a member: the group removes it, and the member goes on without knowing."""
        await asyncio.sleep(SESSION_SECONDS)
        async with self._turn:
            if not member.process.is_alive or not self.has(member):
                return
            seat = self.seat(member)
            member.process.owns_partitions = False
            self._seats.remove(seat)
            self._expelled.append(seat)
            await self._rebalance()

    def has(self, member: Member) -> bool:
        """Whether it has joined, and not left."""
        return any(seat.member is member for seat in self._seats)

    def ack(self, seat: Seat, generation: int, record: Record) -> None:
        """Acknowledge a record; acknowledgements out of order are a fault of the stage."""
        if generation == seat.generation and seat.member.process.is_alive:
            place = Place(record.topic, record.partition)
            assert record.offset >= seat.acked.get(place, 0), "an acknowledgement out of order"
            seat.acked[place] = record.offset + 1

    async def _revoke(self, seat: Seat) -> None:
        process = seat.member.process
        if process.is_alive:
            drain = process.start(seat.member.revoke())
            await asyncio.wait([drain])
        for feed in seat.feeds:
            feed.cancel()
        if process.is_alive:
            self._committed.update(seat.acked)
        seat.acked = {}
        seat.feeds = []

    async def _rebalance(self) -> None:
        for seat in self._seats:
            await self._revoke(seat)
        living = [seat for seat in self._seats if seat.member.process.is_alive]
        self._generation += 1
        for turn, seat in enumerate(living):
            places = [place for place in self._log.places(*self._topics) if place.partition % len(living) == turn]
            seat.generation = self._generation
            process = seat.member.process
            begun = process.start(seat.member.assign(places))
            await asyncio.wait([begun])
            if process.is_alive:
                seat.feeds = [process.start(self._feed(seat, place)) for place in places]
                seat.feeds.append(process.start(self._commit(seat)))

    async def _feed(self, seat: Seat, place: Place) -> None:
        offset = self._committed.get(place, 0)
        while True:
            records = self._log.records[place]
            if offset < len(records):
                await seat.member.process.pass_time()
                await seat.member.take(records[offset])
                offset += 1
            else:
                await self._log.growth()

    async def _commit(self, seat: Seat) -> None:
        while True:
            await asyncio.sleep(COMMIT_SECONDS)
            seat.member.process.check()
            if seat in self._seats:
                self._committed.update(seat.acked)
