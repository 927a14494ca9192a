"""The dispatcher of one model: takes lines from records, calls the model's servers, sends the results to the log.

It knows nothing of Kafka: records come through `enqueue`, results leave through an `Outbox`.

A line is *pending* from its arrival until the log has its result. Meanwhile it waits in the scheduler, is in
flight, waits for another call (`scheduling/retry_queue.py`), or waits for its result to arrive. A second copy of a
pending line joins the first, and a copy of a completed line is finished at once: neither is called. A line is
finished without a result if its batch is closed or its deadline has passed: then the owner of the batch writes its
line. A call of a closed batch is aborted once its answer cannot count any more, which does not count against the
server.

The dispatcher carries out decisions that others make: `scheduling/scheduler.py` picks the next line,
`backends/pool.py` its server, `calls/retry.py` what follows a failed call.

Before its partitions move to another process, the dispatcher starts no more calls, waits briefly for those in
flight and their results, and forgets all other lines: Kafka redelivers their records. Longer calls go on
(`partitions/handover.py`); lines that come back are still pending, and others are forgotten if they fail.
"""

import asyncio
import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import assert_never

from tidemill.processors.backends.backend import Backend, Permit
from tidemill.processors.backends.permit_queue import NextLine
from tidemill.processors.calls import request_codec, retry, spans
from tidemill.processors.calls.caller import Caller, CallResult, count_call
from tidemill.processors.calls.in_flight import CallsInFlight
from tidemill.processors.calls.request_codec import Success
from tidemill.processors.failures import NOT_FETCHED, CallFailure, History
from tidemill.processors.joined import caller as joined_caller
from tidemill.processors.joined.joiner import JoinedCall, Joiner
from tidemill.processors.lines import Line, PendingLines
from tidemill.processors.memory_budget import LineBudget
from tidemill.processors.outcomes.batching import RECORD_LINES_MAX, ResultBatcher
from tidemill.processors.outcomes.sending import ResultSender
from tidemill.processors.partitions.closed_batches import ClosedBatches
from tidemill.processors.partitions.completed_lines import CompletedLines
from tidemill.processors.partitions.window import Entry
from tidemill.processors.scheduling.failed_lines import FailedLines
from tidemill.processors.scheduling.prefix_groups import Prefixes
from tidemill.processors.scheduling.stalls import Stalls
from tidemill.processors.scheduling.waiting_lines import RUN_DIVISOR, WaitingLines
from tidemill.schemas.jsonl.line import Call
from tidemill.schemas.log.codec import LineMark, RequestHead
from tidemill.schemas.ports import Clock, Outbox, Store
from tidemill.wording import counted

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Services:
    """The services that the dispatchers of all models of a process use."""

    budget: LineBudget
    """The memory for large lines."""
    outbox: Outbox
    """Where results go."""
    store: Store
    """For results too large for a record."""
    closed: ClosedBatches
    """The batches whose lines are not called any more."""
    completed: CompletedLines = field(default_factory=CompletedLines)
    """The lines that are known to have a result on the log."""
    clock: Clock
    """Unix time, for deadlines."""
    chance: Callable[[], float]
    """Random numbers, 0 <= x < 1."""


class _State(Enum):
    RUNNING = auto()
    HALTED = auto()
    """Starts no calls; its partitions stay."""
    LEAVING = auto()
    """Starts no calls; its partitions go to another process, or the process ends."""


