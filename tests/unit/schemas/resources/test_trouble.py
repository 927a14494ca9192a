"""Batches in trouble: which are stalled, late, or have failures."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.dependencies import NOW, batch_of

from tidemill.schemas.resources.batch import Extras, Fault, Progress, RequestCounts, Status
from tidemill.schemas.resources.trouble import has_failures, is_stalled, late_at
from tidemill.schemas.resources.waiting import USUAL, Reason, Waiting

SECONDS = st.integers(0, 40)
RUNNING = st.builds(
    Progress, percent=st.just(1.0), lines_per_second=st.sampled_from([None, 0.0, 1.5]),
    slack_seconds=st.none() | st.integers(-9, 40), observed_at=st.none() | SECONDS,
    holds_until=st.none() | SECONDS,
)  # fmt: skip


@given(RUNNING, st.integers(0, 99))
def test_a_batch_is_late_while_its_slack_is_below_zero(progress, now):
    """As the API shows it at that time; also from its deadline on."""
    far = batch_of("b", expires_at=1_000, tidemill=Extras(progress=progress))
    slack = progress.at(now).slack_seconds
    assert (late_at(far) <= now) == (slack is not None and slack < 0)
    assert late_at(far.model_copy(update={"expires_at": 50})) <= 50


@pytest.mark.parametrize("reason", Reason)
def test_a_batch_stalls_for_reasons_beyond_the_usual(reason):
    """One that has ended does not."""
    extras = Extras(waiting=(Waiting(reason=reason, lines=1, message="m", since=NOW),))
    assert is_stalled(batch_of("b", tidemill=extras)) == (reason not in USUAL)
    assert not is_stalled(batch_of("b", status=Status.EXPIRED, tidemill=extras))


@pytest.mark.parametrize(
    ("fields", "has"),
    [
        ({}, False),
        ({"status": Status.COMPLETED}, False),
        ({"status": Status.CANCELLED}, False),
        ({"request_counts": RequestCounts(total=2, failed=1)}, True),
        ({"tidemill": Extras(fault=Fault(records=1, source="t/0/1", reason="r"))}, True),
        ({"status": Status.FAILED}, True),
        ({"status": Status.EXPIRED}, True),
    ],
)
def test_failures_of_lines_and_of_batches(fields, has):
    """Finished or not."""
    assert has_failures(batch_of("b", **fields)) == has
