"""The table of a batch's states, and what follows from it."""

from tidemill.schemas.lifecycle import AT_WORK, CANCELLABLE, CANCELLED, MOVES, OPEN, RANK, move
from tidemill.schemas.resources.batch import TERMINAL, Batch, Status


def test_every_batch_comes_to_an_end():
    """Each state has its row; each reaches a final state, which no move leaves."""
    assert MOVES.keys() == set(Status)
    ending = set(TERMINAL)
    for _ in Status:
        ending |= {status for status, to in MOVES.items() if to & ending}
    assert ending == set(Status)
    assert {status for status, to in MOVES.items() if not to} == TERMINAL


def test_a_move_never_goes_back():
    """So the record of the higher rank is the later one."""
    assert all(RANK[status] < RANK[to] for status, moves in MOVES.items() for to in moves)


def test_the_effect_of_a_cancel_by_state():
    """It changes an open batch, repeats an earlier cancel, or comes too late."""
    assert {Status.VALIDATING, Status.IN_PROGRESS} == CANCELLABLE
    assert {Status.CANCELLING, Status.CANCELLED} == CANCELLED
    assert AT_WORK < OPEN == CANCELLABLE | (CANCELLED - TERMINAL)


def test_a_batch_ends_at_the_move_to_its_final_state():
    """Earlier moves leave `ended_at` empty, whichever final state follows."""
    batch = Batch(
        id="batch_1",
        endpoint="/v1/embeddings",
        input_file_id="file-1",
        completion_window="24h",
        status=Status.VALIDATING,
        created_at=10,
        expires_at=100,
    )
    seen, waiting = set(), [batch]
    while waiting:
        batch = waiting.pop()
        for at, to in enumerate(MOVES[batch.status], start=20 + RANK[batch.status] * 10):
            moved = move(batch, to, at)
            assert moved.ended_at == (at if to in TERMINAL else None)
            seen.add(to)
            waiting.append(moved)
    assert seen >= TERMINAL
