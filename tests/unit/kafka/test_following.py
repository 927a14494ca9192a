"""How far all followers of a process have read, without a broker."""

import asyncio
import time

import pytest
from support.waiting import until

from tidemill.kafka import follower as follower_module
from tidemill.kafka.connection import LogUnavailable
from tidemill.kafka.follower import Follower, Tail
from tidemill.kafka.following import AGE_SECONDS_MAX, Following
from tidemill.schemas.log import topics

TOPIC = topics.CATALOG.name


def test_a_view_that_does_not_follow_any_more(caplog, monkeypatch):
    """A process that cannot read one topic, or lags behind its end, says so, and takes it back."""
    now = [5.0]
    monkeypatch.setattr(follower_module, "boottime", lambda: now[0])
    follower = Follower("127.0.0.1:9", TOPIC, lambda *_: None)
    following = Following([follower])
    assert "still being read: 1 of 1" in following.fault()
    assert following.ages() == {}
    follower.begin(Tail(identity="c/t", end=0))
    follower.see(0, 1)
    assert following.fault() is None
    assert following.ages()[TOPIC] < AGE_SECONDS_MAX
    assert following.silent_since(TOPIC) is None
    now[0] += 2 * AGE_SECONDS_MAX
    follower.see(0, 1)
    for _ in range(2):
        assert "not followed any more: 1 of 1" in following.fault()
    assert following.ages()[TOPIC] > AGE_SECONDS_MAX
    assert following.silent_since(TOPIC) == pytest.approx(time.time() - 2 * AGE_SECONDS_MAX, abs=10)
    assert following.silent_since("other") is None
    follower.see(3, 2)
    assert following.fault() is not None
    follower.move(3)
    follower.see(3, 2)
    assert following.fault() is None
    assert [record.args for record in caplog.records] == [(TOPIC,), ("none any more",)]


@pytest.mark.parametrize("step_ms", [90_000, -3_600_000])
def test_the_age_needs_no_right_clock(step_ms, monkeypatch):
    """The times of the leader's answers are by the wall clock, which was stepped."""
    now = [5.0]
    monkeypatch.setattr(follower_module, "boottime", lambda: now[0])
    follower = Follower("127.0.0.1:9", TOPIC, lambda *_: None)
    follower.begin(Tail(identity="c/t", end=0))
    for fetched_ms in (10_000_000, 10_000_000 + step_ms):
        now[0] += 3
        follower.see(0, fetched_ms)
        assert follower.age_seconds == 0
    now[0] += 60
    follower.see(0, 10_000_000 + step_ms)
    assert follower.age_seconds == 60


async def test_callers_of_one_moment_share_a_catch_up(monkeypatch):
    """Polls of many clients share requests to the broker; none takes an end from before its call."""
    follower = Follower("127.0.0.1:9", TOPIC, lambda *_: None)
    asked, go = [], asyncio.Event()

    async def ends(partitions):
        asked.append(len(asked))
        await go.wait()
        return dict.fromkeys(partitions, 0)

    monkeypatch.setattr(follower._offsets, "next", ends)
    follower.begin(Tail(identity="c/t", end=0))
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
    follower.begin(Tail(identity="c/t", end=0))
    await shared(TOPIC)
    assert len(asked) == 3
