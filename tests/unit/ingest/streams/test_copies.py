"""Records whose `tidemill-seq` is not above those before: they are counted, and may end their stream."""

import pytest
from support.intake import World, check, line, producing

from tidemill import metrics
from tidemill.schemas.log.messages import Grown, Sealed


def numbered(seq, *lines, ends=False):
    """A record of a stream with a number."""
    name, headers, value = producing(b"a", *lines, ends=ends)
    return name, (*headers, ("tidemill-seq", b"%d" % seq)), value


async def run(folder, *log):
    """A partition that handles these records, one at a time."""
    world = World(0, folder)
    world.chance.random = lambda: 1.0  # no cancel
    world.chance.randint = min
    world.log = list(log)
    await world.run(0)
    return world


def sealed(world):
    """The lines and dropped records of each batch, in the order of their ends."""
    return [(fact.total, fact.dropped_records) for fact in world.facts if isinstance(fact, Sealed)]


async def test_dropped_records_are_counted(tmp_path):
    """They may be of another producer that numbers from 1, too; the batch shows them as it grows."""
    before = metrics.COPIES_DROPPED._value.get()
    world = await run(
        tmp_path,
        numbered(1, line("acme/a/0/0")), numbered(2, line("acme/a/1/0")),
        numbered(1, line("acme/a/2/0")), numbered(2, line("acme/a/3/0")),
        numbered(3, line("acme/a/4/0")), numbered(1, ends=True),
        numbered(4, line("acme/a/6/0"), ends=True),
    )  # fmt: skip
    assert sealed(world) == [(4, 3)]
    grown = [(fact.total, fact.dropped_records) for fact in world.facts if isinstance(fact, Grown)]
    assert grown == [(1, None), (2, None), (3, 2), (4, 3)]
    assert metrics.COPIES_DROPPED._value.get() == before + 3


@pytest.mark.parametrize("lines", [(), (line("acme/a/1/0"),)])
async def test_a_copy_of_the_last_record_may_end_the_stream(lines, tmp_path):
    """A producer may give its end the number of its last record; lines of the copy count once."""
    world = await run(
        tmp_path, numbered(7, line("acme/a/1/0")), numbered(7, *lines, ends=True), numbered(1, line("b"))
    )
    assert sealed(world) == [(1, len(lines) or None), (1, None)]


async def test_a_copy_of_an_earlier_record_ends_nothing(tmp_path):
    """Its end was that of an earlier stream, or of another producer."""
    log = numbered(7, line("acme/a/0/0")), numbered(6, ends=True), numbered(8, line("acme/a/2/0"), ends=True)
    assert sealed(await run(tmp_path, *log)) == [(2, 1)]


@pytest.mark.parametrize("seed", range(60))
async def test_crashes_beside_copies(seed, tmp_path):
    """Lines of copies are in no batch, and the end counts; each drop counts once, unless a crash is near."""
    world = World(seed, tmp_path)
    world.chance.random = lambda: 1.0  # no cancel, and no revoked key
    chance, log, copies, seq = world.stepping, [], 0, 0
    for offset in range(40):
        copy = seq > 1 and chance.random() < 0.3
        copies += copy
        seq += not copy
        log.append(
            numbered(chance.randint(1, seq - 1) if copy else seq, line(f"acme/a/{offset if not copy else 0}/0"))
        )
    world.log = [*log, numbered(seq, ends=True)]
    await world.run(world.chance.randint(0, 8))
    check(world)
    ((total, dropped),) = set(sealed(world))
    assert total == 40 - copies
    assert abs((dropped or 0) - copies) <= 7 * world.crashes
