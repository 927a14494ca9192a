"""Which outcomes are read before lines are called."""

from hypothesis import given
from hypothesis import strategies as st

from tidemill.processors.partitions.outcome_recovery import OutcomeRecovery
from tidemill.schemas.bounds import CLOCK_SKEW_SECONDS

records = st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1e6)), max_size=20)


@given(records, records)
def test_a_record_is_known_once_outcomes_since_its_time_are_read(
    before: list[tuple[int, float]], after: list[tuple[int, float]]
) -> None:
    """A later record may need older outcomes."""
    recovery = OutcomeRecovery()
    read: dict[int, float] = {}
    for asked in (before, after):
        for partition, time in asked:
            known = recovery.knows(partition, time)
            assert known == (partition in read and read[partition] <= time - CLOCK_SKEW_SECONDS)
        wanted = recovery.wanted()
        for partition, since in wanted.items():
            read[partition] = min(since, read.get(partition, since))
        recovery.recovered(wanted)
        assert recovery.wanted() == {}
        assert all(recovery.knows(partition, time) for partition, time in asked)


def test_an_older_record_that_arrives_while_reading_stays_wanted() -> None:
    """It needs older outcomes than those that were read."""
    recovery = OutcomeRecovery()
    assert not recovery.knows(0, 1000.0)
    wanted = recovery.wanted()
    assert not recovery.knows(0, 500.0)
    recovery.recovered(wanted)
    assert recovery.wanted() == {0: 500.0 - CLOCK_SKEW_SECONDS}


def test_a_new_assignment_forgets_everything() -> None:
    """Other processes may have called lines of the partitions."""
    recovery = OutcomeRecovery()
    recovery.knows(0, 1000.0)
    recovery.recovered(recovery.wanted())
    recovery.reset()
    assert not recovery.knows(0, 1000.0)
