"""Says what lines wait for that wait longer than usual: seen here, counted by batch, and told to results.

A batch is looked at by its counts alone, so a look costs the same however many lines it has. What failed lines is
in the account; for lines that were not called yet it is what keeps the model's servers from taking another call.
"""

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from tidemill.processors.backends.pool import Backend, BackendPool
from tidemill.processors.failures import FailureKind
from tidemill.processors.lines import Pending
from tidemill.processors.scheduling.failure_account import FailureAccount
from tidemill.processors.scheduling.failure_account import Waiting as Held
from tidemill.schemas.log.codec import KIND, encode
from tidemill.schemas.log.messages import HOLD_SECONDS_MAX, Stalled
from tidemill.schemas.ports import Clock, Outbox
from tidemill.schemas.resources.waiting import MESSAGE_CHARS_MAX, SERVER_CHARS_MAX, Reason, Waiting, merged

LOOK_SECONDS: Final = 2.0
STALL_SECONDS: Final = 10.0
"""Without a result for so long a batch waits longer than usual; so does a line that has failed for so long."""
SAY_SECONDS: Final = 10.0
"""What is still true is said again; where many batches wait, less often."""
SAID_MAX: Final = 25
"""Remarks of one look."""
HOLD_TIMES: Final = 3
"""A remark counts for so many times as long as it takes to come again."""
SOURCE_BYTES: Final = 4

_REASONS: Final = {
    FailureKind.CONNECT: Reason.SERVER_UNREACHABLE,
    FailureKind.TIMEOUT: Reason.SERVER_SILENT,
    FailureKind.STORE: Reason.STORE,
}
_WORDS: Final = {
    Reason.SERVER_UNREACHABLE: "{} cannot be reached",
    Reason.SERVER_REFUSES: "{} answers {}",
    Reason.SERVER_FAILS: "Calls to {} fail",
    Reason.SERVER_SILENT: "{} does not answer in time",
    Reason.STORE: "The object store does not answer",
    Reason.SCHEDULE: "{} takes no calls at this hour, by its schedule",
    Reason.DRAINED: "{} gets no calls: it is set to drain",
    Reason.HEADROOM: "{} is busy with requests of others",
    Reason.TOKENS_PER_MINUTE: "The tokens of this minute are used",
}
_Cause = tuple[Reason, str | None, int | None]
"""With the server and its status."""


class Lines(Protocol):
    """The lines that wait for a call."""

    def waiting(self, batch_id: str) -> int:
        """Lines of a batch that wait for their first call, and not for memory."""
        ...

    def waiting_for_memory(self, batch_id: str) -> int:
        """Large lines of a batch that wait for memory."""
        ...


@dataclass(slots=True)
class _Seen:
    """What is known of a batch from look to look; times are those of the loop."""

    settled: int
    since: float
    """When a line of it had a result last, or it came."""
    said: frozenset[_Cause] = frozenset()
    said_at: float = 0.0


