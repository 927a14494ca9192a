"""Reports to results why lines of a batch wait for longer than usual.

A check reads only the counts of a batch, so its cost does not depend on the number of lines. Failed lines wait for
the reason in `FailedLines`; lines not yet called wait for the reason why the model's servers take no call.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from tidemill.processors.backends.backend import Backend
from tidemill.processors.backends.pool import BackendPool
from tidemill.processors.failures import FailureKind
from tidemill.processors.lines import Pending
from tidemill.processors.scheduling.failed_lines import FailedGroup, FailedLines
from tidemill.processors.scheduling.waiting_lines import WaitingLines
from tidemill.schemas.log.messages import HOLD_SECONDS_MAX, Stalled
from tidemill.schemas.log.stall_reports import StallReports
from tidemill.schemas.ports import Clock
from tidemill.schemas.resources.load import Cause
from tidemill.schemas.resources.waiting import MESSAGE_CHARS_MAX, Reason, Waiting, merged
from tidemill.wording import counted

CHECK_SECONDS: Final = 2.0
STEP_SECONDS_MAX: Final = 2 * CHECK_SECONDS
"""A longer time between two looks counts as this: the process stood still, and replies may lie in its sockets."""
STALL_SECONDS: Final = 10.0
"""A batch without a result for this time has stalled, and so has a line that has failed for this time."""
FIRST_SECONDS: Final = 60.0
"""How long the first answers of a server may take before it counts as silent, as a whole."""
USUAL_PART: Final = 0.9
USUAL_TIMES: Final = 2
"""A server is silent after this multiple of the time in which that part of its last good calls ended."""
REPORT_SECONDS: Final = 10.0
"""A report that is still true is sent again after this time; less often if many batches wait."""
REPORTS_MAX: Final = 25
"""Reports of one check."""
HOLD_TIMES: Final = 3
"""A report is valid for this multiple of the time until it is sent again."""

_REASONS: Final = {
    FailureKind.CONNECT: Reason.SERVER_UNREACHABLE,
    FailureKind.TIMEOUT: Reason.SERVER_SILENT,
    FailureKind.STORE: Reason.STORE,
    FailureKind.KEY: Reason.KEY,
}
_WORDS: Final = {
    Reason.SERVER_UNREACHABLE: "{} cannot be reached",
    Reason.SERVER_REFUSES: "{} answers {}",
    Reason.SERVER_FAILS: "Calls to {} fail",
    Reason.SERVER_SILENT: "{} does not answer in time",
    Reason.STORE: "The object store does not answer",
    Reason.KEY: "The key of the batch is unavailable",
    Reason.SCHEDULE: "{} takes no calls at this hour, by its schedule",
    Reason.ACCESS: "{} cannot be called: the processors lack its key or a TLS file, or cannot use it",
    Reason.DRAINED: "{} gets no calls: it is set to drain",
    Reason.HEADROOM: "{} is busy with requests of others",
    Reason.TOKENS_PER_MINUTE: "The tokens of this minute are used",
    Reason.DELIVERY: "No call starts until the log has acknowledged results of earlier ones",
}
_EXPLAINED: Final = frozenset({Reason.SERVER_UNREACHABLE, Reason.SERVER_REFUSES, Reason.SERVER_FAILS})
"""Reasons with the error of the last failed call."""
_QUOTED: Final = _EXPLAINED - {Reason.SERVER_UNREACHABLE}
"""Those whose error is in the server's words."""
_Cause = tuple[Reason, str | None, int | None]
"""Reason, server, status."""


@dataclass(slots=True)
class _Seen:
    """The state of a batch between two checks; times but `wall` are those of `Stalls._awake`."""

    settled: int
    since: float
    """When a line last got a result, or the batch arrived."""
    wall: float
    """The same as Unix time."""
    reported: frozenset[_Cause] = frozenset()
    reported_at: float = 0.0


