"""How far all followers of a process have read, without a broker."""

import asyncio
import time

import pytest
from support.waiting import until

from tidemill.kafka.connection import LogUnavailable
from tidemill.kafka.follower import Follower, Tail
from tidemill.kafka.following import AGE_SECONDS_MAX, Following
from tidemill.schemas.log import topics

TOPIC = topics.CATALOG.name


def test_a_view_that_does_not_follow_any_more(caplog):
    """A process that cannot read one topic, or lags behind its end, says so, and takes it back."""
    follower = Follower("127.0.0.1:9", TOPIC, lambda *_: None)
    following, now = Following([follower]), time.time()
    assert "still being read: 1 of 1" in following.fault()
    assert following.ages() == {}
    follower.begin(Tail(cluster="c", end=0))
    follower.see(0, now)
    assert following.fault() is None
    assert following.ages()[TOPIC] < AGE_SECONDS_MAX
    assert following.silent_since(TOPIC) is None
    follower.see(0, now - 2 * AGE_SECONDS_MAX)
    for _ in range(2):
        assert "not followed any more: 1 of 1" in following.fault()
    assert following.ages()[TOPIC] > AGE_SECONDS_MAX
    assert following.silent_since(TOPIC) == pytest.approx(now - 2 * AGE_SECONDS_MAX, abs=0.1)
    assert following.silent_since("other") is None
    follower.see(3, now)
    assert following.fault() is not None
    follower.move(3)
    follower.see(3, now)
    assert following.fault() is None
    assert [record.args for record in caplog.records] == [(TOPIC,), ("none any more",)]


async def test_callers_of_one_moment_share_a_catch_up(monkeypatch):
    """Polls of many clients share requests to the broker; none takes an end from before its call."""
    follower = Follower("127.0.0.1:9", TOPIC, lambda *_: None)
    asked, go = [], asyncio.Event()

    async def ends(partitions):
        asked.append(len(asked))
        await go.wait()
        return dict.fromkeys(partitions, 0)

    monkeypatch.setattr(follower._offsets, "next", ends)
    follower.begin(Tail(cluster="c", end=0))
    shared = Following([follower]).catch_up
    first = asyncio.create_task(shared(TOPIC))
    await until(lambda: asked, "the first request")
    later = [asyncio.create_task(shared(TOPIC)) for _ in range(50)]
    later[0].cancel()
    await asyncio.wait([later[0]])
    go.set()
    await asyncio.gather(first, *later[1:])
    assert len(asked) == 2
    follower.disconnect()
    with pytest.raises(LogUnavailable):
        await shared(TOPIC)
    follower.begin(Tail(cluster="c", end=0))
    await shared(TOPIC)
    assert len(asked) == 3
