"""A partition of the intake on a simulated log, store and clock, which may break off at every await."""

import asyncio
import functools
import random
from collections import defaultdict

import orjson
from support.simulated import Crash, Fuse, SimulatedStore, SimulatedTable, apply
from support.trust import VERIFIER
from support.waiting import WAIT_SECONDS_MAX

from tidemill.configuration.projects import Limits
from tidemill.ingest.files.validation import Rules
from tidemill.ingest.quota import Quotas
from tidemill.ingest.sqlite import Sizes
from tidemill.ingest.streams.assembly import InputAssembly
from tidemill.ingest.streams.factory import NO_BOUND, StreamFactory
from tidemill.ingest.streams.partition import Partition
from tidemill.ingest.streams.publisher import Publisher
from tidemill.ingest.streams.stream import BufferedBytes, Resources, Times
from tidemill.ingest.streams.tables import Streams
from tidemill.kafka.partitions.ack_gate import AckGate
from tidemill.kafka.partitions.owner import Record
from tidemill.schemas.endpoints import ENDPOINTS
from tidemill.schemas.log import codec, intake, topics
from tidemill.schemas.log.intake import IntakeError
from tidemill.schemas.log.messages import Grown, Opened, Sealed
from tidemill.schemas.resources.batch import Cut
from tidemill.sealing.vault import Vault

PARTITION = 3
STEP_CHANCE = 0.1
LATE_CHANCE = 0.05
REPEAT_CHANCE = 0.2
STEP_SECONDS_MAX = 900.0
IDLE_SECONDS = 50
LIFE_SECONDS = 7200
CUT = Cut(lines_max=5, bytes_max=1000)


class Rows(SimulatedTable):
    """A table; a crash keeps a prefix of its undelivered writes, or loses them all together with the disk.

    Writes on their way to the changelog may still arrive at any later time.
    """

    def __init__(self, fuse, chance):
        super().__init__(fuse)
        self._chance = chance
        self.late = []

    async def delivered(self):
        while self._pending:
            self._fuse.step()
            apply(self.changelog, *self._pending.pop(0))
            if self.late and self._chance.random() < LATE_CHANCE:
                apply(self.changelog, *self.late.pop(0))

    def crash(self, chance, *, disk):
        pending = list(self._pending)
        super().crash(chance, disk=disk)
        self.late += pending


