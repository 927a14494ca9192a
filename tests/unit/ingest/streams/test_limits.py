"""The limits of a project and of a record: refused lines and records, and how their users see it."""

import asyncio

import pytest
from support.intake import CUT, World, check, line, producing

from tidemill.configuration.projects import Limits
from tidemill.schemas.log import topics
from tidemill.schemas.log.dead_letters import UNREAD
from tidemill.schemas.log.messages import Opened, Sealed
from tidemill.schemas.resources.file import OBJECT_BYTES


async def test_lines_beyond_the_limit_are_error_lines(tmp_path):
    """They belong to the batch but do not run, with a code for a rerun; the other lines run."""
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
    """The record is a dead letter with the reason; the end of a batch makes room."""
    world = World(0, tmp_path)
    world.limits = Limits(batches_in_progress_max=1)
    world.log = [producing(b"a", line("acme/a/0/0")), producing(b"b", line("acme/b/1/0"), ends=True)]
    await world.run(0)
    ((_, headers),) = world.dead
    reason = headers["tidemill-dead-reason"].decode()
    assert reason == "its project has 1 batch in progress and may have 1"
    assert len([fact for fact in world.facts if isinstance(fact, Opened)]) == 1
    check(world)


@pytest.mark.parametrize("seed", range(40))
async def test_bytes_beyond_the_limit_are_dead_letters(seed, tmp_path):
    """With crashes, a record is in the input or a dead letter; a refused one still ends its stream."""
    size = len(line("acme/a/0/0")) + 1
    world = World(seed, tmp_path)
    most = 3 * size + OBJECT_BYTES
    world.limits = Limits(bytes_stored_max=most)
    world.log = [producing(b"a", line(f"acme/a/{place}/0"), ends=place == 4) for place in range(5)]
    await world.run(world.chance.randint(0, 6))
    assert {fact.total for fact in world.facts if isinstance(fact, Sealed)} == {3}
    reasons = {headers["tidemill-dead-reason"] for _, headers in world.dead}
    assert reasons == {f"its project stores {most:,} bytes and may store {most:,}".encode()}
    check(world)


async def test_a_batch_that_was_not_decompressed_is_named_as_that(tmp_path, caplog):
    """Its replacement has no key, which is not what is wrong."""
    world = World(0, tmp_path)
    reason = b"the batch of records 1 to 11 is more than 8388608 bytes when decompressed"
    world.log = [(None, ((UNREAD, reason),), None)]
    await world.run(0)
    ((_, headers),) = world.dead
    assert headers["tidemill-dead-reason"] == reason
    (said,) = [message for message in caplog.messages if f"{topics.INTAKE.name}/3/0" in message]
    assert said.endswith(": its batch of records cannot be decompressed, or is too large then")


async def test_a_stream_chooses_numbered_output(tmp_path):
    """Its first record asks for it; an unknown option is a dead letter."""
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
    """There may be any number of them; none is acknowledged before its letter is written."""
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
    """The stream goes on with the next record."""
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
