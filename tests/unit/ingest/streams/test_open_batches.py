"""Batches that the api opens: each is opened once, and each append counts once, wherever an owner breaks off."""

import dataclasses
import random

import orjson
import pytest
from support.intake import World, check, line, streams_left
from support.trust import SIGNER, VERIFIER

from tidemill.configuration.projects import Limits
from tidemill.ingest.streams import decisions
from tidemill.ingest.streams.decisions import OPENING_SECONDS_MAX
from tidemill.kafka.partitions.ack_gate import AckGate
from tidemill.schemas import ids
from tidemill.schemas.log import codec, intake
from tidemill.schemas.log.dead_letters import REASON
from tidemill.schemas.log.intake import IntakeError
from tidemill.schemas.log.messages import BatchCreated, BatchRecord, DeadLettered, Ended, Grown, Opened, Sealed
from tidemill.schemas.log.signing import Signer
from tidemill.schemas.resources.batch import Batch, Extras, Status
from tidemill.schemas.resources.file import OBJECT_BYTES

SEEDS = range(80)
KEY = ("authorization", b"Bearer acme")
KNOWN_CHANCE = 0.3
BATCHES = 3


class Api(World):
    """A partition whose process learns of batches some time after it has opened them."""

    def __init__(self, seed, folder):
        super().__init__(seed, folder)
        self.learning, self.known, self.quotas = random.Random(seed), {}, None
        self.each_tick = self.learn

    def resources(self):
        made = super().resources()
        self.quotas = made.quotas
        for batch_id, value in self.known.items():
            self.quotas.batch(batch_id, value, 0)
        return made

    def learn(self):
        """Let the process see some of the batches that it has opened."""
        for fact in self.facts:
            if isinstance(fact, Opened) and self.learning.random() < KNOWN_CHANCE:
                value = codec.encode(BatchRecord(project=fact.project, batch=fact.batch))
                self.known[fact.batch.id] = value
                self.quotas.batch(fact.batch.id, value, 0)


def batch_id(number):
    return ids.derived_batch_id("acme", f"open-{number}")


def opening(number, *, project="acme", signer=SIGNER, name=None):
    """The record that opens a batch."""
    batch = Batch(
        id=batch_id(number), endpoint="/v1/chat/completions", completion_window="24h", status=Status.IN_PROGRESS,
        input_file_id=ids.derived_file_id(batch_id(number), "input"), created_at=1_790_000_000,
        in_progress_at=1_790_000_000, expires_at=1_790_086_400,
        tidemill=Extras(stream=batch_id(number), open=True),
    )  # fmt: skip
    headers = intake.opening_headers(signer, BatchCreated(project=project, batch=batch))
    return (name or batch.id).encode(), (KEY, *headers), b""


def append(number, sequence, *lines):
    """A record with lines."""
    return batch_id(number).encode(), (KEY, (intake.SEQ, b"%d" % sequence)), b"\n".join(lines)


def seal(number):
    """The last record."""
    return batch_id(number).encode(), (KEY, (intake.END, b"true")), b""


