"""The reducer: pure functions from a batch's state and a fact to its next state.

Facts come at least once and, from two topics, in any order: a fact that was applied before changes nothing, and
a fact that comes too early waits in the state.
"""

from pydantic import BaseModel, ConfigDict, Field

from tidemill.results.facts import Early, EarlyFact, Letters, Written, with_letter
from tidemill.results.state import model_shares
from tidemill.results.state.line_bitmap import LineBitmap, LineSums
from tidemill.schemas import ids
from tidemill.schemas.bounds import TEXT_CHARS_MAX, Id, Moment, Name, Number, Signed, Time
from tidemill.schemas.lifecycle import AT_WORK, CANCELLABLE, OPEN, move
from tidemill.schemas.log.messages import (
    Accepted,
    BatchCreated,
    CancelRequested,
    Compacted,
    DeadLettered,
    DeleteRequested,
    Ended,
    Grown,
    InputRef,
    Opened,
    Rejected,
    Sealed,
)
from tidemill.schemas.log.part import PartRef
from tidemill.schemas.log.topics import EXPRESS_LINES_MAX
from tidemill.schemas.resources.batch import (
    Batch,
    BatchError,
    BatchErrors,
    ExpiresAfter,
    Extras,
    Fault,
    RequestCounts,
    Status,
)
from tidemill.schemas.resources.file import file_kind
from tidemill.schemas.resources.waiting import bounded

_UNHANDLED = "The server could not handle the batch ({}; {}). Please create the batch again."


class State(BaseModel):
    """The state of a batch, without its line bitmap."""

    model_config = ConfigDict(frozen=True)

    id: Id
    partition: Number
    """Partition of `outcomes` that the batch belongs to."""
    project: Name = ""
    batch: Batch | None = None
    """None until the command that creates it has come."""
    input: InputRef | None = None
    output_expires_after: ExpiresAfter | None = None
    growing: bool = False
    """Whether more lines may come, from a stream that is not sealed."""
    early: Early = Early()
    """Facts that came before the batch was created."""
    letters: Letters = {}
    """Its last dead letters, so that one that is reported again does not count again."""
    ending: Status | None = None
    """The final status, if it is decided already."""
    close_at: Moment | None = None
    """When an ending batch stops accepting lines, Unix seconds."""
    closed: bool = False
    """Whether the batch accepts no more lines, and its files are being written."""
    closed_by: Id = ""
    """The owner of the partition that closed the batch, and so decided which lines are in the files."""
    written: Written | None = None
    """The fact that ends a batch whose files were written from memory when it closed."""
    parts: tuple[PartRef, ...] = Field(default=(), exclude=True)
    """In rows of their own (`tables.py`), since their number is not bounded."""
    sums: LineSums = Field(default=LineSums(), exclude=True)
    """The sums of the lines in the parts, kept in the rows of the bitmap."""
    chunks: Number = 0
    """An upper bound of the chunks of the batch's bitmap in their table."""
    files_offset: Signed | None = None
    """Offset of the batch's last record in `tidemill.files`."""
    deleted_at: Time | None = None
    """When the batch was deleted, Unix seconds. Then the state has no other facts, and accepts none."""

    @property
    def takes_lines(self) -> bool:
        """Whether result lines still count."""
        return not self.closed and self.deleted_at is None and (self.batch is None or self.batch.status in OPEN)

    @property
    def ended_at(self) -> int:
        """When the batch ended or was deleted, Unix seconds; 0 if it is not over."""
        if self.deleted_at is not None:
            return self.deleted_at
        return (self.batch.ended_at or 0) if self.batch is not None else 0

    @property
    def is_over(self) -> bool:
        """Whether the batch has its final status, or is deleted."""
        return self.deleted_at is not None or (self.batch is not None and self.batch.status.is_terminal)

    def with_batch(self, **changes: object) -> "State":
        """The state with other fields of the batch."""
        assert self.batch is not None
        return self.model_copy(update={"batch": self.batch.model_copy(update=changes)})

    def with_extras(self, **changes: object) -> "State":
        """The state with other fields of the batch's `tidemill`."""
        assert self.batch is not None
        return self.with_batch(tidemill=self.batch.tidemill.model_copy(update=changes))

    def with_total(self, total: int, **changes: object) -> "State":
        """The state with another number of lines, and other fields of the batch."""
        assert self.batch is not None
        counts = self.batch.request_counts.model_copy(update={"total": total})
        return self.with_batch(request_counts=counts, **changes)

    def with_lines(self, fact: Accepted) -> "State":
        """The state with the number of lines, and of those of each model."""
        state = self.with_total(fact.total, model=fact.model)
        if fact.copies:
            state = state.with_extras(copies=fact.copies)
        return state.with_extras(models=model_shares.accepted(fact.models)) if fact.models else state

    @property
    def models(self) -> tuple[str, ...]:
        """The models that the lines name, in the order of their numbers; empty unless they name several."""
        if self.batch is not None:
            return tuple(share.model for share in self.batch.tidemill.models)
        return tuple(one.model for one in self.early.accepted.models) if self.early.accepted is not None else ()