class World:
    """A partition, restarted after each crash, and all records that it has sent."""

    def __init__(self, seed, folder):
        self.chance, self.stepping, self.repeating = (random.Random(seed) for _ in range(3))
        self.fuse = Fuse()
        self.store = SimulatedStore(self.fuse)
        self.tables = Rows(self.fuse, random.Random(seed))
        self.folder = folder
        self.topic = ""
        """The identity of the topic."""
        self.log, self.facts, self.dead = [], [], []
        self.lines = defaultdict(set)
        """By batch and place: the ids of all lines that were sent for it."""
        self.codes = defaultdict(set)
        """By batch and place: the codes of all error lines."""
        self.requests = defaultdict(set)
        """By batch and place: the models of all requests."""
        self.models = {"m"}
        """The models that requests may name."""
        self.now = 1_790_000_000.0
        self.ahead = 0.0
        """Seconds that the wall clock was set ahead; the monotonic clock is not affected."""
        self.committed = self.crashes = 0
        self.revoked = set()
        self.cancelled = set()
        self.limits = Limits()
        self.vault = Vault(None)
        self.rules = Rules(endpoint="", models={"m": ENDPOINTS}, lines_max=NO_BOUND, bytes_max=NO_BOUND)
        self.each_tick = lambda: None

    async def send(self, topic, key, value, *, headers=()):
        self.fuse.step()
        await asyncio.sleep(0)
        if topic == topics.DEAD.name:
            self.dead.append((key, dict(headers)))
        elif topic == topics.OUTCOMES.name and dict(headers)[codec.KIND] == codec.LINES:
            batch_id, marks = codec.lines_marks(headers, len(value))
            for mark, text in zip(marks, value.splitlines(), strict=True):
                self.lines[batch_id, mark.index].add(orjson.loads(text)["custom_id"])
                self.codes[batch_id, mark.index].add(orjson.loads(text)["error"]["code"])
        elif topic == topics.OUTCOMES.name:
            self.facts.append(codec.decode_fact(value))
        self.fuse.step()
        return 0

    async def publish(self, records):
        async for record in records:
            assert record.model in self.models
            self.fuse.step()
            lines = record.value.split(b"\n")
            for place, line in zip(record.head.places(len(lines)), lines, strict=True):
                self.lines[record.head.batch_id, place].add(orjson.loads(line)["custom_id"])
                self.requests[record.head.batch_id, place].add(record.model)

    async def project(self, secret, stream, logged_at):
        del stream, logged_at
        await asyncio.sleep(0)
        if secret in self.revoked:
            raise IntakeError("its key is revoked")
        return secret.removesuffix("-2")

    def resources(self):
        """The resources of a new process."""
        return Resources(
            sender=self,
            store=self.store,
            project=self.project,
            opening=functools.partial(intake.opening, verifier=VERIFIER),
            quotas=Quotas(lambda _: self.limits, Sizes(self.folder / "sizes"), Sizes(self.folder / "batches")),
            clock=self._clock,
            monotonic=lambda: self.now,
            times=Times(
                idle_seconds=IDLE_SECONDS, age_seconds=5, input_life_seconds=LIFE_SECONDS, part_bytes=1500
            ),
            buffered=BufferedBytes(),
        )

    def publisher(self, resources):
        return Publisher(sender=self, requests=self, store=self.store, quotas=resources.quotas, vault=self.vault)

    def factory(self, resources):
        return StreamFactory(
            resources,
            rules=lambda: self.rules,
            windows=("24h",),
            default_window="24h",
            cut=CUT,
            folder=self.folder,
        )

    def partition(self):
        """The partition of a new owner, and its assembly."""
        resources = self.resources()
        publisher = self.publisher(resources)
        assembly = InputAssembly(resources, publisher, writer=f"{self.crashes:x}", wake=lambda: None)
        partition = Partition(
            tables=Streams(self.tables, self.crashes + 1, self.topic),
            factory=self.factory(resources),
            publisher=publisher,
            assembly=assembly,
            resources=resources,
        )
        return partition, assembly

    async def run(self, crashes_max):
        """Run until nothing is left to do, with crashes."""
        while True:
            self.fuse.left, self.fuse.burnt = -1, False
            if self.crashes < crashes_max:
                self.fuse.light(self.chance.randint(1, 80))
            try:
                await self._life()
            except Crash:
                self.crashes += 1
                self.tables.crash(self.chance, disk=self.chance.random() >= 0.5)
                if self.chance.random() < 0.3:
                    self.revoked ^= {"acme-2"}
            else:
                return

    async def _life(self):
        partition, assembly = self.partition()
        try:
            await self._take_all(partition)
            while partition.due_at is not None or assembly._background._tasks or assembly._joined:
                async with asyncio.timeout(WAIT_SECONDS_MAX):
                    await asyncio.gather(*assembly._background._tasks)
                await asyncio.sleep(0)
                self.now = max(self.now, partition.due_at or 0)
                await partition.tick(self.cancelled.__contains__)
                self.each_tick()
        finally:
            partition.abandon()

    async def _take_all(self, partition):
        gate, at = AckGate(), self.committed
        await partition.load()
        while at < len(self.log):
            count = self.chance.randint(1, 6)
            end = min(at + count, len(self.log))
            # The consumer may deliver records again, to the same owner or to the next one.
            again = at - self.repeating.randint(0, 2) * (self.repeating.random() < REPEAT_CHANCE)
            offsets = [*range(max(self.committed, again), end)]
            if self.repeating.random() < REPEAT_CHANCE:
                offsets += offsets[-2:]
            at = end
            await partition.take([self.arrival(gate, offset) for offset in offsets])
            self.now += self.chance.random() * 3
            if self.stepping.random() < STEP_CHANCE:
                self.ahead = self.stepping.uniform(-STEP_SECONDS_MAX, STEP_SECONDS_MAX)
            if self.chance.random() < 0.05 and (streams := list(partition._decisions.streams.values())):
                self.cancelled.add(self.chance.choice(streams).state.id)
            await partition.tick(self.cancelled.__contains__)

    def arrival(self, gate, offset):
        """The record at an offset, which the gate acknowledges."""
        key, headers, value = self.log[offset]
        ticket = gate.admit(offset)

        def ack():
            for done in gate.finish(ticket):
                self.committed = done + 1

        return Record(
            topic=topics.INTAKE.name, partition=PARTITION, offset=offset, key=key, value=value, headers=headers,
            timestamp=self.now, ack=ack,
        )  # fmt: skip

    def _clock(self):
        return self.now + self.ahead


