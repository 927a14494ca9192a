"""How a follower applies records, without a broker."""

import asyncio

import pytest
from aiokafka import ConsumerRecord
from support.waiting import WAIT_SECONDS_MAX, until

from tidemill.kafka import follower as module
from tidemill.kafka.connection import LogUnavailable
from tidemill.kafka.follower import RUN_BYTES_MAX, Follower, Tail, catch_up
from tidemill.schemas.log import topics

TOPIC = topics.CATALOG.name


def record(offset: int, value: bytes) -> ConsumerRecord:
    """A record of the topic."""
    return ConsumerRecord(TOPIC, 0, offset, 0, 0, b"k", value, None, 1, len(value), ())


@pytest.mark.parametrize("size", [1, RUN_BYTES_MAX], ids=["one run", "a run each"])
@pytest.mark.parametrize("bad", [{0}, {3}, {0, 1}, {1, 2, 4}, set(range(6))])
async def test_each_record_that_fails_twice_is_skipped(bad, size):
    """However many there are in one run; each has a second try, since a fault may pass."""
    applied: dict[int, int] = {}

    def apply(_key: str, _value: bytes | None, offset: int) -> None:
        applied[offset] = applied.get(offset, 0) + 1
        if offset in bad:
            raise ValueError

    follower = Follower("127.0.0.1:9", TOPIC, apply)
    tries = 0
    while not follower.is_caught_up:
        follower.begin(Tail(identity="c/t", end=6))
        records = [record(offset, bytes(size)) for offset in range(follower.position, 6)]
        try:
            await follower.take(records)
        except ValueError:
            tries += 1
        assert tries <= len(bad)
    assert follower.position == 6
    assert set(applied) == set(range(6))
    assert all(applied[offset] >= 2 for offset in bad)


async def test_catching_up_has_a_bound(monkeypatch):
    """A follower that is not connected, or does not move, does not let its caller wait; others do not matter."""

    async def ends(partitions):
        return dict.fromkeys(partitions, 6)

    monkeypatch.setattr(module, "CATCH_UP_SECONDS_MAX", 0.01)
    followers = [Follower("127.0.0.1:9", topic.name, print) for topic in (topics.CATALOG, topics.FILES)]
    stuck, apart = followers
    await catch_up(followers)
    with pytest.raises(LogUnavailable):
        await catch_up(followers, TOPIC)
    for follower in followers:
        monkeypatch.setattr(follower._offsets, "next", ends)
        follower.begin(Tail(identity="c/t", end=6))
    apart.move(6)
    await catch_up(followers, topics.FILES.name)
    with pytest.raises(LogUnavailable):
        await catch_up(followers, topics.FILES.name, TOPIC)
    stuck.move(6)
    await catch_up(followers, topics.FILES.name, TOPIC)


@pytest.fixture
def behind(monkeypatch):
    """A connected follower that lacks two records."""
    follower = Follower("127.0.0.1:9", TOPIC, lambda *_: None)

    async def ends(partitions):
        return dict.fromkeys(partitions, 2)

    monkeypatch.setattr(follower._offsets, "next", ends)
    follower.begin(Tail(identity="c/t", end=2))
    return follower


async def test_catching_up_ends_with_the_connection(behind):
    """The caller may ask again, or say so to its client; before that it waits for all records."""
    waiting = asyncio.create_task(behind.catch_up())
    await until(lambda: behind.is_awaited and behind._waiters, "the wait")
    await behind.take([record(0, b"x")])
    assert not waiting.done()
    behind.disconnect()
    with pytest.raises(LogUnavailable, match="lost"):
        await waiting
    behind.begin(Tail(identity="c/t", end=2))
    waiting = asyncio.create_task(behind.catch_up())
    await until(lambda: behind._waiters, "the wait")
    await behind.take([record(1, b"x")])
    await waiting


async def test_catching_up_waits_for_records_within_a_bound(behind, monkeypatch):
    """A broker may be connected and send nothing."""
    monkeypatch.setattr(module, "CATCH_UP_SECONDS_MAX", 0.01)
    with pytest.raises(LogUnavailable, match="not read in time"):
        await behind.catch_up()
    assert not behind._waiters


async def test_catching_up_is_bounded_while_records_come(behind, monkeypatch):
    """Else a request would wait for as long as the follower has more to read."""
    monkeypatch.setattr(module, "CATCH_UP_SECONDS_MAX", 0.5)

    async def ends(partitions):
        return dict.fromkeys(partitions, 1 << 40)

    monkeypatch.setattr(behind._offsets, "next", ends)

    async def moving():
        while True:
            await asyncio.sleep(0)
            behind.move(behind.position + 1)

    mover = asyncio.create_task(moving())
    try:
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            with pytest.raises(LogUnavailable, match="not read in time"):
                await behind.catch_up()
    finally:
        mover.cancel()