def created(state: State, first: BatchCreated | Opened, grace: float) -> State:
    """Create the batch, and apply the facts that came early; the batch of a stream is in progress at once."""
    if state.batch is not None or state.deleted_at is not None:
        return state
    fields = {"project": first.project, "batch": first.batch, "output_expires_after": first.output_expires_after}
    source = {"growing": True} if isinstance(first, Opened) else {"input": first.input}
    state = state.model_copy(update=fields | source)
    early, state = state.early, state.model_copy(update={"early": Early()})
    for _, fact in early:
        match fact:
            case Accepted():
                state = accepted(state, fact)
            case Rejected():
                state = rejected(state, fact)
            case CancelRequested():
                state = cancelled(state, fact, grace)
            case Grown():
                state = grown(state, fact)
            case Ended() | Sealed():
                state = no_more_lines(state, fact)
            case DeadLettered():
                state = dead_lettered(state, fact)
    return state


def accepted(state: State, fact: Accepted) -> State:
    """Ingest accepted the input, and knows its number of lines."""
    if state.batch is None:
        return _early(state, fact)
    if state.closed:
        return state
    if state.batch.status is Status.VALIDATING:
        batch = move(state.batch, Status.IN_PROGRESS, fact.at)
        return state.model_copy(update={"batch": batch}).with_lines(fact)
    if state.batch.status is Status.CANCELLING and not state.batch.is_validated:
        return state.with_lines(fact)
    return state


def grown(state: State, fact: Grown) -> State:
    """The stream has more lines; a total that is not larger than the last one changes nothing."""
    if state.batch is None:
        return _early(state, fact)
    if not state.growing or fact.total <= state.batch.request_counts.total:
        return state
    state = state.with_total(fact.total, model=state.batch.model or fact.model).with_extras(
        input_bytes=fact.bytes, dropped_records=fact.dropped_records
    )
    return state if fact.sequence is None else state.with_extras(sequence=fact.sequence)


def no_more_lines(state: State, fact: Ended | Sealed) -> State:
    """The stream accepts no more lines, and the api refuses them.

    Once it is sealed, it has all its lines: from now on the batch is like one with an input file.
    """
    if state.batch is None:
        return _early(state, fact)
    if not state.growing:
        return state
    if isinstance(fact, Ended):
        return state.with_extras(open=False) if state.batch.tidemill.open else state
    state = state.with_total(fact.total, model=state.batch.model or fact.model).with_extras(
        open=False, input_bytes=None, dropped_records=fact.dropped_records
    )
    return state.model_copy(update={"input": fact.input, "growing": False})


def rejected(state: State, fact: Rejected) -> State:
    """Ingest rejected the input."""
    if state.batch is None:
        return _early(state, fact)
    if state.batch.status is not Status.VALIDATING or state.closed:
        return state
    batch = move(state.batch, Status.FAILED, fact.at, errors=BatchErrors(data=fact.errors))
    return state.model_copy(update={"batch": batch})


def cancelled(state: State, command: CancelRequested, grace: float) -> State:
    """A user asked to cancel; results of lines in flight count for `grace` seconds more."""
    if state.batch is None:
        return _early(state, command)
    if state.ending is not None or state.batch.status not in CANCELLABLE:
        return state
    return state.model_copy(
        update={
            "batch": move(state.batch, Status.CANCELLING, command.at),
            "ending": Status.CANCELLED,
            "close_at": command.at + grace,
        }
    )


def bare(state: State, command: BatchCreated) -> State:
    """The batch with the few fields that cannot fail, if the command that creates it is a dead letter."""
    if state.batch is not None or state.deleted_at is not None:
        return state
    batch = command.batch.model_copy(update={"metadata": None, "tidemill": Extras()})
    return state.model_copy(update={"project": command.project, "batch": batch, "early": Early()})


def dead_lettered(state: State, fact: DeadLettered, *, ends: bool = True) -> State:
    """A record of the batch is a dead letter, which ends a batch in validation; a batch at work shows it."""
    if (batch := state.batch) is None:
        return _early(state, fact) if ends else state
    if state.is_over or (batch.status is Status.VALIDATING and (state.closed or not ends)):
        return state
    if batch.status is Status.VALIDATING:
        message = _UNHANDLED.format(fact.reason, fact.source)[:TEXT_CHARS_MAX]
        errors = BatchErrors(data=(BatchError(code="server_error", message=message),))
        return state.model_copy(update={"batch": move(batch, Status.FAILED, fact.at, errors=errors)})
    if (letters := with_letter(state.letters, fact.source)) is None:
        return state
    known = batch.tidemill.fault
    fault = Fault(records=known.records + 1 if known else 1, source=fact.source, reason=fact.reason)
    return state.with_extras(fault=fault).model_copy(update={"letters": letters})


def deleted(state: State, command: DeleteRequested) -> State:
    """Forget all of a batch that is over or unknown, except its deletion."""
    if state.deleted_at is not None or (state.batch is not None and not state.is_over):
        return state
    return State(id=state.id, partition=state.partition, chunks=state.chunks, deleted_at=command.at)


