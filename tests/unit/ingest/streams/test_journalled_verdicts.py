"""Lines that come again after a crash keep their verdict, whatever models, aliases and limits are by then."""

import dataclasses
import itertools
import random

import pytest
from support.checking import CHAT
from support.intake import PARTITION, World, check, line, producing, streams_left

from tidemill import retrying
from tidemill.configuration.projects import Limits
from tidemill.ingest.streams import stream as streams
from tidemill.ingest.streams.factory import SeenIds
from tidemill.ingest.streams.publisher import Publisher
from tidemill.ingest.streams.tables import Streams
from tidemill.kafka.partitions.ack_gate import AckGate
from tidemill.schemas import ids
from tidemill.schemas.log.messages import Grown

BATCH = ids.stream_batch_id(PARTITION, 0)


class Changing(World):
    """Owners whose catalog and limits differ."""

    def __init__(self, folder, seed=0):
        super().__init__(seed, folder)
        self.changing, self.models = random.Random(seed), {"m", "n"}
        self.serve("m")

    def serve(self, *models, **aliases):
        """Let the catalog have these models."""
        self.rules = dataclasses.replace(self.rules, models=dict.fromkeys(models, (CHAT,)), aliases=aliases)

    async def _life(self):
        models = self.changing.sample(["m", "n"], k=self.changing.randint(0, 2))
        self.serve(*models, **({"also": self.changing.choice(models)} if models else {}))
        self.limits = Limits(lines_enqueued_max=self.changing.choice([4, 1_000]))
        await super()._life()

    async def owner(self):
        """Let a new owner take all records again, and none of its lines be written to a part."""
        self.fuse.left, self.fuse.burnt = -1, False
        self.crashes += 1
        partition, _ = self.partition()
        await partition.load()
        gate = AckGate()
        try:
            await partition.take([self.arrival(gate, offset) for offset in range(len(self.log))])
        finally:
            partition.abandon()

    def at(self, place):
        """The models and error codes that the log has for a line of the first stream."""
        return self.requests.get((BATCH, place), set()), self.codes.get((BATCH, place), set())


def ways(chance, count):
    """Records of two streams whose lines name different models."""
    found = []
    for offset in range(count):
        name = chance.choice([b"a", b"b"])
        texts = [
            line(f"acme/{name.decode()}/{offset}/{place}", model=chance.choice(["m", "m", "n", "also", "?"]))
            for place in range(chance.randint(0, 4))
        ]
        found.append(producing(name, *texts, ends=chance.random() < 0.1))
    return found


@pytest.mark.parametrize("seed", range(60))
async def test_no_line_has_two_verdicts(seed, tmp_path):
    """Each is a request for the one model of its batch, or an error line, although owners change and crash."""
    world = Changing(tmp_path, seed)
    world.log = ways(world.chance, 30)
    await world.run(world.chance.randint(1, 12))
    check(world)
    assert not await streams_left(world)


@pytest.mark.parametrize("after", [{}, {"m": "n"}, {"also": "n"}], ids=["gone", "an alias", "another alias"])
async def test_requests_come_again_for_their_model(after, tmp_path):
    """Also if it left the catalog, or the name that the lines have belongs to another model."""
    world = Changing(tmp_path)
    world.serve("m", also="m")
    world.log = [producing(b"s", line("1", model="also"), line("2"), line("3", model="?"))]
    await world.owner()
    world.serve("n", **after)
    world.log.append(producing(b"s", line("4"), line("1")))
    await world.owner()
    for place in (0, 1):
        assert world.at(place) == ({"m"}, set())
    assert world.at(2) == (set(), {"model_not_found"})
    assert world.at(4) == (set(), {"duplicate_custom_id"})
    assert {fact.model for fact in world.facts if isinstance(fact, Grown)} == {"m"}


async def test_refused_lines_stay_refused_and_choose_no_model(tmp_path):
    """Their model was added meanwhile; a later line may name it, or another one."""
    world = Changing(tmp_path)
    world.log = [producing(b"s", line("1", model="n"))]
    await world.owner()
    world.serve("m", "n")
    world.log.append(producing(b"s", line("2")))
    await world.owner()
    assert world.at(0) == (set(), {"model_not_found", "invalid_request"})
    assert world.at(1) == ({"m"}, set())