def story(chance):
    """Records of some batches, in their order, each with copies at any later place."""
    left = [
        [
            opening(number),
            *(
                append(number, at, *(line(f"acme/{number}/{at}/{place}") for place in range(chance.randint(1, 4))))
                for at in range(1, chance.randint(2, 9))
            ),
            seal(number),
        ]
        for number in range(BATCHES)
    ]
    found = []
    while any(left):
        found.append(chance.choice([records for records in left if records]).pop(0))
    for at in sorted(chance.sample(range(len(found)), k=len(found) // 2), reverse=True):
        found.insert(chance.randint(at + 1, len(found)), found[at])
    return found


@pytest.mark.parametrize("seed", SEEDS)
async def test_copies_of_records_change_nothing(seed, tmp_path):
    """Of openings, appends and seals, before and after the batch is sealed, with crashes and cancels."""
    world = Api(seed, tmp_path)
    world.log = story(world.chance)
    await world.run(world.chance.randint(0, 12))
    check(world)
    names = {batch_id(number) for number in range(BATCHES)}
    assert {fact.batch.id for fact in world.facts if isinstance(fact, Opened)} == names
    assert not await streams_left(world)
    sealed = {(fact.batch_id, fact.total) for fact in world.facts if isinstance(fact, Sealed)}
    assert len(sealed) == BATCHES
    for name in names - world.cancelled:
        lines = {
            orjson.loads(text)["custom_id"]
            for key, headers, value in world.log
            if key.decode() == name and intake.SEQ in dict(headers)
            for text in value.splitlines()
        }
        assert (name, len(lines)) in sealed


async def run(folder, *log):
    world = Api(0, folder)
    world.log = list(log)
    world.chance.random = lambda: 1.0  # no cancel
    await world.run(0)
    return world


async def test_an_open_batch_without_lines_is_sealed_by_silence(tmp_path):
    """A new owner finds it, though it has no line."""
    world = await run(tmp_path, opening(1))
    (sealed,) = [fact for fact in world.facts if isinstance(fact, Sealed)]
    assert (sealed.batch_id, sealed.total) == (batch_id(1), 0)
    assert world.store.objects[sealed.input.key] == b""


async def test_the_highest_sequence_is_published(tmp_path):
    """So that a client sees where it was."""
    world = await run(
        tmp_path, opening(1), append(1, 1, line("acme/1/1")), append(1, 2, line("acme/1/2")), seal(1)
    )
    assert max(fact.sequence for fact in world.facts if isinstance(fact, Grown)) == 2


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (opening(1, signer=Signer.made()), "no trusted key"),
        (opening(1, project="else"), "another one"),
        (opening(1, name=batch_id(2)), "another one"),
        ((opening(1)[0], (*opening(1)[1][:2], opening(2)[1][2]), b""), "of another batch"),
        (append(1, 1, line("acme/1/1/0")), "sealed or does not exist"),
    ],
)
async def test_only_the_api_opens_such_a_batch(record, reason, tmp_path):
    """Also a direct producer whose token is for that name opens none."""
    world = await run(tmp_path, record)
    assert not world.facts
    ((_, headers),) = world.dead
    assert reason in headers[REASON].decode()


@pytest.mark.parametrize(
    ("seconds", "is_logged_at", "opens"),
    [
        (0, True, True),
        (OPENING_SECONDS_MAX, True, True),
        (OPENING_SECONDS_MAX + 1, True, False),
        (OPENING_SECONDS_MAX + 1, False, True),
    ],
)
async def test_a_late_copy_opens_no_batch_again(seconds, is_logged_at, opens, tmp_path):
    """Its batch may be deleted; only a broker's time says when a record came."""
    world = Api(0, tmp_path)
    arrival = world.arrival

    def arrived(gate, offset):
        made = arrival(gate, offset)
        return dataclasses.replace(made, timestamp=1_790_000_000 + seconds, is_logged_at=is_logged_at)

    world.arrival = arrived
    world.chance.random = lambda: 1.0  # no cancel
    world.log = [opening(1)]
    await world.run(0)
    assert sum(isinstance(fact, Opened) for fact in world.facts) == opens
    assert ["created long before" in headers[REASON].decode() for _, headers in world.dead] == [True] * (not opens)


@pytest.mark.parametrize("seed", range(40))
async def test_appends_beyond_the_byte_limit_are_error_lines(seed, tmp_path):
    """The api has answered them with 200: each line is in the batch, with a code for a rerun, and no letter."""
    world = Api(seed, tmp_path)
    size = len(line("acme/1/1")) + 1
    world.limits = Limits(bytes_stored_max=3 * size + OBJECT_BYTES)
    world.log = [opening(1), *(append(1, at, line(f"acme/1/{at}")) for at in range(1, 6)), seal(1)]
    await world.run(world.chance.randint(0, 6) if seed else 0)
    if not seed:
        refused = {place for (_, place), codes in world.codes.items() if codes == {"bytes_stored_max"}}
        assert refused == {3, 4}
    if not world.cancelled:
        assert not world.dead
        assert {fact.total for fact in world.facts if isinstance(fact, Sealed)} == {5}
    check(world)


async def test_lines_that_were_refused_for_their_bytes_stay_refused(tmp_path):
    """The project has room when they come again."""
    world = Api(0, tmp_path)
    world.limits = Limits(bytes_stored_max=1)
    world.log = [opening(1), append(1, 1, line("acme/1/1"))]
    for limits in (world.limits, Limits()):
        world.fuse.left, world.limits = -1, limits
        world.crashes += 1
        partition, gate = world.partition()[0], AckGate()
        await partition.load()
        await partition.take([world.arrival(gate, offset) for offset in range(2)])
        partition.abandon()
    assert not world.requests
    assert world.codes == {(batch_id(1), 0): {"bytes_stored_max", "invalid_request"}}


