"""Where a process begins to read the partitions of sleeping models, and which of them have records."""

import pytest

from tidemill.faust.added_partitions import TP, Start
from tidemill.processors.partitions.places import Places

ONE, OTHER = "tidemill.requests.one", "tidemill.express.one"
GROUP = "g"


class Log:
    """Topics, their first and next offsets, and what the group has committed."""

    def __init__(self):
        self.range, self.done, self.asked = {}, {}, []
        self.leaderless = set()

    async def partitions(self):
        return {topic: sorted(tp.partition for tp in self.range if tp.topic == topic) for topic, _ in self.range}

    async def first(self, tps):
        return {tp: self.range[tp][0] for tp in tps if tp not in self.leaderless}

    async def next(self, tps):
        self.asked.append(set(tps))
        return {tp: self.range[tp][1] for tp in tps if tp not in self.leaderless}

    async def committed(self, group, tps):
        assert group == GROUP
        return {tp: self.done[tp] for tp in tps if tp in self.done}


@pytest.fixture
def log():
    return Log()


@pytest.fixture
def places(log):
    """Of a process that owns two of four partitions."""
    places = Places(log, GROUP, 4)
    places.reset({1, 3})
    return places


async def test_own_partitions_start_at_the_committed_or_the_first_offset(log, places):
    """A topic with more partitions than the group divides belongs to the owner of the remainder."""
    log.range = {TP(ONE, number): (5, 9) for number in range(6)}
    log.done = {TP(ONE, 1): 9, TP(ONE, 5): 7}
    await places.find([ONE, OTHER])
    assert (places.has(ONE), places.has(OTHER)) == (True, False)
    assert places.with_records == {ONE}
    found = {
        tp.partition: (place.start.position, place.start.is_committed) for tp, place in places.take([ONE]).items()
    }
    assert found == {1: (9, True), 3: (5, False), 5: (7, True)}


@pytest.mark.parametrize("leaderless", [{TP(ONE, 1)}, {TP(ONE, 1), TP(ONE, 3)}])
async def test_a_topic_is_found_once_all_own_partitions_are(log, places, leaderless):
    """A topic that was just created has partitions without a leader."""
    log.range, log.leaderless = {TP(ONE, number): (0, 9) for number in range(4)}, leaderless
    await places.find([ONE])
    assert not places.has(ONE)
    places.take([ONE])
    log.leaderless = set()
    await places.find([ONE])
    assert places.has(ONE)
    assert places.take([ONE]).keys() == leaderless


async def test_a_look_finds_new_records_of_sleeping_partitions_only(log, places):
    """One request for all of them; a partition that is being read is not asked for, nor found again."""
    log.range = {TP(ONE, 1): (0, 9), TP(OTHER, 1): (0, 9)}
    log.done = {TP(ONE, 1): 9, TP(OTHER, 1): 9}
    await places.find([ONE, OTHER])
    assert not places.with_records
    assert places.take([OTHER])
    log.range = {TP(ONE, 1): (0, 10), TP(OTHER, 1): (0, 10)}
    await places.find([ONE, OTHER])
    await places.look()
    assert places.with_records == {ONE}
    assert log.asked[-1] == {TP(ONE, 1)}
    places.put({TP(OTHER, 1): Start(10, is_committed=True)})
    assert places.with_records == {ONE}


async def test_a_topic_that_was_created_anew_is_read_from_its_start(log, places):
    """The group has committed an offset behind its end."""
    log.range, log.done = {TP(ONE, 1): (0, 9)}, {TP(ONE, 1): 9}
    await places.find([ONE])
    log.range = {TP(ONE, 1): (0, 2)}
    await places.look()
    ((_, place),) = places.take([ONE]).items()
    assert (place.start, place.end) == (Start(0, is_committed=False), 2)
