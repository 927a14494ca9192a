"""The shown state of a batch never goes back."""

from hypothesis import given
from hypothesis import strategies as st

from tidemill.api.view import overlay
from tidemill.schemas.lifecycle import RANK
from tidemill.schemas.resources.batch import Batch, RequestCounts, Status

FIRST = Batch(
    id="batch_x", endpoint="/v1/embeddings", input_file_id="file-x", completion_window="24h",
    status=Status.VALIDATING, created_at=1, expires_at=2,
)  # fmt: skip
RUNNING = FIRST.model_copy(update={"status": Status.IN_PROGRESS, "in_progress_at": 3, "model": "m"})

COUNTS = st.builds(RequestCounts, total=st.integers(0, 9), completed=st.integers(0, 9), failed=st.integers(0, 9))
BATCHES = st.builds(
    lambda status, counts: FIRST.model_copy(update={"status": status, "request_counts": counts}),
    st.sampled_from(Status), COUNTS,
)  # fmt: skip


@given(st.lists(BATCHES, min_size=1, max_size=8))
def test_records_in_any_order(records):
    """Status and counts only advance until the end, which is final."""
    shown = None
    for record in records:
        merged = overlay.merge(shown, record)
        if shown is not None and not record.status.is_terminal:
            assert RANK[merged.status] >= RANK[shown.status]
            for name in ("total", "completed", "failed"):
                assert getattr(merged.request_counts, name) >= getattr(shown.request_counts, name)
        assert merged.status.is_terminal == (record.status.is_terminal or bool(shown and shown.status.is_terminal))
        shown = merged


@given(BATCHES)
def test_a_record_read_twice_changes_nothing(record):
    """Merging is idempotent."""
    once = overlay.merge(RUNNING, record)
    assert overlay.merge(once, record) == once


def test_a_cancel_survives_older_records():
    """The batch stays `cancelling`, with their counts."""
    cancelled = overlay.cancelled(FIRST, 7)
    shown = overlay.merge(cancelled, RUNNING.model_copy(update={"request_counts": RequestCounts(total=3)}))
    assert (shown.status, shown.cancelling_at, shown.in_progress_at, shown.model) == (Status.CANCELLING, 7, 3, "m")
    assert shown.request_counts.total == 3


def test_the_last_record_replaces_everything():
    """Its counts, times and files come from one step."""
    end = RUNNING.model_copy(update={"status": Status.COMPLETED, "request_counts": RequestCounts(total=1)})
    assert overlay.merge(overlay.cancelled(RUNNING, 7), end) == end


def test_a_cancel_of_an_ended_batch_changes_nothing():
    """Nor does a second one."""
    for status in (Status.CANCELLING, Status.CANCELLED, Status.COMPLETED, Status.FAILED, Status.EXPIRED):
        batch = FIRST.model_copy(update={"status": status})
        assert overlay.cancelled(batch, 7) is batch