@pytest.mark.parametrize("ending", ["silence", "a seal", "its size"])
async def test_the_end_is_published_at_once(ending, tmp_path, monkeypatch):
    """Before the input is joined, so that the api refuses appends from then on."""
    log = [opening(1), append(1, 1, line("acme/1/1"))]
    if ending == "a seal":
        log.append(seal(1))
    if ending == "its size":
        monkeypatch.setattr(decisions, "STREAM_LINES_MAX", 1)
    world = await run(tmp_path, *log)
    kinds = [fact.kind for fact in world.facts]
    assert kinds.count("ended") == 1
    assert kinds.index("opened") < kinds.index("ended") < kinds.index("sealed")


@pytest.mark.parametrize("seed", range(20))
async def test_the_end_is_published_in_spite_of_crashes(seed, tmp_path):
    """Nothing is added to a batch whose end is known."""
    world = Api(seed, tmp_path)
    world.log = [opening(1), *(append(1, at, line(f"acme/1/{at}")) for at in range(1, 4)), seal(1)]
    await world.run(world.chance.randint(0, 9))
    at = next(place for place, fact in enumerate(world.facts) if isinstance(fact, Ended))
    assert any(isinstance(fact, Sealed) for fact in world.facts[at:])
    check(world)


async def test_an_append_after_the_end_is_shown_on_its_batch(tmp_path, monkeypatch):
    """The api may have accepted it before it knew the end; a copy of an earlier append is none."""
    monkeypatch.setattr(decisions, "STREAM_LINES_MAX", 2)
    lines = line("acme/1/1/0"), line("acme/1/1/1")
    world = await run(
        tmp_path, opening(1), append(1, 1, *lines), append(1, 1, *lines), append(1, 2, line("acme/1/2/0"))
    )
    (fact,) = [fact for fact in world.facts if isinstance(fact, DeadLettered)]
    assert (fact.batch_id, fact.source) == (batch_id(1), "tidemill.intake/3/3")
    assert "sealed" in fact.reason
    assert [key for key, _ in world.dead] == [fact.source]


async def test_a_later_version_of_the_api_may_send_further_headers(tmp_path):
    """An unknown header is a mistake of direct producers only."""
    later = ("tidemill-later", b"1")
    records = (opening(1), append(1, 1, line("acme/1/1/0")), seal(1))
    world = await run(tmp_path, *((key, (*headers, later), value) for key, headers, value in records))
    assert not world.dead
    assert [fact.total for fact in world.facts if isinstance(fact, Sealed)] == [1]


@pytest.mark.parametrize("fault", ["its credential", "its size"])
async def test_a_refused_append_is_shown_on_its_batch(fault, tmp_path, monkeypatch):
    """Whatever it is refused for, if its credential is of the project: the api may have accepted it."""
    world = Api(0, tmp_path)
    world.chance.random = lambda: 1.0  # no cancel
    world.log = [opening(1), append(1, 1, line("acme/1/1/0"), line("acme/1/1/1"))]
    if fault == "its credential":
        project = world.project

        async def expired(secret, stream, logged_at):
            if len(world.facts):
                raise IntakeError("its token has expired", "acme")
            return await project(secret, stream, logged_at)

        world.project = expired
    else:
        monkeypatch.setattr(decisions, "RECORD_LINES_MAX", 1)
    world.chance.randint = min  # one record at a time
    await world.run(0)
    (fact,) = [fact for fact in world.facts if isinstance(fact, DeadLettered)]
    assert (fact.batch_id, fact.source) == (batch_id(1), "tidemill.intake/3/1")
    assert ("expired" in fact.reason) == (fault == "its credential")


@pytest.mark.parametrize("project", ["acme", "else"])
async def test_a_late_append_is_shown_on_a_batch_of_its_project_only(project, tmp_path):
    """Also once ingest has forgotten the stream; a producer of another project marks no foreign batch."""
    world = Api(0, tmp_path)
    batch = intake.opening(intake.own_headers(opening(1)[1]), VERIFIER).batch
    world.known[batch.id] = codec.encode(BatchRecord(project=project, batch=batch))
    world.log = [append(1, 2, line("acme/1/2/0"))]
    await world.run(0)
    assert [fact.batch_id for fact in world.facts] == [batch.id] * (project == "acme")
    assert len(world.dead) == 1