class Dispatcher:
    """Works on the lines of one model."""

    def __init__(
        self,
        caller: Caller,
        services: Services,
        *,
        policy: retry.Policy = retry.POLICY,
        prefixes: Prefixes[Line] | None = None,
        joiner: Joiner | None = None,
    ) -> None:
        """Start without lines; needs a running event loop.

        `prefixes` are set if lines with the same prompt prefix go one after the other, `joiner` if a call may have
        several lines.
        """
        self._pool = pool = caller.pool
        self._caller = caller
        self._services = services
        batcher, outbox, store = ResultBatcher[Line](), services.outbox, services.store
        self._sender = ResultSender(pool, outbox, store, batcher, self._arrived, closed=services.closed)
        self._policy = policy
        self._loop = asyncio.get_running_loop()
        self.lines = PendingLines(services.completed)
        self._failures = FailedLines(services.clock)
        self._health_probe = caller.health_probe(self.fill, policy.probe_seconds_min)
        self._waiting = WaitingLines(
            pool, self._health_probe, services.budget, chance=services.chance, prefixes=prefixes, joiner=joiner,
            calls_max=lambda: self.seats, wake=self.fill,
        )  # fmt: skip
        self.stalls = Stalls(
            self.lines.batches, self._waiting, pool, self._failures, clock=services.clock,
            awaits_log=lambda: self._sender.is_full or pool.awaits_log,
        )  # fmt: skip
        self._calls = CallsInFlight(caller, self._end, self._aborted)
        self._busy = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._state = _State.RUNNING
        follow = functools.partial(self._follow, batcher, prefixes, joiner)
        pool.join(self._next_line, self._start, follow)
        follow()
        services.closed.listen(self.drop)

    @property
    def pending(self) -> int:
        """Lines whose results the log does not have."""
        return len(self.lines)

    @property
    def seats(self) -> int:
        """Calls that the servers take as far as is known, at most the number that may be in flight."""
        now, pool = self._loop.time(), self._pool
        return min(pool.in_flight_max, sum(backend.server.proven_calls(now) for backend in pool.backends))

    @property
    def busy(self) -> int:
        """Calls in flight, and results that the log has not acknowledged."""
        return self._busy

    def enqueue(self, entry: Entry, head: RequestHead, texts: Sequence[bytes]) -> None:
        """Add the lines of a record to the window of its partition; the text of a line in the store is empty."""
        if head.batch_id in self._services.closed or self._services.clock() >= head.deadline:
            entry.window.finish(entry, len(texts))
            return
        fresh, completed = self.lines.add(entry, head, texts)
        self._waiting.add(fresh, head)
        if completed:
            entry.window.finish(entry, completed)
        self.fill()

    def drop(self, batch_id: str) -> None:
        """Finish the lines of a closed batch without results; those in flight have its grace."""
        if batch_id not in self.lines.batches:
            return
        for line in self._waiting.drop(batch_id):
            self._finish(line)
        self._calls.abort(batch_id, self._services.closed.grace(batch_id))
        self.fill()

    def fill(self) -> None:
        """Start as many calls as the limits allow."""
        while self._start():
            pass

    def _start(self) -> bool:
        """Start a call, if one may start; returns whether it did."""
        if (found := self._next()) is None:
            return False
        line, permit, call = found
        if call is None:
            self._calls.start(line, permit)
        else:
            making = joined_caller.make(self._caller, call, permit)
            self._calls.start_joined(call.lines, making, functools.partial(self._end_joined, call, permit))
        return True

    def _next_line(self) -> NextLine | None:
        return self._waiting.next_line() if self._is_free else None

    def set_part(self, part: float) -> None:
        """Set this process's part of the model's partitions, 0 <= part <= 1; even a part of 0 allows one call."""
        self._pool.set_part(part, self._loop.time())
        self.fill()

    def _follow(
        self, batcher: ResultBatcher[Line], prefixes: Prefixes[Line] | None, joiner: Joiner | None
    ) -> None:
        """Note that the pool has other servers, limits or clocks."""
        # As many lines as a run of one batch has, so that its results share a record.
        lines = max(1, self._pool.calls_max // RUN_DIVISOR) * (1 if joiner is None else joiner.inputs_max)
        batcher.lines_max = min(RECORD_LINES_MAX, lines)
        if prefixes is not None:
            prefixes.follow(self._pool.called)
        self._waiting.follow()
        self.fill()

    def halt(self) -> None:
        """Start no more calls; `resume` undoes it."""
        if self._state is _State.RUNNING:
            self._state = _State.HALTED

    async def drain(self, seconds: float, level: int = logging.WARNING) -> bool:
        """Start no more calls, and wait up to `seconds` for those in flight and their results.

        `level` is that of the log's line about those that take longer.

        Returns:
            Whether the log has all their results.
        """
        self.leave()
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            _log.log(level, "without an end or a result after %.0f s: %s", seconds, counted(self._busy, "call"))
            return False
        return True

    def leave(self) -> None:
        """Start no more calls until `resume`; Kafka redelivers lines that fail from now on."""
        self._state = _State.LEAVING

    def forget_waiting(self) -> None:
        """Forget the lines that wait for a call: the partitions are revoked, and Kafka redelivers the records."""
        for line in self._waiting.clear():
            self._forget(line)

    def resume(self) -> None:
        """Start calls again."""
        self._state = _State.RUNNING
        self.fill()

    async def close(self) -> None:
        """Cancel the calls in flight, and the results on their way."""
        self._state = _State.LEAVING
        self._services.closed.unlisten(self.drop)
        self._pool.leave()
        self._waiting.close()
        await self._health_probe.close()
        await self._calls.close()
        await self._sender.close()

    def _next(self) -> tuple[Line, Permit, JoinedCall | None] | None:
        """The next line to call, its permit, and the joined call if it has other lines, too."""
        while self._is_free and (found := self._waiting.take(self._busy)) is not None:
            line, permit = found
            if self._is_wanted(line):
                self._idle.clear()
                self._waiting.begin(line)
                if (call := self._waiting.join(line, permit)) is not None:
                    self._busy += len(call.lines)
                    return line, self._pool.charge(permit, call.size, len(call.lines)), call
                self._busy += 1
                return line, self._pool.charge(permit, line.size), None
            self._waiting.abandon(line, permit)
            self._finish(line)
        return None

    @property
    def _is_free(self) -> bool:
        is_running = self._state is _State.RUNNING and not self._pool.paused
        return is_running and self._pool.in_flight < self._pool.seats and not self._sender.is_full

    def _is_wanted(self, line: Line) -> bool:
        is_late = self._services.clock() >= line.head.deadline
        return not is_late and not line.is_lost and line.head.batch_id not in self._services.closed

    def _aborted(self, lines: Sequence[Line]) -> None:
        """A call was aborted: its lines need no result if their batch is closed."""
        spans.end(lines[0], None)
        if lines[0].head.batch_id not in self._services.closed:
            return
        for line in lines:
            self._waiting.abort(line)
            self._end_calls(1)
            self._finish(line)
        self.fill()

    def _end(self, line: Line, permit: Permit, result: CallResult) -> None:
        self._waiting.end(line)
        count_call(line, permit.backend, result.end)
        if isinstance(result.end, CallFailure):
            self._failed(line, result, result.end, permit.backend)
        else:
            self._settle(line, result, permit.backend, request_codec.result)
        self.fill()

    def _end_joined(self, call: JoinedCall, permit: Permit, results: Sequence[CallResult] | None) -> None:
        self._waiting.end_joined(call, results)
        joined_caller.count(call, permit.backend, results)
        if results is None:
            for line in call.lines:
                self._retry(line, self._loop.time())
            self.fill()
            return
        # The results of a call count as one, until the log has the last of them.
        last = max((number for number, each in enumerate(results) if isinstance(each.end, Success)), default=-1)
        for number, (line, result) in enumerate(zip(call.lines, results, strict=True)):
            if isinstance(result.end, CallFailure):
                self._failed(line, result, result.end, permit.backend)
            else:
                self._settle(line, result, permit.backend, request_codec.result, counts=number == last)
        self.fill()

    def _failed(self, line: Line, result: CallResult, failure: CallFailure, backend: Backend) -> None:
        """Carry out what `retry.decide` decides."""
        if (history := line.history) is None:
            history = line.history = History(failure.at)
            for entry in line.entries:
                entry.window.fail(entry)
        action = retry.decide(
            failure,
            result.evidence,
            history,
            attempt=line.attempts,
            # Only the deadline is in Unix time.
            deadline=failure.at + line.head.deadline - self._services.clock(),
            chance=self._services.chance(),
            policy=self._policy,
        )
        line.since = failure.at
        if failure.kind not in NOT_FETCHED:
            line.avoid = backend
        match action:
            case retry.GiveUp():
                self._settle(line, result, backend, request_codec.failed)
                return
            case retry.RetryAt(at):
                if self._retry(line, at):
                    self._failures.note(line, failure)
            case retry.Expire():
                self._end_calls(1)
                self._finish(line)
            case _:
                assert_never(action)
        if failure.share is not None:
            failure.share.close()

    def _retry(self, line: Line, at: float) -> bool:
        """Let a line wait until `at` for another call, if one is allowed; returns whether it waits."""
        self._end_calls(1)
        if line.head.batch_id in self._services.closed or self.lines.is_done(line):
            self._finish(line)
        elif self._state is _State.LEAVING or line.is_lost:
            self._forget(line)  # Kafka delivers it with its record, here or to another process
        else:
            self._waiting.hold(line, at)
            return True
        return False

    def _settle(
        self,
        line: Line,
        result: CallResult,
        backend: Backend,
        write: Callable[..., tuple[bytes, LineMark]],
        *,
        counts: bool = True,
    ) -> None:
        """Write the line's result and send it to the log; if it `counts`, as the result of a call at `backend`."""
        more = self.lines.settle(line)
        if counts:
            line.backend = backend
            self._pool.settled(backend)
        call = Call(line.attempts, backend.quoted_name, line.seconds)
        text, mark = write(line.head.batch_id, line.index, result.custom_id, result.end, call)
        self._sender.send(line, text, mark, more=more, share=result.end.share)

    def _arrived(self, lines: list[Line]) -> None:
        """The log has the results of these lines: only now are they finished."""
        for line in lines:
            self._failures.forget(line)
            self.lines.arrive(line)
            for entry in line.entries:
                entry.window.finish(entry)
        self._pool.acknowledged(line.backend for line in lines if line.backend is not None)
        self._end_calls(len(lines))
        self.fill()

    def _end_calls(self, lines: int) -> None:
        self._busy -= lines
        if not self._busy:
            self._idle.set()

    def _finish(self, line: Line) -> None:
        """Finish a pending line without a result."""
        self._forget(line)
        for entry in line.entries:
            entry.window.finish(entry)

    def _forget(self, line: Line) -> None:
        """Remove a line that has no result."""
        self._failures.forget(line)
        self.lines.forget(line)
