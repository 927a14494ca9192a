"""What a batch waits for: what processes say that hold its lines, and what only the owner of the batch can see.

What was said is kept in memory alone. It is said again as long as it is true, so a new owner hears of it within
seconds; the batch itself keeps what was shown last.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from tidemill.results.state.reducer import State
from tidemill.schemas.lifecycle import CANCELLABLE
from tidemill.schemas.log.messages import Stalled
from tidemill.schemas.resources.batch import Status
from tidemill.schemas.resources.waiting import MESSAGE_CHARS_MAX, Reason, Waiting, merged

SOURCES_MAX: Final = 16
"""Processes that are listened to at one time, for each batch."""
SILENCE_SECONDS: Final = 20.0
"""Without a line done and without a word, a batch waits longer than usual: who holds lines speaks up before."""


class _Said(NamedTuple):
    number: int
    waiting: tuple[Waiting, ...]
    until: float


@dataclass(slots=True)
class Stalls:
    """Of one batch; times are those of the monotonic clock."""

    moved_at: float = 0.0
    """When it advanced last, or was taken over."""
    moved: tuple[object, int] = (None, 0)
    """Its status and its lines that were done then."""
    _is_new: bool = True
    """Whether nothing came for it since it was taken over: then what it showed before still stands."""
    _said: dict[str, _Said] = field(default_factory=dict)

    def take(self, fact: Stalled, now: float) -> bool:
        """Note what a process reports; returns whether that changes anything."""
        known = self._said.get(fact.source)
        if known is not None and fact.number <= known.number:
            return False
        self._forget(now)
        if known is None and len(self._said) >= SOURCES_MAX:
            return False
        self._said[fact.source] = _Said(fact.number, fact.waiting, now + fact.hold_seconds)
        self._is_new = False
        return True

    def look(self, state: State, done: int, now: float) -> None:
        """Note whether the batch has advanced."""
        step = (state.batch and state.batch.status, done)
        if step != self.moved:
            self.moved, self.moved_at, self._is_new = step, now, False

    def due(self, now: float) -> list[float]:
        """When it may have to be published again."""
        times = [said.until for said in self._said.values() if said.waiting]
        return [at for at in (*times, self.moved_at + SILENCE_SECONDS) if at > now]

    def waiting(self, state: State, done: int, now: float, wall: float, *, heard_at: float) -> tuple[Waiting, ...]:
        """What to show on the batch.

        Args:
            state: The batch.
            done: Its lines that are final.
            now: The time.
            wall: The same moment in Unix seconds.
            heard_at: When any process of its model last reported.
        """
        if (batch := state.batch) is None:
            return ()
        since = int(wall - (now - self.moved_at))
        is_silent = now >= self.moved_at + SILENCE_SECONDS
        if self._is_new and not is_silent:
            return batch.tidemill.waiting
        if batch.status is Status.VALIDATING:
            return (_unchecked(since),) if is_silent else ()
        left = batch.request_counts.total - done
        if left <= 0:
            return ()
        self._forget(now)
        said = [one for said in self._said.values() for one in said.waiting]
        if said or not is_silent:
            return merged(said, left)
        return (_unheard(batch.model or "", left, since, others=heard_at > self.moved_at),)

    def _forget(self, now: float) -> None:
        for source in [source for source, said in self._said.items() if said.until <= now]:
            del self._said[source]


def waits(state: State, waiting: tuple[Waiting, ...]) -> State:
    """Show what the lines of a batch wait for; what they waited for when its time was up stays with it."""
    batch = state.batch
    if batch is None or state.ending is not None or batch.status not in CANCELLABLE:
        return state
    if batch.tidemill.waiting == waiting:
        return state
    extras = batch.tidemill.model_copy(update={"waiting": waiting})
    return state.model_copy(update={"batch": batch.model_copy(update={"tidemill": extras})})


def reasons(waits: Iterable[Waiting]) -> set[str]:
    """The reasons that are named."""
    return {one.reason.value for one in waits}


def _unchecked(since: int) -> Waiting:
    words = "The input is not checked yet: ingest works on others, cannot read the store, or does not run."
    return one(Reason.VALIDATION, words, lines=0, since=since)


def _unheard(model: str, lines: int, since: int, *, others: bool) -> Waiting:
    if others:
        return one(
            Reason.QUEUED, "The processes of its model work on lines of other batches.", lines=lines, since=since
        )
    words = f"No process that serves the model {model} has reported on the lines."
    return one(Reason.NO_PROCESSOR, words, lines=lines, since=since)


def one(reason: Reason, words: str, *, lines: int = 0, since: int) -> Waiting:
    """A reason; what words are too many are left out."""
    return Waiting(reason=reason, lines=lines, message=words[:MESSAGE_CHARS_MAX], since=max(0, since))
