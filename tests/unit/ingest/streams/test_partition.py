"""Streams under crashes: wherever the owner of a partition breaks off, each line has one place in one batch."""

import asyncio
import random
from collections import defaultdict

import orjson
import pytest
from support.simulated import Crash, Fuse, SimulatedStore, SimulatedTable, apply
from support.waiting import WAIT_SECONDS_MAX

from tidemill import retrying
from tidemill.configuration.settings import Limits
from tidemill.ingest.quota import Quotas
from tidemill.ingest.sqlite import Sizes
from tidemill.ingest.streams.assembly import InputAssembly
from tidemill.ingest.streams.factory import StreamFactory
from tidemill.ingest.streams.partition import Partition
from tidemill.ingest.streams.publisher import SLICE_LINES, Publisher
from tidemill.ingest.streams.stream import BufferedBytes, Times
from tidemill.ingest.streams.tables import Streams
from tidemill.kafka.partitions import held_records
from tidemill.kafka.partitions.ack_gate import AckGate
from tidemill.kafka.partitions.owner import Record
from tidemill.schemas import ids
from tidemill.schemas.endpoints import ENDPOINTS
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.intake import IntakeError, StreamOptions
from tidemill.schemas.log.messages import Grown, Opened, Sealed, Stalled
from tidemill.schemas.ports import NotFound
from tidemill.schemas.resources.batch import Cut
from tidemill.schemas.resources.file import OBJECT_BYTES
from tidemill.schemas.resources.waiting import Reason
from tidemill.sealing.vault import Vault
from tidemill.sealing.wrapping import KeyUnavailable

SEEDS = range(150)
PARTITION = 3
STEP_CHANCE = 0.1
LATE_CHANCE = 0.05
STEP_SECONDS_MAX = 900.0
IDLE_SECONDS = 50
CUT = Cut(lines_max=5, bytes_max=1000)


REPEAT_CHANCE = 0.2