def overdue(state: State, now: float, grace: float) -> State:
    """Expire a batch past its deadline; results of lines in flight count for `grace` seconds more.

    One whose input ingest has not accepted until then stays in validation while its files are written.
    """
    batch = state.batch
    if batch is None or state.ending is not None or now < batch.expires_at or batch.status not in CANCELLABLE:
        return state
    return state.model_copy(update={"ending": Status.EXPIRED, "close_at": batch.expires_at + grace})


def is_complete(state: State, done: int) -> bool:
    """Whether every line of a batch at work that is sent to servers is final."""
    return (
        _may_close(state)
        and state.batch is not None
        and state.batch.is_validated
        and done >= state.batch.lines_asked
    )


def lines_max(state: State) -> int:
    """The bound on the batch's line indices, known because the log has the number of lines before the lines."""
    if state.batch is not None:
        return state.batch.request_counts.total
    return state.early.accepted.total if state.early.accepted is not None else 0


def is_due(state: State, now: float) -> bool:
    """Whether an ending batch accepts no more lines."""
    return _may_close(state) and state.close_at is not None and now >= state.close_at


def close(state: State, now: float, by: str) -> State:
    """Accept no more lines; the files can be written. `by` is the owner of the partition."""
    update: dict[str, object] = {"closed": True, "closed_by": by, "ending": state.ending or Status.COMPLETED}
    if state.batch is not None and state.batch.status is Status.IN_PROGRESS:
        update["batch"] = move(state.batch, Status.FINALIZING, int(now))
    return state.model_copy(update=update)


def compacted(state: State, fact: Compacted) -> State:
    """Set the final status, files, counts and usage, now that the files are written."""
    if state.batch is None or state.ending is None or state.is_over:
        return state
    receipt = fact.receipt
    files = {kind: ids.derived_file_id(state.id, kind) for kind, _ in receipt.files}
    errors = files.pop(file_kind(failed=True), None)
    outputs = tuple(files.values())
    counts = RequestCounts(
        total=receipt.lines, completed=receipt.output.lines if receipt.output else 0, failed=fact.failed
    )
    batch = move(
        state.batch,
        state.ending,
        fact.at,
        output_file_id=outputs[0] if outputs else None,
        error_file_id=errors,
        request_counts=counts,
        usage=fact.usage,
        tidemill=state.batch.tidemill.model_copy(
            update={
                "receipt": receipt,
                "output_file_ids": outputs if receipt.outputs else (),
                "cost": fact.cost,
                "models": model_shares.final(state.batch.tidemill.models, fact.models),
                "waiting": bounded(state.batch.tidemill.waiting, counts.pending),
                "recovered": fact.recovered,
                "output_copy": fact.output_copy,
                "usage_unknown": fact.usage_unknown or None,
            }
        ),
    )
    return state.model_copy(update={"batch": batch, "parts": (), "written": None})


def counted(state: State, bitmap: LineBitmap, retries: int = 0) -> State:
    """Update the counts of a batch; none goes back while a replay brings lines again."""
    if state.batch is None or state.batch.status not in AT_WORK:
        return state
    counts = state.batch.request_counts
    completed, failed = max(counts.completed, bitmap.done - bitmap.failed), max(counts.failed, bitmap.failed)
    if (completed, failed) == (counts.completed, counts.failed):
        return state
    shown = counts.model_copy(update={"completed": completed, "failed": failed})
    models = model_shares.counted(state.batch.tidemill.models, bitmap.by_model)
    retried = max(state.batch.tidemill.retries or 0, retries) or None
    return state.with_batch(request_counts=shown).with_extras(models=models, retries=retried)


def next_due(state: State) -> float | None:
    """When time alone will change the batch, Unix seconds; None if never."""
    if state.closed or state.batch is None or state.batch.status not in OPEN:
        return None
    if state.growing and state.close_at is not None:
        # A growing batch waits for its seal: every line that ingest accepted needs a result.
        return None
    return state.close_at if state.close_at is not None else float(state.batch.expires_at)


def finishes_at_once(state: State) -> bool:
    """Whether `Written` can end the batch, so that its files may be written from memory."""
    if state.batch is None or state.models:
        return False
    extras = state.batch.tidemill
    is_plain = not extras.copies and extras.numbered is None and extras.output_uri is None
    return is_plain and is_brief(state)


def is_brief(state: State) -> bool:
    """Whether the batch is so small, and not cancelled, that its intermediate states need not be published."""
    batch = state.batch
    if state.ending not in (None, Status.COMPLETED):
        return False
    if batch is None or batch.status is Status.VALIDATING:
        return True
    is_small = batch.request_counts.total <= EXPRESS_LINES_MAX
    return is_small and batch.status in (Status.IN_PROGRESS, Status.FINALIZING)


def _may_close(state: State) -> bool:
    if state.closed or state.growing or state.batch is None:
        return False
    return state.batch.status in AT_WORK or (state.batch.status is Status.VALIDATING and state.ending is not None)


def _early(state: State, fact: EarlyFact) -> State:
    if state.deleted_at is not None:
        return state
    early = state.early.with_(fact)
    return state if early is state.early else state.model_copy(update={"early": early})
