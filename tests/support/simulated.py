"""A partition of results on a simulated log, store and clock, which may break off at every await.

A run is a function of its seed: the events, their order, their repetition, and the crashes.
"""

import asyncio
import random
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Sequence
from decimal import Decimal

from support.results_limits import file_rules, limits

from tidemill.kafka.partitions.ack_gate import AckGate
from tidemill.results.facts import Early
from tidemill.results.partition import Partition
from tidemill.results.resources import Owner, Resources
from tidemill.results.state.reducer import State
from tidemill.results.state.tables import Tables
from tidemill.schemas.lifecycle import MOVES
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import BatchRecord, LedgerRecord, Tick
from tidemill.schemas.ports import NotFound, chained, once
from tidemill.schemas.resources.batch import Status
from tidemill.schemas.resources.bill import Tariff
from tidemill.storage.buckets import Buckets

COMMIT_CHANCE = 0.2
"""Chance of a commit after an event, and before a crash; events acknowledged since then come again after it."""
LATE_CHANCE = 0.1
"""Chance that a late write takes effect before the next event."""


def leads_to(status: Status, other: Status) -> bool:
    """Whether the lifecycle table allows a path of moves; a batch is not published at each step."""
    return other in MOVES[status] or any(leads_to(step, other) for step in MOVES[status])


async def surely() -> None:
    """Return at once: this process owns the partition."""


class Crash(BaseException):
    """The process crashes."""


class Fuse:
    """Once lit, raises a crash at one of the next awaits."""

    def __init__(self) -> None:
        self.left = -1
        self.burnt = False
        self.faulty: asyncio.Task[None] | None = None
        """A task one of whose next steps fails once, without a crash."""
        self.faulty_steps = 0
        self.faults = 0

    def light(self, steps: int) -> None:
        self.left, self.burnt = steps, False

    def step(self) -> None:
        if self.burnt:
            raise Crash
        if self.faulty is not None and self.faulty is asyncio.current_task():
            self.faulty_steps -= 1
            if self.faulty_steps < 0:
                self.faulty = None
                self.faults += 1
                raise ValueError("a fault of ours")
        self.left -= 1
        if self.left == 0:
            self.burnt = True
            raise Crash


class SimulatedStore:
    """Objects in memory.

    A write of an ended process may take effect at any later time: the process may only be frozen, or its request
    be on its way.
    """

    def __init__(self, fuse: Fuse) -> None:
        self.objects: dict[str, bytes] = {}
        self.late: list[tuple[str, bytes]] = []
        self._fuse = fuse

    async def write(self, key: str, chunks: AsyncIterable[bytes]) -> int:
        self._fuse.step()
        content = b"".join([chunk async for chunk in chunks])
        try:
            self._fuse.step()
        except Crash:
            self.late.append((key, content))
            raise
        self.objects[key] = content
        self._fuse.step()
        return len(content)

    async def create(self, key: str, content: bytes) -> bool:
        if key in self.objects:
            return False
        await self.write(key, once(content))
        return True

    async def join(self, key: str, sources: Sequence[str]) -> int:
        return await self.write(key, chained(self, sources))

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        if key not in self.objects:
            raise NotFound(key)
        content = self.objects[key][start:end]
        for at in range(0, len(content), 64):
            yield content[at : at + 64]

    async def size(self, key: str) -> int:
        return len(self.objects[key])

    async def free(self) -> int | None:
        return None

    async def delete(self, key: str) -> None:
        self._fuse.step()
        self.objects.pop(key, None)

    async def keys(self, prefix: str) -> AsyncIterator[str]:
        for key in sorted(self.objects):
            if key.startswith(prefix):
                yield key

    async def close(self) -> None: ...


