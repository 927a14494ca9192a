"""The lifecycle of a batch: one table of states and the moves between them, and what follows from it.

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
"""A cancel changes such a batch. Its lines are called; those of any other batch are not, or not any more."""
CANCELLED: Final = frozenset({Status.CANCELLING}) | MOVES[Status.CANCELLING]
"""A cancel of such a batch was taken before."""
OPEN: Final = CANCELLABLE | {Status.CANCELLING}
"""A result counts that arrives now; time alone closes such a batch."""
AT_WORK: Final = OPEN - {Status.VALIDATING}
"""The number of its lines is known, and its counts grow."""
RANK: Final = {
    Status.VALIDATING: 0,
    Status.IN_PROGRESS: 1,
    Status.FINALIZING: 2,
    # A cancel may come too late, when the batch is finalizing already: what follows both decides.
    Status.CANCELLING: 3,
    **dict.fromkeys(TERMINAL, 4),
}
"""How far a batch is: of two records of it, the one of the higher rank is shown."""


class IllegalMove(Exception):
    """A batch was asked to move where the table has no way."""


def move(batch: Batch, to: Status, at: int, **changes: object) -> Batch:
    """The batch in its next state, the time of the move and all other changes set in the same step.

    No move is earlier than the one before it: the times of a batch come from several clocks, and one that is set
    back must not make it end before it began.

    Raises:
        IllegalMove: The table has no such move.
    """
    if to not in MOVES[batch.status]:
        raise IllegalMove(f"{batch.id} cannot go from {batch.status} to {to}")
    times = (batch.created_at, batch.in_progress_at, batch.finalizing_at, batch.cancelling_at)
    latest = max((at, *(time for time in times if time is not None)))
    if batch.tidemill.waiting and to not in (Status.FINALIZING, Status.EXPIRED):
        # What it waited for is over; only of an expired batch it is of interest what that was.
        changes = {"tidemill": batch.tidemill.model_copy(update={"waiting": ()}), **changes}
    return batch.model_copy(update={"status": to, f"{to.value}_at": latest, **changes})
