"""Partitions change hands without a second call."""

import logging

import pytest

from tidemill.processors.partitions.handover import STALE_SECONDS, WAIT_SECONDS_MAX, Handover


class Group:
    """The marks, as the coordinator keeps them, and a clock."""

    def __init__(self):
        self.marks = {}
        self.now = 0.0
        self.is_away = False
        self.loses_answers = False

    async def write(self, marks):
        self._answer()
        self.marks |= marks
        if self.loses_answers:
            raise TimeoutError

    async def read(self, numbers):
        self._answer()
        return {number: text for number in numbers if (text := self.marks.get(number))}

    def _answer(self):
        if self.is_away:
            raise ConnectionError("no coordinator")

    def member(self):
        """A process of the group."""
        return Handover(self, lambda: self.now)


class Call:
    """A call in flight."""

    is_over = False

    def lasts(self):
        """Whether the log lacks its result."""
        return not self.is_over


@pytest.fixture
def group():
    """A group without marks."""
    return Group()


async def _pass(group, seconds, *members):
    """The members take their steps for so long; returns what the last one may read."""
    free = set()
    for _ in range(int(seconds)):
        group.now += 1
        for member in members:
            free |= await member.step()
    return free


async def test_a_partition_waits_for_calls_of_its_last_owner(group):
    """Others are read at once."""
    old, new, call = group.member(), group.member(), Call()
    await old.hold({1: [call.lasts]})
    assert await old.take({0}) == {0}
    assert await new.take({1, 2}) == {2}
    assert await _pass(group, 3 * STALE_SECONDS, old, new) == set()
    call.is_over = True
    assert await _pass(group, 1, old, new) == {1}
    assert not old.is_busy
    assert not new.is_busy


async def test_a_partition_that_comes_back_waits_for_nothing(group):
    """Its lines are known to the process; the mark is gone, so that a later owner does not wait either."""
    old, call = group.member(), Call()
    await old.hold({1: [call.lasts]})
    assert await old.take({0, 1}) == {0, 1}
    assert await group.member().take({1}) == {1}


async def test_the_mark_of_a_dead_process_ends(group):
    """Also if the group is divided anew meanwhile."""
    await group.member().hold({1: [Call().lasts]})
    new = group.member()
    assert await new.take({1}) == set()
    assert await _pass(group, STALE_SECONDS / 2, new) == set()
    await new.hold({})
    assert await new.take({1}) == set()
    assert await _pass(group, STALE_SECONDS / 2, new) == {1}


async def test_a_mark_lasts_over_several_rebalances(group):
    """The holder marks its partitions anew each time."""
    old, new, call = group.member(), group.member(), Call()
    for _ in range(3):
        await old.hold({1: [call.lasts]})
        await new.hold({})
        await old.take(())
        assert await new.take({1}) == set()
        assert await _pass(group, STALE_SECONDS, old, new) == set()
    call.is_over = True
    assert await _pass(group, 1, old, new) == {1}


async def test_no_wait_is_endless(group):
    """A call may last for days; after a while it is repeated."""
    old, new = group.member(), group.member()
    await old.hold({1: [Call().lasts]})
    await old.take(())
    await new.take({1})
    assert await _pass(group, WAIT_SECONDS_MAX - 1, old, new) == set()
    assert await _pass(group, 1, old, new) == {1}


async def test_a_coordinator_that_is_away_delays_the_partitions(group):
    """No call is repeated: the wait ends with its answer."""
    old, new = group.member(), group.member()
    await old.hold({1: [Call().lasts]})
    await old.take(())
    group.is_away = True
    assert await new.take({1, 2}) == set()
    assert await _pass(group, 2, old, new) == set()
    group.is_away = False
    assert await _pass(group, 1, old, new) == {2}
    assert await _pass(group, 1, old, new) == set()
    group.is_away = True
    assert await _pass(group, 2 * STALE_SECONDS, old, new) == set()
    group.is_away = False
    assert await _pass(group, STALE_SECONDS, old, new) == set()