class Rows(SimulatedTable):
    """The table; a crash keeps a prefix of what was not delivered, or with the disk gone nothing of it.

    What was on its way to the changelog may come there at any later time.
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
    """A partition, started again after each crash, and what it has told."""

    def __init__(self, seed, folder):
        self.chance, self.stepping, self.repeating = (random.Random(seed) for _ in range(3))
        self.fuse = Fuse()
        self.store = SimulatedStore(self.fuse)
        self.tables = Rows(self.fuse, random.Random(seed))
        self.folder = folder
        self.log, self.facts, self.dead = [], [], []
        self.lines = defaultdict(set)
        """By batch and place: all that was ever told to be there."""
        self.codes = defaultdict(set)
        """By batch and place: all that was told to be wrong with it."""
        self.now = 1_790_000_000.0
        self.ahead = 0.0
        """By how much the wall clock was set, which says nothing of how long something lasts."""
        self.committed = self.crashes = 0
        self.revoked = set()
        self.cancelled = set()
        self.limits = Limits()
        self.vault = None
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

    async def publish(self, model, records):
        assert model == "m"
        async for record in records:
            self.fuse.step()
            for place, line in enumerate(record.value.split(b"\n"), record.head.first):
                self.lines[record.head.batch_id, place].add(orjson.loads(line)["custom_id"])

    async def project(self, secret, stream, logged_at):
        del stream, logged_at
        await asyncio.sleep(0)
        if secret in self.revoked:
            raise IntakeError("its key is revoked")
        return secret.removesuffix("-2")

    async def run(self, crashes_max):
        """Until nothing is left to do."""
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
        news = asyncio.Event()
        quotas = Quotas(lambda _: self.limits, Sizes(self.folder / "sizes"), Sizes(self.folder / "batches"))
        publisher = Publisher(sender=self, requests=self, store=self.store, quotas=quotas, vault=self.vault)
        assembly = InputAssembly(
            store=self.store, sender=self, publisher=publisher, clock=self._clock, writer=f"{self.crashes:x}",
            wake=news.set,
        )  # fmt: skip
        factory = StreamFactory(
            store=self.store,
            models={"m": ENDPOINTS},
            windows=("24h",),
            cut=CUT,
            folder=self.folder,
            clock=self._clock,
            monotonic=lambda: self.now,
        )
        partition = Partition(
            tables=Streams(self.tables, self.crashes + 1),
            sender=self, project=self.project, factory=factory, quotas=quotas,
            publisher=publisher, assembly=assembly, clock=self._clock, monotonic=lambda: self.now,
            times=Times(idle_seconds=IDLE_SECONDS, age_seconds=5, part_bytes=1500),
        )  # fmt: skip
        try:
            await self._take_all(partition)
            while partition.due_at is not None or assembly._tasks or assembly._joined:
                async with asyncio.timeout(WAIT_SECONDS_MAX):
                    await asyncio.gather(*assembly._tasks)
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
            # The consumer may bring records once more, in the same group or in the next one.
            again = at - self.repeating.randint(0, 2) * (self.repeating.random() < REPEAT_CHANCE)
            offsets = [*range(max(self.committed, again), end)]
            if self.repeating.random() < REPEAT_CHANCE:
                offsets += offsets[-2:]
            at = end
            await partition.take([self._arrival(gate, offset) for offset in offsets])
            self.now += self.chance.random() * 3
            if self.stepping.random() < STEP_CHANCE:
                self.ahead = self.stepping.uniform(-STEP_SECONDS_MAX, STEP_SECONDS_MAX)
            if self.chance.random() < 0.05 and (streams := list(partition._decisions.streams.values())):
                self.cancelled.add(self.chance.choice(streams).state.id)
            await partition.tick(self.cancelled.__contains__)

    def _arrival(self, gate, offset):
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


def records(chance, count):
    """Records of some streams of two projects; each line of them is there once."""
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
    """What was told fits together, and nothing is lost or double."""
    sealed = {fact.batch_id: fact for fact in world.facts if isinstance(fact, Sealed)}
    opened = {fact.batch.id: fact for fact in world.facts if isinstance(fact, Opened)}
    assert opened.keys() == sealed.keys()
    places = {}
    for batch_id, fact in sealed.items():
        content = world.store.objects[fact.input.key].splitlines()
        assert len(content) == fact.total
        assert max(f.total for f in world.facts if isinstance(f, Grown) and f.batch_id == batch_id) == fact.total
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


@pytest.mark.parametrize("seed", SEEDS)
async def test_crashes_lose_and_double_nothing(seed, tmp_path):
    """Crashes at any await, the disk lost at half of them, keys revoked and batches cancelled in between."""
    world = World(seed, tmp_path)
    world.log = records(world.chance, 60)
    await world.run(world.chance.randint(0, 12))
    check(world)
    assert not [key for key in world.store.objects if key.startswith("intake/")] or world.crashes
    assert not await streams_left(world)


@pytest.mark.parametrize("seed", SEEDS[:40])
async def test_parts_that_cannot_be_read_hold_up_their_stream_alone(seed, tmp_path, monkeypatch):
    """Gone or refused for a while, whoever reads them; crashes besides."""
    monkeypatch.setattr(retrying, "FIRST_SECONDS", 0.0)
    world = World(seed, tmp_path)
    world.log = records(world.chance, 60)
    whole, trouble, failed = world.store.read, random.Random(seed), []

    async def read(key, start=0, end=None):
        if key.startswith("intake/") and trouble.random() < 0.3:
            failed.append(key)
            raise trouble.choice([NotFound(key), PermissionError(key)])
        async for chunk in whole(key, start, end):
            yield chunk

    monkeypatch.setattr(world.store, "read", read)
    await world.run(world.chance.randint(0, 6))
    check(world)
    assert failed
    assert not await streams_left(world)


async def streams_left(world):
    """What the next owner would take over."""
    streams = Streams(world.tables, world.crashes + 2)
    world.fuse.left, world.fuse.burnt = -1, False
    await streams.take_over()
    return list(streams.states())


class Keys:
    """A wrapper of keys that is out of reach for one project."""

    def __init__(self, project):
        self.project = project

    async def wrap(self, project, place, key):
        del place
        if project == self.project:
            raise KeyUnavailable("no key")
        return "k", key

    async def unwrap(self, project, place, name, wrapped):
        del project, place, name
        return wrapped


def refusing(world, monkeypatch, refuses):
    """Have the store refuse objects, which may appear there all the same, after others of the same key."""
    write, late = world.store.write, []

    async def refused(key, chunks):
        content = b"".join([chunk async for chunk in chunks])
        if refuses(key):
            late.append((key, content))
            raise PermissionError(13, "Permission denied", f"/secret/{key}")

        async def again():
            yield content

        size = await write(key, again())
        if late and world.repeating.random() < 0.5:
            key, content = late.pop(0)
            world.store.objects[key] = content
        return size

    monkeypatch.setattr(world.store, "write", refused)


@pytest.mark.parametrize("seed", SEEDS[:60])
async def test_parts_that_the_store_refuses_lose_and_double_nothing(seed, tmp_path, monkeypatch):
    """They are tried again as parts of other numbers, since the first ones may appear yet; crashes besides."""
    monkeypatch.setattr(retrying, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(held_records, "pause_seconds", lambda tries: 15.0 + tries)
    world = World(seed, tmp_path)
    world.log = records(world.chance, 60)
    trouble, refused = random.Random(seed), []
    whole = world.store.read

    async def read(key, start=0, end=None):
        if key.startswith("intake/") and trouble.random() < 0.2:
            raise NotFound(key)
        async for chunk in whole(key, start, end):
            yield chunk

    monkeypatch.setattr(world.store, "read", read)

    def refuses(key):
        refused.append(found := key.startswith("intake/") and trouble.random() < 0.4)
        return found

    refusing(world, monkeypatch, refuses)
    await world.run(world.chance.randint(0, 12))
    check(world)
    assert any(refused)
    assert not await streams_left(world)


class Secrets:
    """The log of keys."""

    async def send(self, topic, key, value, *, headers=()):
        del topic, key, value, headers
        return 0


@pytest.mark.parametrize("what", ["store", "key"])
async def test_a_stream_waits_alone(what, tmp_path, monkeypatch):
    """While its parts are refused or its key is missing, the others of the partition end, and its batch says why.

    A batch that begins under the same name meanwhile is another one.
    """
    world, is_broken = World(0, tmp_path), True
    keys = Keys("acme")
    if what == "key":
        world.vault = Vault(Secrets(), wrapper=keys, seals=True)
    held = ids.stream_batch_id(PARTITION, 0)
    refusing(world, monkeypatch, lambda key: what == "store" and is_broken and held in key)
    other = [("authorization", b"Bearer else"), ("tidemill-end", b"true")]
    world.log = [
        producing(b"a", line("acme/a/0/0")),
        (b"b", tuple(other), line("else/b/1/0")),
        producing(b"a", line("acme/a/2/0"), ends=True),
        (b"b", tuple(other), line("else/b/3/0")),
        producing(b"a", line("acme/a/4/0"), ends=True),
    ]

    def sealed():
        return {fact.batch_id: fact.total for fact in world.facts if isinstance(fact, Sealed)}

    def mend():
        nonlocal is_broken
        others = {ids.stream_batch_id(PARTITION, offset) for offset in (1, 3)}
        if is_broken and others <= sealed().keys():
            assert held not in sealed()
            is_broken, keys.project = False, None

    world.each_tick = mend
    await world.run(0)
    check(world)
    assert not is_broken
    assert sealed()[held] == 2
    assert len(sealed()) == 4
    waits = [fact.waiting for fact in world.facts if isinstance(fact, Stalled) and fact.batch_id == held]
    assert waits[0][0].reason is (Reason.STORE if what == "store" else Reason.KEY)
    assert not waits[-1]
    assert "/secret" not in str(waits)


def producing(name, *lines, ends=False):
    """A record of a stream."""
    headers = [("authorization", b"Bearer acme"), *([("tidemill-end", b"true")] if ends else [])]
    return name, tuple(headers), b"\n".join(lines)


async def test_lines_beyond_the_limit_are_error_lines(tmp_path):
    """They are of the batch and do not run, each with a code to retry them by; the others run."""
    world = World(0, tmp_path)
    world.limits = Limits(lines_enqueued_max=3)
    world.log = [producing(b"a", *(line(f"acme/a/0/{place}") for place in range(5)), ends=True)]
    await world.run(0)
    assert [place for (_, place), codes in sorted(world.codes.items()) if codes == {"lines_enqueued_max"}] == [
        3,
        4,
    ]
    (fact,) = [fact for fact in world.facts if isinstance(fact, Sealed)]
    assert fact.total == 5
    check(world)


async def test_a_batch_beyond_the_limit_is_not_opened(tmp_path):
    """The record is a dead letter that says why; once a batch is over there is room."""
    world = World(0, tmp_path)
    world.limits = Limits(batches_in_progress_max=1)
    world.log = [producing(b"a", line("acme/a/0/0")), producing(b"b", line("acme/b/1/0"), ends=True)]
    await world.run(0)
    ((_, headers),) = world.dead
    reason = headers["tidemill-dead-reason"].decode()
    assert reason == "its project has 1 batches in progress and may have 1"
    assert len([fact for fact in world.facts if isinstance(fact, Opened)]) == 1
    check(world)


@pytest.mark.parametrize("seed", range(40))
async def test_bytes_beyond_the_limit_are_dead_letters(seed, tmp_path):
    """Whatever crashes: a record is in the input or is one, and one that was refused still ends its stream."""
    size = len(line("acme/a/0/0")) + 1
    world = World(seed, tmp_path)
    most = 3 * size + OBJECT_BYTES
    world.limits = Limits(bytes_stored_max=most)
    world.log = [producing(b"a", line(f"acme/a/{place}/0"), ends=place == 4) for place in range(5)]
    await world.run(world.chance.randint(0, 6))
    assert {fact.total for fact in world.facts if isinstance(fact, Sealed)} == {3}
    reasons = {headers["tidemill-dead-reason"] for _, headers in world.dead}
    assert reasons == {f"its project stores {most} bytes and may store {most}".encode()}
    check(world)


async def test_a_stream_says_how_its_output_comes(tmp_path):
    """Its first record asks for numbered files; one that asks for anything else opens nothing."""
    world = World(0, tmp_path)
    bearer = ("authorization", b"Bearer acme")
    world.log = [
        (output, (bearer, ("tidemill-output", output), ("tidemill-end", b"true")), line(output.decode()))
        for output in (b"one", b"numbered", b"two")
    ]
    await world.run(0)
    opened = {fact.batch.tidemill.stream: fact.batch for fact in world.facts if isinstance(fact, Opened)}
    assert {name: batch.tidemill.numbered for name, batch in opened.items()} == {"one": None, "numbered": CUT}
    ((_, headers),) = world.dead
    assert "tidemill-output" in headers["tidemill-dead-reason"].decode()


async def test_dead_letters_do_not_wait_for_one_another(tmp_path, monkeypatch):
    """Whoever may write to the topic may send any number of them, and none is acknowledged before its letter."""
    world, under_way = World(0, tmp_path), [0, 0]
    send = world.send

    async def slow(topic, key, value, *, headers=()):
        under_way[0] += 1
        under_way[1] = max(under_way)
        for _ in range(5):
            await asyncio.sleep(0)
        under_way[0] -= 1
        assert len(world.dead) >= world.committed
        return await send(topic, key, value, headers=headers)

    monkeypatch.setattr(world, "send", slow)
    world.revoked = {"acme"}
    world.log = [producing(b"a", line(f"acme/a/{place}/0")) for place in range(60)]
    await world.run(0)
    assert (len(world.dead), world.committed, under_way[1]) == (60, 60, 6)


async def test_a_record_beyond_its_bounds_is_a_dead_letter(tmp_path):
    """The stream goes on with the next one."""
    world = World(0, tmp_path)
    world.log = [
        producing(b"a", line("acme/a/0/0")),
        producing(b"a", *[b"x"] * 2_000, ends=True),
        producing(b"a", line("acme/a/2/0"), ends=True),
    ]
    await world.run(0)
    ((_, headers),) = world.dead
    assert headers["tidemill-dead-reason"].endswith(b"too short to be requests")
    assert [fact.total for fact in world.facts if isinstance(fact, Sealed)] == [2]


async def test_others_have_their_turn_while_lines_are_checked(tmp_path):
    """However many lines and faults a group has; and of a fault nothing is kept but what is said."""
    world = World(0, tmp_path)
    turns = 0

    async def others():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    stretch = 0, [b"{}" + b" " * 70 + b"x"] * 8_192
    quotas = Quotas(lambda _: world.limits, Sizes(tmp_path / "sizes"), Sizes(tmp_path / "batches"))
    stream = _stream(world)
    publisher = Publisher(sender=world, requests=world, store=world.store, quotas=quotas)
    task = asyncio.create_task(others())
    checked = await publisher.check(stream, [stretch])
    task.cancel()
    assert (len(checked.good), len(checked.faults)) == (0, 8_192)
    assert turns >= 8_192 // SLICE_LINES
    assert all(fault.__traceback__ is None for _, _, fault in checked.faults)
    await publisher.publish(stream, checked)
    assert len(world.codes) == 8_192


def _stream(world):
    factory = StreamFactory(
        store=world.store, models={"m": ENDPOINTS}, windows=("24h",), cut=CUT, folder=world.folder,
        clock=world._clock, monotonic=lambda: world.now,
    )  # fmt: skip
    return factory.create(("acme", "a"), (PARTITION, 0), StreamOptions(), [])


async def test_all_partitions_together_hold_a_bounded_number_of_bytes():
    """One flushes what it has where the others have much."""
    held, (one, two) = BufferedBytes(), (object(), object())
    assert held.now(one, 5) == 5
    assert held.now(two, 7) == 12
    assert held.now(one, 1) == 8
    held.forget(two)
    assert held.now(one, 1) == 1