@pytest.mark.parametrize("after", [3, 1, 4])
async def test_limits_refuse_the_same_lines(after, tmp_path):
    """`tidemill.batches` shows none of them yet, or the limit is another one; a new line counts with them."""
    world = Changing(tmp_path)
    world.limits = Limits(lines_enqueued_max=3)
    world.log = [producing(b"s", *(line(f"{number}") for number in range(5)))]
    await world.owner()
    world.limits = Limits(lines_enqueued_max=after)
    world.log.append(producing(b"s", line("6")))
    await world.owner()
    assert [world.at(place)[0] for place in range(6)] == [{"m"}] * 3 + [set()] * 2 + [
        {"m"} if after > 3 else set()
    ]
    assert all(world.at(place)[1] == {"lines_enqueued_max", "invalid_request"} for place in (3, 4))


@pytest.mark.parametrize(("failing", "waits"), [(-1, 1), (1, 2)], ids=["", "with a full disk"])
async def test_a_verdict_is_kept_before_its_lines_are_published(failing, waits, tmp_path, monkeypatch):
    """The owner waits for the changelog once, unless the check breaks off; the next attempt goes on with it."""
    world, calls, events = Changing(tmp_path), itertools.count(), []
    delivered, publish, setdefault = world.tables.delivered, Publisher.publish, SeenIds.setdefault

    def full(*args):
        if next(calls) == failing:
            raise OSError(28, "No space left on device")
        return setdefault(*args)

    async def waited():
        events.append("wait")
        await delivered()

    async def published(publisher, stream, checked):
        (row,) = (value for key, value in world.tables.changelog.items() if key.startswith(BATCH.encode()))
        state = streams.State.model_validate_json(row)
        events.append((state.judged, state.refused, state.model))
        await publish(publisher, stream, checked)

    monkeypatch.setattr(SeenIds, "setdefault", full)
    monkeypatch.setattr(world.tables, "delivered", waited)
    monkeypatch.setattr(Publisher, "publish", published)
    world.serve("m", "n")
    world.log = [producing(b"s", line("1"), line("2", model="n"))]
    await world.owner()
    loading = 2
    assert events[loading:] == ["wait"] * waits + [(2, "2", "m")]


async def test_a_verdict_counts_only_with_its_decision(tmp_path):
    """A crash may leave the local table ahead: the next owner decides on the record anew, for any model."""
    world = Changing(tmp_path)
    world.log = [producing(b"s", line("1", model="?")), producing(b"s", line("2"), line("3", model="?"))]
    await world.owner()
    (state,) = await streams_left(world)
    assert (state.judged, state.refused, state.model) == (3, "5", "m")
    kept = state.until(0)
    assert (kept.judged, kept.refused, kept.model) == (1, "1", None)
    assert state.until(1) is state
    assert state.until(-1).judged == 0


async def test_a_bounded_number_of_lines_waits_for_their_part(tmp_path, monkeypatch):
    """However short they are, and although the store refuses parts: a state has room for so many verdicts."""
    monkeypatch.setattr(streams, "JOURNAL_LINES_MAX", 8)
    monkeypatch.setattr(retrying, "FIRST_SECONDS", 0.0)
    world, waiting, attempts = Changing(tmp_path), [], itertools.count()
    put, write = Streams.put, world.store.write

    def noted(tables, state):
        waiting.append(state.judged - state.kept_lines)
        put(tables, state)

    async def refusing(key, chunks):
        if next(attempts) < 5:
            raise OSError
        await write(key, chunks)

    monkeypatch.setattr(Streams, "put", noted)
    monkeypatch.setattr(world.store, "write", refusing)
    world.log = [producing(b"s", *(line(f"{at}/{place}") for place in range(3))) for at in range(6)]
    partition, gate = world.partition()[0], AckGate()
    await partition.load()
    for offset in range(6):
        await partition.take([world.arrival(gate, offset)])
    assert next(attempts) > 5
    assert max(waiting) == 9
    partition.abandon()


@pytest.mark.parametrize("refused", ["0", "1", "3"])
async def test_a_line_that_is_not_refused_keeps_its_model(tmp_path, refused):
    """Its verdict may come with a later record, whose decision the log does not have."""
    world = Changing(tmp_path)
    world.log = [producing(b"s", line("1"), line("2"))]
    await world.owner()
    (state,) = await streams_left(world)
    later = ((0, 0, 2, -1), (1, 2, 1, -1))
    state = state.model_copy(
        update={"model": "m", "chosen_before": 3, "journal": later, "judged": 3, "refused": refused}
    )
    until = state.until(0)
    assert (until.judged, until.refused) == (2, refused)
    assert until.model == (None if refused == "3" else "m")