class Stalls:
    """Of the lines that one process has of one model."""

    def __init__(
        self,
        batches: Mapping[str, Pending],
        lines: Lines,
        fleet: BackendPool,
        account: FailureAccount,
        *,
        clock: Clock,
        is_secret: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """Look at nothing yet.

        Args:
            batches: The pending lines, as they are at any time.
            lines: Those of them that wait for a call.
            fleet: The servers.
            account: What failed lines.
            clock: Unix time.
            is_secret: Whether a batch is sealed: what a server said of its lines is not told in clear then.
        """
        self.is_secret = is_secret
        self._batches = batches
        self._lines = lines
        self._fleet = fleet
        self._account = account
        self._clock = clock
        self._source = secrets.token_hex(SOURCE_BYTES)
        self._number = 0
        self._seen: dict[str, _Seen] = {}
        self._moved_at = 0.0
        """When a line of any batch had a result last."""

    async def run(self, outbox: Outbox) -> None:
        """Look again and again, and say what is seen."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            said = self.look(loop.time())
            kind = [(KIND, b"stalled")]
            await asyncio.gather(*(outbox.send(fact.batch_id, encode(fact), kind) for fact in said))

    def look(self, now: float) -> list[Stalled]:
        """What is to be said now.

        Args:
            now: The loop's time.
        """
        held: defaultdict[str, list[Held]] = defaultdict(list)
        for one in self._account.waiting():
            held[one.batch_id].append(one)
        for batch_id, batch in self._batches.items():
            seen = self._seen.setdefault(batch_id, _Seen(batch.settled, now))
            if seen.settled != batch.settled:
                seen.settled, seen.since, self._moved_at = batch.settled, now, now
        causes = self._causes(now, held) if self._seen else []
        lines = sum(len(batch.lines) for batch in self._batches.values())
        found = {batch_id: self._waits(batch_id, held[batch_id], causes, lines, now) for batch_id in self._seen}
        cycle = max(SAY_SECONDS, LOOK_SECONDS * sum(map(bool, found.values())) / SAID_MAX)
        due = [batch_id for batch_id in found if self._is_due(self._seen[batch_id], found[batch_id], now, cycle)]
        due.sort(key=lambda batch_id: self._seen[batch_id].said_at)
        said = [self._say(batch_id, found[batch_id], now, cycle) for batch_id in due[:SAID_MAX]]
        for batch_id in [one for one in self._seen if one not in self._batches and not self._seen[one].said]:
            del self._seen[batch_id]
        return said

    @staticmethod
    def _is_due(seen: _Seen, waits: tuple[Waiting, ...], now: float, cycle: float) -> bool:
        if _causes_of(waits) != seen.said:
            return True
        return bool(waits) and now >= seen.said_at + cycle

    def _say(self, batch_id: str, waits: tuple[Waiting, ...], now: float, cycle: float) -> Stalled:
        seen = self._seen[batch_id]
        seen.said, seen.said_at = _causes_of(waits), now
        self._number += 1
        hold = min(HOLD_SECONDS_MAX, int(HOLD_TIMES * cycle))
        return Stalled(
            batch_id=batch_id, source=self._source, number=self._number, waiting=waits, hold_seconds=hold
        )

    def _waits(
        self, batch_id: str, held: list[Held], causes: list[_Cause], lines: int, now: float
    ) -> tuple[Waiting, ...]:
        """What a batch waits for; `lines` are those of all batches."""
        batch, seen, wall = self._batches.get(batch_id), self._seen[batch_id], self._clock()
        if batch is None:
            return ()
        is_stalled = now >= seen.since + STALL_SECONDS
        waits = [
            _wait((_reason(one), one.server, one.status), one.lines, one.since, self._said_of(one))
            for one in held
            if is_stalled or wall >= one.since + STALL_SECONDS
        ]
        if is_stalled:
            since = wall - (now - seen.since)
            fresh = max(0, batch.open - sum(one.lines for one in held))
            queued = min(fresh, self._lines.waiting(batch_id))
            if queued:
                waits += [_wait(cause, queued, since, "") for cause in causes] or [
                    _behind(lines - len(batch.lines), queued, since)
                ]
            if large := min(fresh - queued, self._lines.waiting_for_memory(batch_id)):
                words = "Calls of other large lines use the memory that there is for these."
                waits.append(Waiting(reason=Reason.MEMORY, lines=large, message=words, since=int(since)))
            if called := fresh - queued - large:
                waits.append(self._in_flight(called, since, seen.since))
            if done := len(batch.lines) - batch.open:
                words = f"{done} results are there, and the log or the store does not take them."
                waits.append(Waiting(reason=Reason.DELIVERY, lines=done, message=words, since=int(since)))
        return merged(waits, len(batch.lines)) if len(waits) > 1 else tuple(waits)

    def _said_of(self, held: Held) -> str:
        return "" if self.is_secret(held.batch_id) else held.message

    def _in_flight(self, lines: int, since: float, stalled_at: float) -> Waiting:
        if self._moved_at > stalled_at:
            words = "Calls for these lines are under way, and take long."
            return Waiting(reason=Reason.IN_FLIGHT, lines=lines, message=words, since=int(since))
        called = [backend.base for backend in self._fleet.backends if not backend.drain]
        server = called[0] if len(called) == 1 else None
        words = f"{server or 'The servers'} took {lines} calls and answered none yet."
        return Waiting(
            reason=Reason.SERVER_SILENT, lines=lines, server=_url(server), message=_cut(words), since=int(since)
        )

    def _causes(self, now: float, held: Mapping[str, list[Held]]) -> list[_Cause]:
        """Why no line that was not called yet is called now; empty where one is."""
        failed = {one.server: one for group in held.values() for one in group if _reason(one) is not Reason.STORE}
        causes = [_cause(backend, failed.get(backend.base), now) for backend in self._fleet.backends]
        return [] if None in causes else [cause for cause in causes if cause is not None]


def _cause(backend: Backend, failed: Held | None, now: float) -> _Cause | None:
    """Why a server takes no call; None where it takes some."""
    if not backend.drain and backend.breaker.failures and failed is not None:
        return _reason(failed), backend.base, failed.status
    rules = (
        (Reason.DRAINED, backend.drain),
        (Reason.SERVER_FAILS, backend.breaker.failures),
        (Reason.SCHEDULE, backend.scheduled_limit is not None and backend.scheduled_limit() == 0),
        (Reason.HEADROOM, backend.headroom is not None and backend.headroom.left(now) == 0),
        (Reason.TOKENS_PER_MINUTE, not all(bucket.allows(now) for bucket in backend.buckets)),
    )
    reason = next((reason for reason, holds in rules if holds), None)
    return None if reason is None else (reason, None if reason is Reason.TOKENS_PER_MINUTE else backend.base, None)


def _reason(held: Held) -> Reason:
    if (reason := _REASONS.get(held.reason)) is not None:
        return reason
    return Reason.SERVER_FAILS if held.status is None or held.status < 300 else Reason.SERVER_REFUSES  # noqa: PLR2004


def _wait(cause: _Cause, lines: int, since: float, said: str) -> Waiting:
    reason, server, status = cause
    if reason is Reason.STORE:
        server = None
    words = _WORDS[reason].format(server, status)
    message = (
        f"{words}: {said}" if said and reason in {Reason.SERVER_REFUSES, Reason.SERVER_FAILS} else f"{words}."
    )
    return Waiting(
        reason=reason, lines=lines, server=_url(server), status=status, message=_cut(message), since=int(since)
    )


def _behind(others: int, queued: int, since: float) -> Waiting:
    if others:
        words = f"{others} lines of other batches are under way or have their turn before."
    else:
        words = "As many calls are under way as may be at one time, all for lines of this batch."
    return Waiting(reason=Reason.QUEUED, lines=queued, message=words, since=int(since))


def _causes_of(waits: tuple[Waiting, ...]) -> frozenset[Any]:
    return frozenset((one.reason, one.server, one.status) for one in waits)


def _url(server: str | None) -> str | None:
    return None if server is None else server[:SERVER_CHARS_MAX]


def _cut(words: str) -> str:
    return words[:MESSAGE_CHARS_MAX]