def line(custom_id, **body):
    body = {"model": "m", "messages": [], **body}
    return orjson.dumps({"custom_id": custom_id, "method": "POST", "url": next(iter(ENDPOINTS)), "body": body})


def producing(name, *lines, ends=False):
    """A record of a stream."""
    headers = [("authorization", b"Bearer acme"), *([("tidemill-end", b"true")] if ends else [])]
    return name, tuple(headers), b"\n".join(lines)


def records(chance, count):
    """Records of some streams of two projects, with each line once."""
    found = []
    for offset in range(count):
        name, secret = chance.choice(["a", "b"]), chance.choice(["acme", "acme-2", "else"])
        lines = [
            line(f"{secret[:4]}/{name}/{offset}/{place}", **({"model": "?"} if chance.random() < 0.1 else {}))
            for place in range(chance.randint(0, 5))
        ]
        headers = [("authorization", f"Bearer {secret}".encode())]
        if chance.random() < 0.1:
            headers.append(("tidemill-end", b"true"))
        found.append((name.encode(), tuple(headers), b"\n".join(lines)))
    return found


def check(world):
    """Check that the published facts agree, and have each line once, as a request or as an error line."""
    assert not world.requests.keys() & world.codes.keys(), "a line has two verdicts"
    models = defaultdict(set)
    for (batch_id, _), found in world.requests.items():
        models[batch_id] |= found
    for fact in world.facts:
        if isinstance(fact, Grown | Sealed) and fact.model is not None:
            models[fact.batch_id].add(fact.model)
    assert all(len(found) == 1 for found in models.values()), "a batch has two models"
    sealed = {fact.batch_id: fact for fact in world.facts if isinstance(fact, Sealed)}
    opened = {fact.batch.id: fact for fact in world.facts if isinstance(fact, Opened)}
    assert opened.keys() == sealed.keys()
    places = {}
    for batch_id, fact in sealed.items():
        content = world.store.objects[fact.input.key].splitlines()
        assert len(content) == fact.total
        totals = (f.total for f in world.facts if isinstance(f, Grown) and f.batch_id == batch_id)
        assert max(totals, default=0) == fact.total
        for place, text in enumerate(content):
            custom_id = orjson.loads(text)["custom_id"]
            assert world.lines.pop((batch_id, place)) == {custom_id}
            assert custom_id not in places, "a line is in two batches"
            places[custom_id] = batch_id
            assert custom_id[:4] == opened[batch_id].project[:4]
        order = [int(orjson.loads(text)["custom_id"].split("/")[2]) for text in content]
        assert order == sorted(order)
    assert not world.lines, "lines were sent to be run that no input has"
    buried = {key for key, _ in world.dead}
    for offset, (_, _, value) in enumerate(world.log):
        for text in value.splitlines():
            is_dead = f"{topics.INTAKE.name}/{PARTITION}/{offset}" in buried
            assert is_dead or orjson.loads(text)["custom_id"] in places, "a line is lost"
    assert all("authorization" not in headers for _, headers in world.dead)


async def streams_left(world):
    """The streams that the next owner would take over."""
    streams = Streams(world.tables, world.crashes + 2)
    world.fuse.left, world.fuse.burnt = -1, False
    _, states = await streams.take_over()
    return states