class _Look(NamedTuple):
    """What a check finds once for all batches."""

    now: float
    causes: list[_Cause]
    lines: int
    """Those of all batches."""
    patience: float
    """See `Stalls._patience`."""


class Stalls:
    """Watches the lines of one model in one process."""

    def __init__(
        self,
        batches: Mapping[str, Pending],
        lines: WaitingLines,
        pool: BackendPool,
        failed: FailedLines,
        *,
        clock: Clock,
        awaits_log: Callable[[], bool] = lambda: False,
    ) -> None:
        """Start without reports; the caller keeps the batches up to date.

        `awaits_log` says whether no call starts until the log acknowledges results.
        """
        self.refusal: Callable[[], str] = str
        """Returns why the log refuses results; empty if it does not."""
        self._awaits_log = awaits_log
        self._batches = batches
        self._lines = lines
        self._pool = pool
        self._failed = failed
        self._clock = clock
        self._reports = StallReports("lines", model=pool.model)
        self._seen: dict[str, _Seen] = {}
        self._moved_at = 0.0
        """When a line of any batch last got a result; this and `_idle_at` are times of `_awake`."""
        self._idle_at = 0.0
        """When a check last found no call in flight."""
        self._seconds = 0.0
        self._looked_at = float("-inf")

    def hide(self, is_secret: Callable[[str], bool]) -> None:
        """Do not quote a server's messages in reports of these batches."""
        self._failed.is_secret = is_secret

    def check(self, now: float) -> list[Stalled]:
        """The reports to send at `now`, by the event loop's clock."""
        loop_now, now = now, self._awake(now)
        self._failed.keep(self._batches)
        if not self._pool.in_flight:
            self._idle_at = now
        held: defaultdict[str, list[FailedGroup]] = defaultdict(list)
        for one in self._failed.groups():
            held[one.batch_id].append(one)
        wall = self._clock()
        for batch_id, batch in self._batches.items():
            seen = self._seen.setdefault(batch_id, _Seen(batch.settled, now, wall))
            if seen.settled != batch.settled:
                seen.settled, seen.since, seen.wall, self._moved_at = batch.settled, now, wall, now
        causes = self._causes(loop_now) if self._seen else []
        lines = sum(len(batch.lines) for batch in self._batches.values())
        look = _Look(now, causes, lines, self._patience(STALL_SECONDS) if self._seen else 0.0)
        found = {batch_id: self._waits(batch_id, held[batch_id], look) for batch_id in self._seen}
        cycle = max(REPORT_SECONDS, CHECK_SECONDS * sum(map(bool, found.values())) / REPORTS_MAX)
        due = [batch_id for batch_id in found if self._is_due(self._seen[batch_id], found[batch_id], now, cycle)]
        due.sort(key=lambda batch_id: self._seen[batch_id].reported_at)
        reports = [self._report(batch_id, found[batch_id], now, cycle) for batch_id in due[:REPORTS_MAX]]
        for batch_id in [one for one in self._seen if one not in self._batches and not self._seen[one].reported]:
            del self._seen[batch_id]
        return reports

    def _awake(self, now: float) -> float:
        """The seconds that this process has run, by `now` of the event loop's clock."""
        self._seconds += min(now - self._looked_at, STEP_SECONDS_MAX)
        self._looked_at = now
        return self._seconds

    @staticmethod
    def _is_due(seen: _Seen, waits: tuple[Waiting, ...], now: float, cycle: float) -> bool:
        if _causes_of(waits) != seen.reported:
            return True
        return bool(waits) and now >= seen.reported_at + cycle

    def _report(self, batch_id: str, waits: tuple[Waiting, ...], now: float, cycle: float) -> Stalled:
        seen = self._seen[batch_id]
        seen.reported, seen.reported_at = _causes_of(waits), now
        hold = min(HOLD_SECONDS_MAX, int(HOLD_TIMES * cycle))
        return self._reports.on(batch_id, *waits, hold_seconds=hold)

    def _waits(self, batch_id: str, held: list[FailedGroup], look: _Look) -> tuple[Waiting, ...]:
        """Why lines of a batch wait."""
        batch, seen, wall = self._batches.get(batch_id), self._seen[batch_id], self._clock()
        if batch is None:
            return ()
        is_stalled = look.now >= seen.since + STALL_SECONDS
        waits = [
            _wait((_reason(one), one.server, one.status), one.lines, one.since, one.message)
            for one in held
            if is_stalled or wall >= one.since + STALL_SECONDS
        ]
        if is_stalled:
            since = seen.wall
            fresh = max(0, batch.open - sum(one.lines for one in held))
            queued = min(fresh, self._lines.waiting(batch_id))
            if queued:
                waits += [_wait(cause, queued, since, "") for cause in look.causes] or [
                    _behind(look.lines - len(batch.lines), self._calls_of_others(), queued, since)
                ]
            if large := min(fresh - queued, self._lines.waiting_for_memory(batch_id)):
                words = "Calls of other large lines use the memory for large lines."
                waits.append(Waiting.of(Reason.MEMORY, words, lines=large, since=since))
            if called := fresh - queued - large:
                is_silent = self._is_silent_since(seen.since, look.now, look.patience)
                waits.append(self._in_flight(called, since, is_silent=is_silent))
            if done := len(batch.lines) - batch.open:
                words = f"The log or the store does not accept {counted(done, 'result')}."
                if why := self.refusal():
                    words = f"The log refuses {counted(done, 'result')} ({why})."
                waits.append(Waiting.of(Reason.DELIVERY, words, lines=done, since=since))
        return merged(waits, len(batch.lines)) if len(waits) > 1 else tuple(waits)

    def _calls_of_others(self) -> int:
        """Calls of other models at the servers."""
        return sum(backend.server.in_flight - backend.in_flight for backend in self._pool.backends)

    def _in_flight(self, lines: int, since: float, *, is_silent: bool) -> Waiting:
        if not is_silent:
            words = "Calls for these lines are in flight, and take long."
            return Waiting.of(Reason.IN_FLIGHT, words, lines=lines, since=since)
        called = [backend.server.name for backend in self._pool.backends if not backend.server.drain]
        server = called[0] if len(called) == 1 else None
        words = f"{server or 'The servers'} accepted {counted(lines, 'call')} and answered none yet."
        return Waiting.of(Reason.SERVER_SILENT, words, lines=lines, server=server, since=since)

    def of_servers(self, now: float) -> dict[str, Cause]:
        """Why each server of the model accepts no calls, without those that accept some."""
        failed = self._failed.latest
        self._failed.keep(self._batches)
        if self._awaits_log():
            delivery = _shown((Reason.DELIVERY, None, None), "")
            return {backend.server.name: delivery for backend in self._pool.backends}
        found, is_silent = {}, self._is_silent(self._awake(now))
        for backend in self._pool.backends:
            name, group = backend.server.name, failed.get(backend.server.name)
            if (one := _cause(backend, group, now)) is not None:
                found[name] = _shown(one, self._failed.error(name))
            elif is_silent and backend.in_flight and backend.server.in_flight >= backend.server.allowed(now):
                words = f"{name} accepted {counted(backend.in_flight, 'call')} and answered none yet."
                found[name] = Cause(reason=Reason.SERVER_SILENT, message=words[:MESSAGE_CHARS_MAX], since=0)
        return found

    def _is_silent(self, now: float) -> bool:
        """Whether a batch has stalled, and no line of another one got a result since then."""
        seen = [self._seen[one].since for one in self._batches if one in self._seen]
        patience = self._patience(FIRST_SECONDS) if seen else 0.0
        return any(self._is_silent_since(since, now, patience) for since in seen)

    def _is_silent_since(self, since: float, now: float, patience: float) -> bool:
        """Whether calls have been in flight for `patience`, and no line of any batch got a result since."""
        return since >= self._moved_at and now >= max(since, self._idle_at) + patience

    def _patience(self, first: float) -> float:
        """Seconds after which the servers are silent: more than calls take; before the first answer, `first`."""
        usual = [backend.metrics.usual_seconds(USUAL_PART) for backend in self._pool.backends]
        known = [USUAL_TIMES * seconds for seconds in usual if seconds is not None]
        return max(STALL_SECONDS, *known) if known else first

    def _causes(self, now: float) -> list[_Cause]:
        """Why no line gets its first call; empty if a server accepts calls."""
        if self._awaits_log():
            return [(Reason.DELIVERY, None, None)]
        causes = [
            _cause(backend, self._failed.latest.get(backend.server.name), now) for backend in self._pool.backends
        ]
        causes += [(Reason.SERVER_UNREACHABLE, name, None) for name in self._pool.unresolved]
        return [] if None in causes else [cause for cause in causes if cause is not None]


