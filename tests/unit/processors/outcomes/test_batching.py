"""Results gather into records."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.processors.outcomes import batching
from tidemill.processors.outcomes.batching import RECORD_BYTES_MAX, ResultBatch, ResultBatcher
from tidemill.schemas.log.codec import LineMark

RECORD_LINES = 4


def put(
    packer: ResultBatcher[int], number: int, now: float, *, more: bool, batch: str = "b", size: int = 10
) -> list[ResultBatch[int]]:
    return packer.add(batch, b"x" * size, LineMark(number, size, failed=False), number, now, more=more)


def test_lines_gather_for_a_moment() -> None:
    """Even the first line waits: others of its batch are about to follow."""
    packer: ResultBatcher[int] = ResultBatcher(linger_seconds=1)
    assert put(packer, 0, 100.0, more=True) == []
    assert put(packer, 1, 100.9, more=True) == []
    assert packer.due_at("b") == 101.0
    assert packer.due("b", 100.9) == []
    (parcel,) = packer.due("b", 101.0)
    assert parcel.receipts == [0, 1]


def test_the_linger_time_begins_with_the_first_line() -> None:
    """However long ago the last parcel was sent, and that it has arrived changes nothing."""
    packer: ResultBatcher[int] = ResultBatcher(linger_seconds=1, lines_max=2)
    put(packer, 0, 100.0, more=True)
    put(packer, 1, 100.0, more=True)
    assert put(packer, 2, 105.0, more=True) == []
    assert packer.arrived("b", 105.1) == []
    assert packer.due_at("b") == 106.0
    (parcel,) = packer.due("b", 106.0)
    assert parcel.receipts == [2]


def test_lines_gather_while_a_record_is_in_flight() -> None:
    """They go when it has arrived, together."""
    packer: ResultBatcher[int] = ResultBatcher(linger_seconds=1, lines_max=3)
    for number in range(3):
        put(packer, number, 100.0, more=True)
    assert put(packer, 3, 100.0, more=True) == []
    assert put(packer, 4, 102.0, more=True) == []
    assert packer.due_at("b") is None
    (parcel,) = packer.arrived("b", 103.0)
    assert parcel.receipts == [3, 4]


def test_a_record_in_flight_lets_more_lines_gather_than_go_without_one() -> None:
    """If enough gather, they go as soon as the record has arrived; otherwise after the linger time."""
    packer: ResultBatcher[int] = ResultBatcher(linger_seconds=1, lines_max=2)
    put(packer, 0, 100.0, more=True)
    assert len(put(packer, 1, 100.0, more=True)) == 1
    for number in range(2, 7):
        assert put(packer, number, 100.0, more=True) == []
    (parcel,) = packer.arrived("b", 100.1)
    assert parcel.receipts == [2, 3, 4, 5, 6]


def test_a_full_record_goes_while_another_is_on_its_way() -> None:
    packer: ResultBatcher[int] = ResultBatcher(linger_seconds=1, lines_max=1)
    sent = [put(packer, number, 100.0, more=True) for number in range(1 + batching.RECORD_LINES_MAX)]
    assert [len(parcel.receipts) for parcels in sent for parcel in parcels] == [1, batching.RECORD_LINES_MAX]


def test_the_last_line_of_a_batch_goes_at_once() -> None:
    """With what has gathered; also the only line of a batch."""
    packer: ResultBatcher[int] = ResultBatcher(linger_seconds=1)
    put(packer, 0, 100.0, more=True)
    put(packer, 1, 100.0, more=True)
    (parcel,) = put(packer, 2, 100.0, more=False)
    assert parcel.receipts == [0, 1, 2]
    (parcel,) = put(packer, 3, 100.0, more=False, batch="c")
    assert parcel.receipts == [3]


def test_a_batch_without_lines_is_forgotten() -> None:
    """A process may see any number of them."""
    packer: ResultBatcher[int] = ResultBatcher()
    put(packer, 0, 100.0, more=False)
    assert packer.arrived("b", 100.1) == []
    assert packer._batches == {}


actions = st.lists(
    st.one_of(
        st.tuples(
            st.just("add"), st.sampled_from("ab"), st.sampled_from([1, 1000, 100_000, 600_000]), st.booleans()
        ),
        st.tuples(st.just("arrive"), st.integers(0, 5)),
        st.tuples(st.just("time"), st.floats(0, 3)),
    ),
    max_size=60,
)


class Road:
    """A packer, and the parcels between it and the log."""

    def __init__(self, lines_max: int) -> None:
        self.packer: ResultBatcher[int] = ResultBatcher(linger_seconds=1, lines_max=lines_max)
        self.sent: list[ResultBatch[int]] = []
        self.under_way: list[ResultBatch[int]] = []
        self.now = 10.0

    def send(self, parcels: list[ResultBatch[int]]) -> None:
        self.sent.extend(parcels)
        self.under_way.extend(parcels)

    def arrive(self, number: int) -> None:
        if self.under_way:
            parcel = self.under_way.pop(number % len(self.under_way))
            self.send(self.packer.arrived(parcel.batch_id, self.now))

    def time(self, seconds: float) -> None:
        self.now += seconds
        for batch in "ab":
            if (at := self.packer.due_at(batch)) is not None and at <= self.now:
                self.send(self.packer.due(batch, self.now))

    def finish(self) -> None:
        self.time(2)
        while self.under_way:
            self.arrive(0)
            self.time(2)


@given(actions, st.integers(1, RECORD_LINES))
def test_every_line_is_sent_once_and_in_order(steps: list[Any], lines_max: int) -> None:
    """In any interleaving: no parcel is above the bounds; when all arrive and time goes by, all is sent."""
    road = Road(lines_max)
    added: dict[str, list[int]] = {"a": [], "b": []}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, "RECORD_LINES_MAX", RECORD_LINES)
        for number, (step, what, *rest) in enumerate(steps):
            if step == "add":
                added[what].append(number)
                road.send(put(road.packer, number, road.now, batch=what, size=rest[0], more=rest[1]))
            else:
                getattr(road, step)(what)
        road.finish()
    assert {b: [n for p in road.sent if p.batch_id == b for n in p.receipts] for b in "ab"} == added
    assert len(road.packer) == 0
    for parcel in road.sent:
        assert len(parcel.lines) == len(parcel.marks) == len(parcel.receipts) <= RECORD_LINES
        assert parcel.size == sum(map(len, parcel.lines))
        assert parcel.size <= RECORD_BYTES_MAX or len(parcel.lines) == 1
