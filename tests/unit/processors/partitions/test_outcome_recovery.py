"""What must be read back before a record's lines are called."""

from hypothesis import given
from hypothesis import strategies as st

from tidemill.processors.partitions.outcome_recovery import CLOCK_SKEW_SECONDS, OutcomeRecovery

records = st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1e6)), max_size=20)


@given(records, records)
def test_a_record_is_known_only_when_its_time_was_read(
    before: list[tuple[int, float]], after: list[tuple[int, float]]
) -> None:
    """Once everything wanted has been read, all who asked are known; a later question may want more."""
    recall = OutcomeRecovery()
    read: dict[int, float] = {}
    for asked in (before, after):
        for partition, time in asked:
            known = recall.knows(partition, time)
            assert known == (partition in read and read[partition] <= time - CLOCK_SKEW_SECONDS)
        wanted = recall.wanted()
        for partition, since in wanted.items():
            read[partition] = min(since, read.get(partition, since))
        recall.read(wanted)
        assert recall.wanted() == {}
        assert all(recall.knows(partition, time) for partition, time in asked)


def test_what_is_asked_while_reading_stays_wanted() -> None:
    """An older record came in meanwhile."""
    recall = OutcomeRecovery()
    assert not recall.knows(0, 1000.0)
    wanted = recall.wanted()
    assert not recall.knows(0, 500.0)
    recall.read(wanted)
    assert recall.wanted() == {0: 500.0 - CLOCK_SKEW_SECONDS}


def test_an_assignment_forgets_everything() -> None:
    """Others may have worked on the partitions."""
    recall = OutcomeRecovery()
    recall.knows(0, 1000.0)
    recall.read(recall.wanted())
    recall.reset()
    assert not recall.knows(0, 1000.0)
