"""The shown state of a batch never goes back."""

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from tidemill.api.view import overlay
from tidemill.results.bills import so_far
from tidemill.schemas.lifecycle import RANK
from tidemill.schemas.resources.batch import Batch, Progress, RequestCounts, Status
from tidemill.schemas.resources.bill import Tariff

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


def test_a_cancel_shows_no_later_start():
    """A record of another clock may say that the batch began after its cancel."""
    shown = overlay.merge(overlay.cancelled(FIRST, 2), RUNNING)
    assert (shown.status, shown.cancelling_at, shown.in_progress_at) == (Status.CANCELLING, 2, None)


def test_the_last_record_replaces_everything():
    """Its counts, times and files come from one step."""
    end = RUNNING.model_copy(update={"status": Status.COMPLETED, "request_counts": RequestCounts(total=1)})
    assert overlay.merge(overlay.cancelled(RUNNING, 7), end) == end


def test_a_cancel_of_an_ended_batch_changes_nothing():
    """Nor does a second one."""
    for status in (Status.CANCELLING, Status.CANCELLED, Status.COMPLETED, Status.FAILED, Status.EXPIRED):
        batch = FIRST.model_copy(update={"status": status})
        assert overlay.cancelled(batch, 7) is batch


def test_old_progress_is_not_shown_as_current():
    """With what the batch has used and cost so far, too."""
    tariff = Tariff(input_per_million=Decimal(1), output_per_million=Decimal(2))
    begun = Progress(
        percent=1.0, lines_per_second=5.0, done_earliest_at=900, done_latest_at=1_000, slack_seconds=50,
        observed_at=500, holds_until=560,
    )  # fmt: skip
    used = {0: (9, 0, 6, 0)}
    progress = so_far(begun, RUNNING, used, lambda *_: tariff)
    assert progress.usage is not None
    assert progress.cost is not None
    batch = RUNNING.model_copy(update={"tidemill": RUNNING.tidemill.model_copy(update={"progress": progress})})
    body = batch.model_dump_json().encode()
    assert overlay.current(body, 510) == body
    shown = Batch.model_validate_json(overlay.current(body, 50_000)).tidemill.progress
    assert (shown.lines_per_second, shown.done_latest_at, shown.slack_seconds) == (None, None, 50 - 49_500)
    assert (shown.usage, shown.cost) == (progress.usage, progress.cost)
