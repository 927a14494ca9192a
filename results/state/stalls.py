"""Why the lines of a batch wait: reports of the processes that hold them, and reasons that only its owner sees.

Reports are kept in memory alone. Processes repeat them, so a new owner has them within seconds; until then the
batch keeps showing its last reasons.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from tidemill.configuration.catalog import MODEL, Contents
from tidemill.results.state.reducer import State
from tidemill.schemas.lifecycle import CANCELLABLE
from tidemill.schemas.log.messages import Stalled
from tidemill.schemas.resources.batch import Batch, Status
from tidemill.schemas.resources.waiting import Reason, Waiting, merged

SOURCES_MAX: Final = 16
"""Processes whose reports on one batch are kept."""
SILENCE_SECONDS: Final = 20.0
"""After this time without progress or a report, the owner itself gives a reason: processes report earlier."""


class _Report(NamedTuple):
    number: int
    model: str
    waiting: tuple[Waiting, ...]
    until: float


@dataclass(slots=True)
class Stalls:
    """The reports on one batch; times are those of the monotonic clock."""

    moved_at: float = 0.0
    """When the batch last advanced, or was taken over."""
    moved: tuple[object, int] = (None, 0)
    """The status of the batch, and its number of final lines, at that time."""
    uncalled: Mapping[str, Waiting] = field(default_factory=dict)
    """Why no process may call the lines of some of its models, at the last look."""
    _is_new: bool = True
    """Whether it has neither advanced nor got a report since it was taken over."""
    _models: dict[str, tuple[int, float]] = field(default_factory=dict)
    """For each model of a batch with several, its lines without a result, and when they last became fewer."""
    _reports: dict[str, _Report] = field(default_factory=dict)

    def add(self, fact: Stalled, now: float) -> bool:
        """Add the report of a process; returns whether it is new."""
        known = self._reports.get(fact.source)
        if known is not None and fact.number <= known.number:
            return False
        self._forget(now)
        if known is None and len(self._reports) >= SOURCES_MAX:
            return False
        self._reports[fact.source] = _Report(fact.number, fact.model, fact.waiting, now + fact.hold_seconds)
        self._is_new = False
        return True

    def look(self, state: State, done: int, now: float) -> None:
        """Note whether the batch has advanced."""
        step = (state.batch and state.batch.status, done)
        if step != self.moved:
            self.moved, self.moved_at, self._is_new = step, now, False
        for share in state.batch.tidemill.models if state.batch is not None else ():
            # If an alias changes between two publications, a model may get more lines than at first.
            left = share.unanswered
            if self._models.get(share.model, (-1, 0.0))[0] != left:
                self._models[share.model] = left, now

    def due(self, now: float) -> list[float]:
        """When the reasons may change without a record."""
        times = [report.until for report in self._reports.values() if report.waiting]
        moves = [at for left, at in self._models.values() if left]
        return [at for at in (*times, *(at + SILENCE_SECONDS for at in (self.moved_at, *moves))) if at > now]

    def shown(
        self, state: State, done: int, now: float, wall: float, *, reported_at: Mapping[str, float]
    ) -> tuple[Waiting, ...]:
        """The reasons to show on the batch.

        Args:
            state: The batch.
            done: Its final lines.
            now: The present time.
            wall: The same moment in Unix seconds.
            reported_at: When any process of a model last reported.
        """
        if (batch := state.batch) is None:
            return ()
        since = int(wall - (now - self.moved_at))
        is_silent = now >= self.moved_at + SILENCE_SECONDS
        if self._is_new and not is_silent:
            return batch.tidemill.waiting
        self._forget(now)
        if batch.status is Status.VALIDATING:
            queued = tuple(wait for report in self._reports.values() for wait in report.waiting)
            return queued[-1:] or ((_unchecked(since),) if is_silent else ())
        left = batch.lines_asked - done
        reported = [
            wait
            for report in self._reports.values()
            if report.model not in self.uncalled
            for wait in report.waiting
            if wait.reason is not Reason.BATCHES_AT_WORK
        ]
        if left <= 0:
            unwritten = tuple(wait for wait in reported if wait.reason is Reason.FILES)
            return (unwritten or ((_open(batch, since),) if is_silent else ())) if state.growing else ()
        models = self._models or {batch.model or "": (left, self.moved_at)}
        held = [
            wait.model_copy(update={"lines": models[model][0]})
            for model, wait in self.uncalled.items()
            if model in models and models[model][0]
        ]
        if all(model in self.uncalled for model in models):
            return merged(held, left)
        return merged([*held, *reported, *self._silent(models, now, wall, reported_at)], left)

    def _silent(
        self, models: Mapping[str, tuple[int, float]], now: float, wall: float, reported_at: Mapping[str, float]
    ) -> list[Waiting]:
        """The reasons of the models whose processes have not reported on the lines of the batch."""
        known = {report.model for report in self._reports.values() if report.waiting} | self.uncalled.keys()
        return [
            _unreported(model, left, int(wall - (now - at)), others=reported_at.get(model, 0.0) > at)
            for model, (left, at) in models.items()
            if left and not known & {model, ""} and now >= at + SILENCE_SECONDS
        ]

    def _forget(self, now: float) -> None:
        for source in [source for source, report in self._reports.items() if report.until <= now]:
            del self._reports[source]


def held(contents: Contents, model: str) -> Waiting | None:
    """Why no process may call the lines of a model, by the catalog; None if processes may."""
    entry = contents.entries.get(MODEL + model)
    at = 0 if entry is None else entry.at
    if (settings := contents.serving.models.get(model)) is not None:
        return Waiting.of(Reason.PAUSED, f"The model {model} is paused.", since=at) if settings.paused else None
    if (fault := contents.faults.get(MODEL + model)) is not None:
        return Waiting.of(
            Reason.NO_PROCESSOR, f"The settings of the model {model} cannot be used: {fault}", since=at
        )
    return Waiting.of(Reason.REMOVED, f"The model {model} was removed.", since=at)


def show(state: State, waits: tuple[Waiting, ...]) -> State:
    """Show why the lines of a batch wait; an ending batch keeps the reasons it had when its time was up."""
    batch = state.batch
    if batch is None or state.ending is not None or batch.status not in CANCELLABLE:
        return state
    if batch.tidemill.waiting == waits:
        return state
    return state.with_extras(waiting=waits)


def reasons(waits: Iterable[Waiting]) -> set[str]:
    """The names of the reasons, each once."""
    return {wait.reason.value for wait in waits}


def _unchecked(since: int) -> Waiting:
    words = "The input is not checked yet: ingest works on others, cannot read the store, or does not run."
    return Waiting.of(Reason.VALIDATION, words, since=since)


def _open(batch: Batch, since: int) -> Waiting:
    is_of_api = batch.tidemill.stream == batch.id
    step = "append lines, or seal it" if is_of_api else "produce lines, or a record with tidemill-end"
    words = f"The batch is open, and all its lines are done: {step}. Silence seals it, too."
    return Waiting.of(Reason.OPEN, words, since=since)


def _unreported(model: str, lines: int, since: int, *, others: bool) -> Waiting:
    if others:
        words = f"The processes of the model {model} work on lines of other batches."
        return Waiting.of(Reason.QUEUED, words, lines=lines, since=since)
    words = f"No process that serves the model {model} has reported on the lines."
    return Waiting.of(Reason.NO_PROCESSOR, words, lines=lines, since=since)