class SimulatedTable:
    """A table whose local content may be ahead of its changelog, as Faust's may."""

    def __init__(self, fuse: Fuse) -> None:
        self.local: dict[bytes, bytes] = {}
        self.changelog: dict[bytes, bytes] = {}
        self._pending: list[tuple[bytes, bytes | None]] = []
        self._fuse = fuse

    def get(self, key: bytes) -> bytes | None:
        return self.local.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        self.local[key] = value
        self._pending.append((key, value))

    def delete(self, key: bytes) -> None:
        self.local.pop(key, None)
        self._pending.append((key, None))

    def scan(self, prefix: bytes, *, after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        for key in sorted(self.local):
            if key.startswith(prefix) and key >= after:
                yield key, self.local[key]

    async def delivered(self) -> None:
        while self._pending:
            self._fuse.step()
            apply(self.changelog, *self._pending.pop(0))

    def crash(self, chance: random.Random, *, disk: bool) -> None:
        """Lose undelivered writes: the changelog stays; with the disk, so do local writes up to some point."""
        self.local = dict(self.changelog)
        if disk:
            for key, value in self._pending[: chance.randint(0, len(self._pending))]:
                apply(self.local, key, value)
        self._pending.clear()


class SimulatedTables(Tables):
    """The tables of one partition."""

    def __init__(self, fuse: Fuse) -> None:
        self.states = SimulatedTable(fuse)
        self.bitmaps = SimulatedTable(fuse)
        super().__init__(self.states, self.bitmaps)
        self.closing: Callable[[State], object] | None = None
        """Called with a batch that is being closed, before its state is written."""

    def put_state(self, state: State) -> None:
        assert state.batch is None or state.early == Early(), "test_tables.py::test_each_record_fits"
        if self.closing is not None and state.closed and not state.is_over:
            self.closing(state)
        super().put_state(state)

    def crash(self, chance: random.Random) -> None:
        disk = chance.random() >= 0.5
        for table in (self.states, self.bitmaps):
            table.crash(chance, disk=disk)
        self._kept_parts.clear()


def apply(content: dict[bytes, bytes], key: bytes, value: bytes | None) -> None:
    if value is None:
        content.pop(key, None)
    else:
        content[key] = value


class SimulatedLog:
    """The partition's events, and the published records."""

    def __init__(self, fuse: Fuse) -> None:
        self.events: list[tuple[str, tuple[tuple[str, bytes], ...], bytes]] = []
        self.published: list[BatchRecord] = []
        self.ledger: list[LedgerRecord] = []
        self.deleted: list[tuple[str, int]] = []
        """Batches whose records were withdrawn, and how many records were published before."""
        self.withdrawn: set[str] = set()
        """Files whose records were withdrawn."""
        self.erased: dict[str, bytes | None] = {}
        self.files: dict[str, str] = {}
        """The key of each file, by its id."""
        self._fuse = fuse

    async def send(self, topic, key, value, *, headers=(), partition=None) -> int:
        del partition
        self._fuse.step()
        await asyncio.sleep(0)
        if topic == topics.SECRETS.name:
            self.erased[key] = value
        elif topic == topics.BATCHES.name and value is None:
            self.deleted.append((key, len(self.published)))
        elif topic == topics.FILES.name and value is None:
            self.withdrawn.add(key)
        elif topic == topics.BATCHES.name:
            self.published.append(codec.decode_batch(value))
        elif topic == topics.LEDGER.name:
            self.ledger.append(codec.decode_ledger(value).model_copy(update={"owner": 0}))
        elif topic == topics.FILES.name:
            record = codec.decode_file(value)
            assert self.files.setdefault(record.file.id, record.key) == record.key, "a file has two keys"
        elif topic == topics.OUTCOMES.name:
            self.events.append((topic, tuple(headers), value))
        self._fuse.step()
        return len(self.events)

    async def outcomes(self, partition, since):
        """All results, as a recovery reads them."""
        del partition, since
        for topic, headers, value in list(self.events):
            if topic == topics.OUTCOMES.name:
                self._fuse.step()
                yield headers, value


class Simulation:
    """One partition, started again after each crash."""

    def __init__(self, seed: int, *, part_bytes: int = 2_000, bill_copies: bool = False) -> None:
        self.chance = random.Random(seed)
        random.seed(seed)
        self.fuse = Fuse()
        self.store = SimulatedStore(self.fuse)
        self.tables = SimulatedTables(self.fuse)
        self.log = SimulatedLog(self.fuse)
        self.now = 1_790_000_000.0
        self.committed = 0
        self._acked = 0
        self.crashes = 0
        # Parts sealed by age differ between a process and its successor.
        age = self.chance.choice((1, 3, 10))
        files = file_rules(part_bytes=part_bytes, tariff_of=self._tariff, bill_copies=bill_copies)
        self._limits = limits(files=files, part_age_seconds=age)

    async def run(self, *, crashes_max: int = 1, crash_at: int | None = None) -> None:
        """Run until every event is acknowledged and nothing is due; `crash_at` is the step of each crash."""
        while True:
            self.fuse.left, self.fuse.burnt = -1, False
            if self.crashes < crashes_max:
                self.fuse.light(crash_at or self.chance.randint(1, 60))
            try:
                await self._life()
            except Crash:
                self.crashes += 1
                if self.chance.random() < COMMIT_CHANCE:
                    self.committed = self._acked
                self._acked = self.committed
                self.tables.crash(self.chance)
                continue
            return

    def _tariff(self, model: str | None, window: str) -> Tariff:
        """The price, which changes with each crash."""
        del window
        price = Decimal(self.crashes + 1) + len(model or "")
        return Tariff(input_per_million=price, output_per_million=Decimal("0.3"))

    def monotonic(self) -> float:
        return self.now

    def partition(self) -> Partition:
        """A new owner of the partition."""
        return Partition(
            0,
            tables=self.tables,
            resources=Resources(
                sender=self.log,
                history=self.log.outcomes,
                store=self.store,
                clock=lambda: self.now,
                monotonic=self.monotonic,
                limits=self._limits,
                compactions=asyncio.Semaphore(1),
                buckets=Buckets({}),
                wake=lambda: None,
            ),
            owner=Owner(writer=f"{self.crashes:08x}", generation=self.crashes + 1, confirm=surely),
        )

    async def _life(self) -> None:
        partition = self.partition()
        gate: AckGate[int] = AckGate()
        at = self.committed
        try:
            await partition.load()
            while True:
                while at < len(self.log.events):
                    if self.store.late and self.chance.random() < LATE_CHANCE:
                        key, content = self.store.late.pop()
                        self.store.objects[key] = content
                    await self.handle(partition, gate, at)
                    await partition.settle()
                    at += 1
                    if self.chance.random() < COMMIT_CHANCE:
                        self.committed = self._acked
                    self.now += self.chance.random()
                while partition._background._tasks and at == len(self.log.events):
                    done, _ = await asyncio.wait(partition._background._tasks, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()
                    await partition.settle()
                if at == len(self.log.events):
                    if partition.due_at is None or not partition.active_batches:
                        return
                    self.now = max(self.now, partition.due_at)
                    tick = Tick(at=self.now, writer=partition.owner.writer)
                    self.log.events.append(
                        (topics.OUTCOMES.name, ((codec.KIND, tick.kind.encode()),), codec.encode(tick))
                    )
        finally:
            partition.abandon()

    async def handle(self, partition: Partition, gate: AckGate[int], at: int) -> None:
        """Have the partition apply one of the log's events."""
        topic, headers, value = self.log.events[at]
        ticket = gate.admit(at)

        def ack() -> None:
            for done in gate.finish(ticket):
                self._acked = done + 1

        if topic == topics.COMMANDS.name:
            await partition.command(codec.decode_command(value), ack)
        elif dict(headers).get(codec.KIND) == codec.LINES:
            batch_id, marks = codec.lines_marks(headers, len(value))
            await partition.lines(batch_id, marks, value, ack, model=codec.lines_model(headers))
        else:
            fact = codec.decode_fact(value)
            if isinstance(fact, Tick) and not fact.writer:
                fact = fact.model_copy(update={"writer": partition.owner.writer})
            await partition.fact(fact, ack)