def cause(backend: Backend, now: float) -> Cause | None:
    """Why a server accepts no calls, by its state alone; None if it accepts some."""
    return None if (found := _cause(backend, None, now)) is None else _shown(found, "")


def unquoted(cause: Cause, server: str) -> str:
    """The message of a server's cause without the server's own words, which may quote a prompt."""
    if cause.reason not in _QUOTED:
        return cause.message
    return _shown((cause.reason, server, cause.status), "").message


def _shown(cause: _Cause, error: str) -> Cause:
    wait = _wait(cause, 0, 0.0, error)
    return Cause(reason=wait.reason, status=wait.status, message=wait.message, since=0)


def _cause(backend: Backend, failed: FailedGroup | None, now: float) -> _Cause | None:
    """Why a server accepts no calls; None if it accepts some."""
    server = backend.server
    if not server.drain and backend.is_paused and failed is not None:
        return _reason(failed), server.name, failed.status
    rules = (
        (server.drain or Reason.DRAINED, server.drain is not None),
        (Reason.SERVER_FAILS, backend.is_paused),
        (Reason.SCHEDULE, server.is_out_of_hours),
        (Reason.HEADROOM, server.headroom is not None and server.headroom.left(now) == 0),
        (Reason.TOKENS_PER_MINUTE, any(bucket.is_limiting(now) for bucket in backend.buckets)),
    )
    reason = next((reason for reason, holds in rules if holds), None)
    return None if reason is None else (reason, None if reason is Reason.TOKENS_PER_MINUTE else server.name, None)


def _reason(group: FailedGroup) -> Reason:
    if (reason := _REASONS.get(group.reason)) is not None:
        return reason
    return Reason.SERVER_FAILS if group.status is None or group.status < 300 else Reason.SERVER_REFUSES  # noqa: PLR2004


def _wait(cause: _Cause, lines: int, since: float, error: str) -> Waiting:
    reason, server, status = cause
    if reason in {Reason.STORE, Reason.KEY}:
        server = None
    words = _WORDS[reason].format(server, status)
    message = f"{words}: {error}" if error and reason in _EXPLAINED else f"{words}."
    return Waiting.of(reason, message, lines=lines, server=server, status=status, since=since)


def _behind(others: int, calls: int, queued: int, since: float) -> Waiting:
    if others:
        words = f"Other batches have {counted(others, 'line')} in flight or with an earlier turn."
    elif calls:
        words = f"Other models have {counted(calls, 'call')} in flight at the servers, which take no more."
    else:
        words = "As many calls are in flight as allowed, all of them for lines of this batch."
    return Waiting.of(Reason.QUEUED, words, lines=queued, since=since)


def _causes_of(waits: tuple[Waiting, ...]) -> frozenset[Any]:
    return frozenset((one.reason, one.server, one.status) for one in waits)