async def test_a_coordinator_that_is_away_is_logged_once(group, caplog):
    """And its return: a step comes four times a second."""
    caplog.set_level(logging.INFO)
    old, new, call = group.member(), group.member(), Call()
    await old.hold({1: [call.lasts]})
    await old.take(())
    await new.take({1})
    caplog.clear()
    group.is_away = call.is_over = True
    await _pass(group, 20, old, new)
    assert len(caplog.records) == 2
    group.is_away = False
    await _pass(group, 3, old, new)
    assert len(caplog.records) == 4


async def test_a_process_removes_no_mark_of_another(group):
    """Its removal succeeded before, but it got no answer."""
    old, new, call = group.member(), group.member(), Call()
    await old.hold({1: [call.lasts]})
    await old.take(())
    await new.take({1})
    call.is_over = group.loses_answers = True
    await old.step()
    group.loses_answers = False
    assert await new.step() == {1}
    await old.hold({})
    await new.hold({1: [Call().lasts]})
    await old.take(())
    await new.take(())
    await _pass(group, 1, old)
    assert await group.member().take({1}) == set()


async def test_the_mark_of_a_dead_process_is_removed(group):
    """Else each later owner would wait for it again."""
    await group.member().hold({1: [Call().lasts]})
    new = group.member()
    await new.take({1})
    assert await _pass(group, STALE_SECONDS + 1, new) == {1}
    assert not new.is_busy
    assert await group.member().take({1}) == {1}


async def test_a_mark_that_is_renewed_after_all_stays(group):
    """Its process had only been without the coordinator for a while."""
    old, new, call = group.member(), group.member(), Call()
    await old.hold({1: [call.lasts]})
    await old.take(())
    await new.take({1})
    assert await _pass(group, STALE_SECONDS, new) == {1}
    await _pass(group, 1, old, new)
    assert await group.member().take({1}) == set()
    assert not new.is_busy


async def test_rebalances_make_no_wait_longer(group):
    """And the former owner holds nothing for longer: the marks of the next one are its own."""
    old, new, call = group.member(), group.member(), Call()
    await old.hold({1: [Call().lasts]})
    await old.take(())
    await new.take({1})
    for _ in range(2):
        assert await _pass(group, WAIT_SECONDS_MAX / 3, old, new) == set()
        await old.hold({1: [Call().lasts]})
        await new.hold({})
        await old.take(())
        assert await new.take({1}) == set()
    assert await _pass(group, WAIT_SECONDS_MAX / 3, old, new) == {1}
    await old.hold({1: [Call().lasts]})
    await new.hold({1: [call.lasts]})
    await old.take(())
    await new.take(())
    third = group.member()
    assert await third.take({1}) == set()
    await _pass(group, 3, old, new, third)
    call.is_over = True
    assert await _pass(group, 1, old, new, third) == {1}


async def test_a_process_that_ends_leaves_no_mark(group):
    """Its calls end with it."""
    old = group.member()
    await old.hold({1: [Call().lasts]})
    await old.release()
    assert not old.is_busy
    assert await group.member().take({1}) == {1}


async def test_a_process_that_was_taken_for_dead_holds_nothing(group):
    """Another one has called the lines since, and its own mark stands for these calls."""
    old, new = group.member(), group.member()
    await old.hold({1: [Call().lasts]})
    await old.take(())
    await new.take({1})
    assert await _pass(group, STALE_SECONDS + 1, new) == {1}
    await new.hold({1: [Call().lasts]})
    await new.take(())
    written = group.marks[1]
    await _pass(group, 2, old)
    assert not old.is_busy
    await old.hold({1: [Call().lasts]})
    assert group.marks[1] == written


async def test_a_rebalance_renews_no_mark_that_has_gone(group):
    """The process was cut off; another one has taken it for dead, and repeated the calls."""
    old, new = group.member(), group.member()
    await old.hold({1: [Call().lasts]})
    await old.take(())
    await new.take({1})
    assert await _pass(group, STALE_SECONDS + 1, new) == {1}
    await old.hold({1: [Call().lasts]})
    assert not group.marks[1]


async def test_a_process_that_waits_for_a_partition_does_not_mark_it(group):
    """It has calls of it since the time before another process took it over, and repeated them."""
    old, new = group.member(), group.member()
    await old.hold({1: [Call().lasts]})
    await old.take(())
    await new.take({1, 2})
    written = group.marks[1]
    await new.hold({1: [Call().lasts], 2: [Call().lasts]})
    assert group.marks[1] == written
    assert 2 in group.marks
