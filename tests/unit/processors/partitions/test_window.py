"""The lane of a partition."""

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tidemill.processors.partitions.window import Entry, PartitionWindow, Window
from tidemill.processors.scheduling.scheduler import Scheduler


class Partition:
    """A tap that remembers what it was told."""

    def __init__(self) -> None:
        self.acked: list[Any] = []
        self.pauses: list[bool] = []

    def ack(self, token: Any) -> None:
        self.acked.append(token)

    def pause(self) -> None:
        self.pauses.append(True)

    def resume(self) -> None:
        self.pauses.append(False)


@given(st.lists(st.integers(0, 5), max_size=30), st.randoms())
def test_an_ack_never_passes_unfinished_work(sizes: list[int], random: Any) -> None:
    """In whatever order lines are done: records are acknowledged in theirs, and only behind finished ones."""
    tap = Partition()
    lane = PartitionWindow(tap)
    entries = [lane.admit(number, lines, 10) for number, lines in enumerate(sizes)]
    work = [entry for entry in entries for _ in range(entry.lines)]
    random.shuffle(work)
    for entry in work:
        lane.done(entry)
        unfinished = [number for number, entry in enumerate(entries) if entry.left]
        assert tap.acked == list(range(unfinished[0] if unfinished else len(sizes)))
    assert tap.acked == list(range(len(sizes)))
    assert len(lane) == 0


@given(st.lists(st.integers(1, 5), max_size=30), st.data())
def test_a_closed_lane_acknowledges_nothing(sizes: list[int], data: st.DataObject) -> None:
    """Work that ends after its partition has gone is no news to it."""
    tap = Partition()
    lane = PartitionWindow(tap)
    entries = [lane.admit(number, lines, 10) for number, lines in enumerate(sizes)]
    stop = data.draw(st.integers(0, len(entries)))
    for entry in entries[:stop]:
        lane.done(entry, entry.lines)
    lane.close()
    for entry in entries[stop:]:
        lane.done(entry, entry.lines)
    assert tap.acked == list(range(stop))


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), max_size=40), st.data())
def test_the_window_is_bounded(records: list[tuple[int, int]], data: st.DataObject) -> None:
    """A lane that is full pauses its partition, and resumes it once it has room; nothing is ever stuck paused."""
    tap = Partition()
    lane = PartitionWindow(tap, Window(lines_max=8, bytes_max=12, records_max=9))
    open_entries = []
    for number, (lines, size) in enumerate(records):
        while lane.is_paused:
            entry = open_entries.pop(data.draw(st.integers(0, len(open_entries) - 1)))
            lane.done(entry, entry.lines)
        open_entries.append(lane.admit(number, lines, size))
        full = sum(e.lines for e in open_entries) >= 8 or sum(e.size for e in open_entries) >= 12
        assert lane.is_paused or not (full or len(lane) >= 9)
    for entry in open_entries:
        lane.done(entry, entry.lines)
    assert not lane.is_paused
    changes = [is_paused for is_paused, _ in itertools.groupby(tap.pauses)]
    assert changes == [bool(1 - n % 2) for n in range(len(changes))]
    assert changes.count(False) == tap.pauses.count(False)


def test_a_slow_line_does_not_hold_up_those_behind_it() -> None:
    """What is done makes room, though it waits behind another record, or for the last line of its own."""
    tap = Partition()
    lane = PartitionWindow(tap, Window(lines_max=12, bytes_max=120, records_max=100))
    for number in range(8):
        lane.done(lane.admit(number, 3, 30), 2)
    for number in range(50):
        lane.done(lane.admit(number, 3, 30), 3)
        assert not lane.is_paused
    assert tap.acked == []
    assert len(lane) == 58


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 40)), max_size=40), st.data())
def test_lines_that_have_failed_count_apart(records: list[tuple[int, int]], data: st.DataObject) -> None:
    """As many as there may be others; and whatever becomes of the lines, nothing is left of them in the end."""
    bounds = Window(lines_max=8, bytes_max=80, records_max=100)
    lane = PartitionWindow(Partition(), bounds)
    entries: list[Entry] = []
    for number, (lines, size) in enumerate(records):
        entries.append(lane.admit(number, lines, size))
        for _ in range(data.draw(st.integers(0, 3))):
            entry = data.draw(st.sampled_from(entries))
            if data.draw(st.booleans()):
                lane.fail(entry)
            elif entry.left:
                lane.done(entry, data.draw(st.integers(1, entry.left)))
            assert bounds.failed <= 8
            assert bounds.lines + bounds.failed == sum(entry.left for entry in entries)
            assert all(entry.failed <= entry.left for entry in entries)
    for entry in entries:
        if entry.left:
            lane.done(entry, entry.left)
    assert (bounds.lines, bounds.bytes, bounds.failed, bounds.failed_bytes, bounds.records) == (0, 0, 0, 0, 0)
    assert not lane.is_paused


def test_a_full_lane_says_so_with_each_record() -> None:
    """What made the partition flow again without asking is answered at once."""
    tap = Partition()
    lane = PartitionWindow(tap, Window(lines_max=1))
    for number in range(3):
        lane.admit(number, 1, 1)
    assert tap.pauses == [True, True, True]


def test_a_pause_is_said_again() -> None:
    """Only while it holds."""
    tap = Partition()
    lane = PartitionWindow(tap, Window(lines_max=1))
    lane.hold()
    assert tap.pauses == []
    entry = lane.admit(0, 1, 1)
    lane.hold()
    assert tap.pauses == [True, True]
    lane.done(entry)
    lane.hold()
    assert tap.pauses == [True, True, False]


def test_weights_hold_between_batches_that_are_larger_than_the_window() -> None:
    """Two projects, mixed in the log: the one that has three turns of four keeps them to its last line."""
    tap = Partition()
    lane = PartitionWindow(tap, Window(lines_max=2_000))
    order: Scheduler[tuple[str, Entry]] = Scheduler({"many turns": 3.0})
    log = iter([project for _ in range(200) for project in ("few turns", "many turns")])
    served: list[str] = []
    while True:
        while not lane.is_paused and (project := next(log, None)):
            lines = [(project, lane.admit(project, 10, 10))] * 10
            order.add(lines, project=project, batch_id=project, deadline=0)
        if (found := order.take()) is None:
            break
        served.append(found[0])
        lane.done(found[1])
    last = len(served) - served[::-1].index("many turns")
    assert served[:last].count("many turns") == 2_000
    assert abs(last - 2_000 * 4 / 3) < 20
    assert len(served) == 4_000
