"""The window of a partition."""

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tidemill.processors.backends.clocks import TurnClocks
from tidemill.processors.partitions.window import Capacity, Entry, PartitionWindow
from tidemill.processors.scheduling.scheduler import Scheduler


class Handle:
    """Records the calls of a window."""

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
def test_records_are_acknowledged_in_order_behind_finished_ones(sizes: list[int], random: Any) -> None:
    """In whatever order their lines finish."""
    handle = Handle()
    window = PartitionWindow(handle)
    entries = [window.admit(number, lines, 10) for number, lines in enumerate(sizes)]
    work = [entry for entry in entries for _ in range(entry.lines)]
    random.shuffle(work)
    for entry in work:
        window.finish(entry)
        unfinished = [number for number, entry in enumerate(entries) if entry.left]
        assert handle.acked == list(range(unfinished[0] if unfinished else len(sizes)))
    assert handle.acked == list(range(len(sizes)))
    assert len(window) == 0


@given(st.lists(st.integers(1, 5), max_size=30), st.data())
def test_a_closed_window_acknowledges_nothing(sizes: list[int], data: st.DataObject) -> None:
    """Lines may finish after their partition was revoked."""
    handle = Handle()
    window = PartitionWindow(handle)
    entries = [window.admit(number, lines, 10) for number, lines in enumerate(sizes)]
    stop = data.draw(st.integers(0, len(entries)))
    for entry in entries[:stop]:
        window.finish(entry, entry.lines)
    window.close()
    for entry in entries[stop:]:
        window.finish(entry, entry.lines)
    assert handle.acked == list(range(stop))


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), max_size=40), st.data())
def test_a_full_window_pauses_its_partition_and_resumes_it(
    records: list[tuple[int, int]], data: st.DataObject
) -> None:
    """It resumes at three quarters of its bounds; no partition stays paused."""
    handle = Handle()
    window = PartitionWindow(handle, Capacity(lines_max=8, bytes_max=12, records_max=9))
    open_entries = []
    for number, (lines, size) in enumerate(records):
        while window.is_paused:
            entry = open_entries.pop(data.draw(st.integers(0, len(open_entries) - 1)))
            window.finish(entry, entry.lines)
        open_entries.append(window.admit(number, lines, size))
        full = sum(e.lines for e in open_entries) >= 8 or sum(e.size for e in open_entries) >= 12
        assert window.is_paused or not (full or len(window) >= 9)
    for entry in open_entries:
        window.finish(entry, entry.lines)
    assert not window.is_paused
    changes = [is_paused for is_paused, _ in itertools.groupby(handle.pauses)]
    assert changes == [bool(1 - n % 2) for n in range(len(changes))]
    assert changes.count(False) == handle.pauses.count(False)


def test_finished_lines_leave_room_behind_a_slow_line() -> None:
    """Also lines of records that are not acknowledged yet."""
    handle = Handle()
    window = PartitionWindow(handle, Capacity(lines_max=12, bytes_max=120, records_max=100))
    for number in range(8):
        window.finish(window.admit(number, 3, 30), 2)
    for number in range(50):
        window.finish(window.admit(number, 3, 30), 3)
        assert not window.is_paused
    assert handle.acked == []
    assert len(window) == 58


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 40)), max_size=40), st.data())
def test_failed_lines_count_separately(records: list[tuple[int, int]], data: st.DataObject) -> None:
    """Up to the same bounds; all counts are zero once all lines have finished."""
    capacity = Capacity(lines_max=8, bytes_max=80, records_max=100)
    window = PartitionWindow(Handle(), capacity)
    entries: list[Entry] = []
    for number, (lines, size) in enumerate(records):
        entries.append(window.admit(number, lines, size))
        for _ in range(data.draw(st.integers(0, 3))):
            entry = data.draw(st.sampled_from(entries))
            if data.draw(st.booleans()):
                window.fail(entry)
            elif entry.left:
                window.finish(entry, data.draw(st.integers(1, entry.left)))
            assert capacity.failed <= 8
            assert capacity.lines + capacity.failed == sum(entry.left for entry in entries)
            assert all(entry.failed <= entry.left for entry in entries)
    for entry in entries:
        if entry.left:
            window.finish(entry, entry.left)
    assert (capacity.lines, capacity.bytes, capacity.failed, capacity.failed_bytes, capacity.records) == (
        0,
        0,
        0,
        0,
        0,
    )
    assert not window.is_paused


def test_a_full_window_pauses_with_each_record() -> None:
    """Faust may have resumed the partition."""
    handle = Handle()
    window = PartitionWindow(handle, Capacity(lines_max=1))
    for number in range(3):
        window.admit(number, 1, 1)
    assert handle.pauses == [True, True, True]


def test_hold_pauses_a_paused_partition_again() -> None:
    """And no other."""
    handle = Handle()
    window = PartitionWindow(handle, Capacity(lines_max=1))
    window.hold()
    assert handle.pauses == []
    entry = window.admit(0, 1, 1)
    window.hold()
    assert handle.pauses == [True, True]
    window.finish(entry)
    window.hold()
    assert handle.pauses == [True, True, False]


def test_weights_hold_for_batches_larger_than_the_window() -> None:
    """Of two projects mixed in the log, the one with three of four turns keeps them to its last line."""
    handle = Handle()
    window = PartitionWindow(handle, Capacity(lines_max=2_000))
    order: Scheduler[tuple[str, Entry]] = Scheduler(TurnClocks({"many turns": 3.0}))
    log = iter([project for _ in range(200) for project in ("few turns", "many turns")])
    served: list[str] = []
    while True:
        while not window.is_paused and (project := next(log, None)):
            lines = [(project, window.admit(project, 10, 10))] * 10
            order.add(lines, project=project, batch_id=project, deadline=0)
        if (found := order.take()) is None:
            break
        served.append(found[0])
        window.finish(found[1])
    last = len(served) - served[::-1].index("many turns")
    assert served[:last].count("many turns") == 2_000
    assert abs(last - 2_000 * 4 / 3) < 20
    assert len(served) == 4_000
