"""The lifecycle of a batch: the table of its states and moves, and sets derived from it.

validating ──► in_progress ──► finalizing ──► completed
    │               │              └────────► expired
    ├──► failed     └──► cancelling ──► cancelled
    ├──► cancelling
    └──► expired
"""

from typing import Final

from tidemill.schemas.resources.batch import TERMINAL, Batch, Status

MOVES: Final[dict[Status, frozenset[Status]]] = {
    Status.VALIDATING: frozenset({Status.IN_PROGRESS, Status.FAILED, Status.CANCELLING, Status.EXPIRED}),
    Status.IN_PROGRESS: frozenset({Status.FINALIZING, Status.CANCELLING}),
    Status.FINALIZING: frozenset({Status.COMPLETED, Status.EXPIRED}),
    Status.CANCELLING: frozenset({Status.CANCELLED}),
    **dict.fromkeys(TERMINAL, frozenset()),
}
CANCELLABLE: Final = frozenset(status for status, to in MOVES.items() if Status.CANCELLING in to)
"""States in which a batch can be cancelled, and in which alone its lines are called."""
CANCELLED: Final = frozenset({Status.CANCELLING}) | MOVES[Status.CANCELLING]
"""States of a batch after a request to cancel it."""
OPEN: Final = CANCELLABLE | {Status.CANCELLING}
"""States in which a batch still counts results, and expires."""
AT_WORK: Final = OPEN - {Status.VALIDATING}
"""States of an open batch after validation; one that was cancelled before may still lack its number of lines."""
RANK: Final = {
    Status.VALIDATING: 0,
    Status.IN_PROGRESS: 1,
    Status.FINALIZING: 2,
    # A cancel may arrive while the batch is finalizing; the state after both decides.
    Status.CANCELLING: 3,
    **dict.fromkeys(TERMINAL, 4),
}
"""The order of progress: of a batch's records, the api shows the one with the highest rank."""


class IllegalMove(Exception):
    """The table does not have this move."""


def move(batch: Batch, to: Status, at: int, **changes: object) -> Batch:
    """The batch in its next state, with the time of the move and other changes.

    The time is never before that of earlier moves: a clock that is set back must not end a batch before it began.

    Raises:
        IllegalMove: The table does not have this move.
    """
    if to not in MOVES[batch.status]:
        raise IllegalMove(f"{batch.id} cannot go from {batch.status} to {to}")
    times = (batch.created_at, batch.in_progress_at, batch.finalizing_at, batch.cancelling_at)
    latest = max((at, *(time for time in times if time is not None)))
    moved = batch.model_copy(update={"status": to, f"{to.value}_at": latest, **changes})
    past: dict[str, object] = {"at_risk": None} if to.is_terminal else {}
    if to not in (Status.FINALIZING, Status.EXPIRED):
        # Of the batches in a final state, only an expired one still shows why its lines waited.
        past["waiting"] = ()
    return moved.model_copy(update={"tidemill": moved.tidemill.model_copy(update=past)}) if past else moved
