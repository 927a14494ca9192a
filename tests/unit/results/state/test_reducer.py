"""Facts may come in any order and more than once, and a batch only moves along the table."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tidemill.results.facts import LETTER_PLACES_MAX
from tidemill.results.state import reducer
from tidemill.results.state.line_bitmap import LineBitmap
from tidemill.schemas.lifecycle import MOVES, IllegalMove, move
from tidemill.schemas.log.messages import (
    Accepted,
    BatchCreated,
    CancelRequested,
    Compacted,
    DeadLettered,
    Ended,
    Grown,
    InputRef,
    Opened,
    Rejected,
    Sealed,
)
from tidemill.schemas.resources.batch import Batch, BatchError, Extras, FileReceipt, Receipt, Status, Usage
from tidemill.schemas.resources.bill import Tariff, bill
from tidemill.schemas.resources.by_model import ModelResult

ID = "batch_" + "0" * 32
NOW = 1_790_000_000
GRACE = 5.0


def batch(status=Status.VALIDATING):
    return Batch(
        id=ID,
        endpoint="/v1/embeddings",
        input_file_id="file-1",
        completion_window="24h",
        status=status,
        created_at=NOW,
        expires_at=NOW + 86_400,
    )


CREATED = BatchCreated(project="default", batch=batch(), input=None)
ACCEPTED = Accepted(batch_id=ID, total=3, model="m", at=NOW + 1)
REJECTED = Rejected(batch_id=ID, errors=(BatchError(code="x", message="y"),), at=NOW + 1)
CANCEL = CancelRequested(batch_id=ID, at=NOW + 2)
DEAD_LETTERED = DeadLettered(batch_id=ID, source="tidemill.commands/0/7", reason="it broke", at=NOW + 3)
COMPACTED = Compacted(
    batch_id=ID,
    receipt=Receipt(lines=3, output=FileReceipt(lines=2, bytes=9, sha256="a"), errors=None, missing=1, double=0),
    models=(ModelResult(model="m", completed=2, failed=1, usage=Usage(), bill=bill(0, 0, Tariff())),),
    at=NOW + 9,
)


APPLY = {
    BatchCreated: lambda state, fact: reducer.created(state, fact, GRACE),
    Opened: lambda state, fact: reducer.created(state, fact, GRACE),
    Accepted: reducer.accepted,
    Rejected: reducer.rejected,
    CancelRequested: lambda state, fact: reducer.cancelled(state, fact, GRACE),
    Grown: reducer.grown,
    Ended: reducer.no_more_lines,
    Sealed: reducer.no_more_lines,
    Compacted: reducer.compacted,
    DeadLettered: reducer.dead_lettered,
}


def applied(state, fact):
    return APPLY[type(fact)](state, fact)


@given(st.lists(st.sampled_from([CREATED, ACCEPTED, REJECTED, CANCEL, DEAD_LETTERED, COMPACTED]), max_size=12))
def test_every_order_is_legal_and_moves_along_the_table(facts):
    """No order of facts raises, and each step is a move of the table or none."""
    state = reducer.State(id=ID, partition=0)
    for fact in facts:
        before, state = state.batch, applied(state, fact)
        if before is not None and state.batch.status is not before.status:
            assert state.batch.status in MOVES[before.status]


PATHS = (
    ("created", "in_progress", "finalizing", "completed"), ("created", "in_progress", "finalizing", "expired"),
    ("created", "in_progress", "cancelling", "cancelled"), ("created", "cancelling", "cancelled"),
    ("created", "failed"), ("created", "expired"),
)  # fmt: skip
"""The moves of a batch, from its creation to each end."""


def is_a_path(batch):
    """Whether the times of a batch are those of the first moves of a path, in their order."""
    names = [field.removesuffix("_at") for field in type(batch).model_fields if field.endswith("_at")]
    times = {name: at for name in names if (at := getattr(batch, f"{name}_at")) is not None and name != "expires"}
    ordered = [name for path in PATHS if times.keys() == set(path[: len(times)]) for name in path if name in times]
    at = [times[name] for name in ordered[: len(times)]]
    return bool(ordered) and at == sorted(at)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([CREATED, ACCEPTED, REJECTED, CANCEL, DEAD_LETTERED, "expire", "close"]),
            st.integers(NOW - 5, NOW + 90_000),
        ),
        max_size=10,
    )
)
@example([(CREATED, NOW), (CANCEL, NOW + 2), (ACCEPTED, NOW + 5)])
def test_the_times_of_a_batch_are_those_of_its_moves(facts):
    """Whatever the clocks of the stages say, and in whatever order their facts come: none decreases."""
    state = reducer.State(id=ID, partition=0)
    for fact, at in facts:
        if fact == "expire":
            state = reducer.overdue(state, at, GRACE)
        elif fact == "close":
            if reducer.is_complete(state, 3) or reducer.is_due(state, at):
                state = reducer.close(state, at, "w")
                state = applied(state, COMPACTED.model_copy(update={"at": at}))
        else:
            state = applied(state, fact if fact is CREATED else fact.model_copy(update={"at": at}))
        if state.batch is not None:
            assert is_a_path(state.batch), state.batch


STREAM = batch(Status.IN_PROGRESS).model_copy(update={"tidemill": Extras(stream=ID, open=True, input_bytes=0)})
OPENED = Opened(project="p", batch=STREAM)
STREAM_FACTS = [
    Grown(batch_id=ID, total=2, bytes=70, sequence=1),
    Grown(batch_id=ID, total=3, bytes=99, sequence=2),
    Ended(batch_id=ID),
    Sealed(batch_id=ID, total=3, input=InputRef(key="files/i", bytes=99)),
]
LETTERS = [
    DEAD_LETTERED.model_copy(update={"source": source})
    for source in ("tidemill.commands/0/7", "tidemill.commands/0/8", "tidemill.outcomes/0/8", "nowhere")
]


def histories(first, *facts):
    """Facts of a batch: perhaps an early one, the one that creates it, and others in any order."""
    found = st.sampled_from([*facts, CANCEL, *LETTERS])
    later = st.lists(st.one_of(found, st.just(first)), max_size=12)
    return st.tuples(st.lists(found, max_size=1), later).map(lambda parts: [*parts[0], first, *parts[1]])


@given(st.one_of(histories(CREATED, ACCEPTED, REJECTED), histories(OPENED, *STREAM_FACTS)), st.booleans())
@example([OPENED, *LETTERS], False)
def test_facts_that_come_again_change_nothing(facts, ends):
    """Of every kind, in any order, also after the end."""
    state = reducer.State(id=ID, partition=0)
    for fact in facts:
        state = applied(state, fact)
    if ends and (reducer.is_due(state, NOW + 99_999) or reducer.is_complete(state, 3)):
        facts = [*facts, COMPACTED]
        state = applied(reducer.close(state, NOW + 99_999, "w"), COMPACTED)
    for at in range(len(facts)):
        again = state
        for fact in facts[at:]:
            again = applied(again, fact)
        assert again == state


def test_each_dead_letter_counts_once():
    """Also if others came between; the places that are remembered are bounded."""
    state = reducer.created(reducer.State(id=ID, partition=0), OPENED, GRACE)
    for fact in LETTERS * 2:
        state = applied(state, fact)
    assert (state.batch.tidemill.fault.records, state.batch.tidemill.fault.source) == (len(LETTERS), "nowhere")
    for place in range(2 * LETTER_PLACES_MAX):
        state = applied(state, DEAD_LETTERED.model_copy(update={"source": f"t/{place}/0"}))
    assert list(state.letters) == [f"t/{place}" for place in range(LETTER_PLACES_MAX, 2 * LETTER_PLACES_MAX)]
    assert reducer.State.model_validate_json(state.model_dump_json()) == state


@given(st.permutations([CREATED, ACCEPTED]), st.integers(0, 3))
def test_a_fact_applied_again_changes_nothing(facts, repeats):
    """Facts before the creation wait for it."""
    state = reducer.State(id=ID, partition=0)
    for fact in facts:
        state = applied(state, fact)
    assert state.batch.status is Status.IN_PROGRESS
    assert state.batch.request_counts.total == 3
    for fact in facts * repeats:
        assert applied(state, fact) is state


def test_a_batch_completes_once_all_lines_are_done():
    """Files, counts and status change in one step."""
    state = applied(applied(reducer.State(id=ID, partition=0), CREATED), ACCEPTED)
    assert not reducer.is_complete(state, 2)
    assert reducer.is_complete(state, 3)
    state = reducer.close(state, NOW + 3, "w")
    assert state.batch.status is Status.FINALIZING
    assert not state.takes_lines
    assert not reducer.is_complete(state, 3)
    state = applied(state, COMPACTED)
    assert state.batch.status is Status.COMPLETED
    assert state.batch.completed_at == NOW + 9
    assert state.batch.output_file_id
    assert state.batch.error_file_id is None
    assert state.batch.request_counts.model_dump() == {"total": 3, "completed": 2, "failed": 1}


def test_a_cancelled_batch_takes_lines_for_the_grace_only():
    """Results of lines in flight count, then the batch closes as cancelled."""
    state = applied(applied(applied(reducer.State(id=ID, partition=0), CREATED), ACCEPTED), CANCEL)
    assert state.batch.status is Status.CANCELLING
    assert state.takes_lines
    assert reducer.next_due(state) == CANCEL.at + GRACE
    assert not reducer.is_due(state, CANCEL.at + GRACE - 1)
    assert reducer.is_due(state, CANCEL.at + GRACE)
    state = applied(reducer.close(state, NOW + 8, "w"), COMPACTED)
    assert state.batch.status is Status.CANCELLED


def test_the_deadline_expires_a_batch():
    """A running batch and one in validation, after the grace period."""
    created = applied(reducer.State(id=ID, partition=0), CREATED)
    assert reducer.overdue(created, NOW + 86_399, GRACE) is created
    for begun, status in ((created, Status.VALIDATING), (applied(created, ACCEPTED), Status.FINALIZING)):
        over = reducer.overdue(begun, NOW + 86_400, GRACE)
        assert over.ending is Status.EXPIRED
        assert not reducer.is_complete(over, 0)
        assert not reducer.is_due(over, NOW + 86_400)
        assert reducer.is_due(over, NOW + 86_400 + GRACE)
        closed = reducer.close(over, NOW + 86_405, "w")
        assert closed.batch.status is status
        for late in (ACCEPTED, REJECTED, CANCEL, DEAD_LETTERED):
            assert applied(closed, late).batch.status is status
        ended = applied(closed, COMPACTED)
        assert (ended.batch.status, ended.batch.request_counts.total) == (Status.EXPIRED, 3)


def test_an_answer_of_ingest_within_the_grace_period_counts():
    """Results may read it after the deadline, when results was down."""
    state = reducer.overdue(applied(reducer.State(id=ID, partition=0), CREATED), NOW + 86_400, GRACE)
    assert applied(state, REJECTED).batch.status is Status.FAILED
    assert applied(state, ACCEPTED).batch.status is Status.IN_PROGRESS
    assert reducer.close(applied(state, ACCEPTED), NOW + 86_405, "w").batch.status is Status.FINALIZING


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=20))
def test_counts_never_go_back(counts):
    """Also if a replay counts lines again."""
    state = applied(applied(reducer.State(id=ID, partition=0), CREATED), ACCEPTED)
    for completed, failed in counts:
        before = state.batch.request_counts
        bitmap = LineBitmap()
        bitmap.done, bitmap.failed = completed + failed, failed
        state = reducer.counted(state, bitmap)
        after = state.batch.request_counts
        assert after.completed >= before.completed
        assert after.failed >= before.failed


def test_an_illegal_move_is_an_error():
    """A final status cannot change."""
    with pytest.raises(IllegalMove):
        move(batch(Status.COMPLETED), Status.CANCELLING, NOW)


def test_a_dead_letter_before_the_creation_ends_the_batch():
    """Ingest may report it before results reads the command; the batch would wait for a day."""
    fresh = reducer.State(id=ID, partition=0)
    state = reducer.created(reducer.dead_lettered(fresh, DEAD_LETTERED), CREATED, GRACE)
    assert state.batch.status is Status.FAILED
    assert "it broke; tidemill.commands/0/7" in state.batch.errors.data[0].message
    unread = reducer.created(reducer.dead_lettered(fresh, DEAD_LETTERED, ends=False), CREATED, GRACE)
    assert unread.batch.status is Status.VALIDATING
    begun = reducer.accepted(reducer.dead_lettered(fresh, DEAD_LETTERED), ACCEPTED)
    assert reducer.created(begun, CREATED, GRACE).batch.tidemill.fault.source == DEAD_LETTERED.source


def test_a_stream_keeps_its_first_model():
    """Its lines run on that one, and are billed for it."""
    state = reducer.created(reducer.State(id=ID, partition=0), OPENED, GRACE)
    facts = [Grown(batch_id=ID, total=total, model=model) for total, model in ((1, None), (2, "m"), (3, "n"))]
    for fact in facts:
        state = reducer.grown(state, fact)
    assert state.batch.model == "m"
    sealed = Sealed(batch_id=ID, total=3, model="n", input=InputRef(key="files/i", bytes=99))
    assert reducer.no_more_lines(state, sealed).batch.model == "m"


def test_a_stream_that_has_ended_is_not_open():
    """Before its input is a file: until then it grows by the lines on their way, and its bytes count."""
    first = batch(Status.IN_PROGRESS).model_copy(update={"tidemill": Extras(stream=ID, open=True, input_bytes=0)})
    state = reducer.created(reducer.State(id=ID, partition=0), Opened(project="p", batch=first), GRACE)
    state = reducer.grown(state, Grown(batch_id=ID, total=2, bytes=70, sequence=1))
    assert (state.batch.tidemill.open, state.batch.tidemill.input_bytes) == (True, 70)
    state = reducer.no_more_lines(state, Ended(batch_id=ID))
    assert (state.batch.tidemill.open, state.growing) == (False, True)
    state = reducer.grown(state, Grown(batch_id=ID, total=3, bytes=99, sequence=2))
    assert (state.batch.tidemill.open, state.batch.tidemill.input_bytes) == (False, 99)
    state = reducer.no_more_lines(state, Sealed(batch_id=ID, total=3, input=InputRef(key="files/i", bytes=99)))
    assert (state.growing, state.batch.tidemill.input_bytes) == (False, None)
    assert reducer.no_more_lines(state, Ended(batch_id=ID)) is state


def test_a_stream_shows_what_was_dropped():
    """While it grows, and once it is sealed."""
    state = reducer.created(reducer.State(id=ID, partition=0), OPENED, GRACE)
    state = reducer.grown(state, Grown(batch_id=ID, total=2, dropped_records=3))
    assert state.batch.tidemill.dropped_records == 3
    source = InputRef(key="files/i", bytes=99)
    state = reducer.no_more_lines(state, Sealed(batch_id=ID, total=2, input=source, dropped_records=5))
    assert state.batch.tidemill.dropped_records == 5
