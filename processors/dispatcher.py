"""The dispatcher of one model: lines come in with their records, calls go out, results go to the log.

It knows no Kafka: records come through the `PartitionHandle` of their lane, results leave through an `Outbox`.

A line is *pending* from its arrival until the log has its outcome. Meanwhile it waits in the order, is in flight,
waits for its next try, or waits for its outcome to arrive. A second copy of a pending line joins the first, and a
copy of one that is done is done at once: neither is called. A line is *dropped*, which is done without an outcome,
where its batch is over or its deadline has passed: the owner of the batch writes its line then.

To let go of its partitions a stage stops starting calls, lets those in flight finish, waits for their outcomes to
arrive, and forgets the rest, which comes again. Calls that outlast this wait go on: if their lines come back to
this stage, they find them pending.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final, assert_never

from tidemill.processors.backends.pool import FAILING_MAX, BackendPool, Permit
from tidemill.processors.calls import request_codec, retry
from tidemill.processors.calls.caller import Caller, CallResult
from tidemill.processors.failures import Broken, Past
from tidemill.processors.lines import Line, Pending
from tidemill.processors.outcomes.batching import PARCEL_LINES_MAX, ResultBatcher
from tidemill.processors.outcomes.sending import ResultSender
from tidemill.processors.partitions.closed_batches import ClosedBatches
from tidemill.processors.partitions.completed_lines import CompletedLines
from tidemill.processors.partitions.window import Entry
from tidemill.processors.scheduling.failure_account import FailureAccount
from tidemill.processors.scheduling.held_lines import HeldLines
from tidemill.processors.scheduling.prefix_groups import PRIMER_SECONDS_MAX, Prefixes
from tidemill.processors.scheduling.scheduler import Scheduler
from tidemill.processors.scheduling.stalls import Stalls
from tidemill.schemas.log.codec import LineMark, RequestHead
from tidemill.schemas.ports import Clock, Outbox, Store

PARCELS: Final = 4
"""Results wait for others to share their record only as long as these take up one part in so many of the calls. A
turn of a batch is as large a part of what is in flight, so that its results come together."""

_log = logging.getLogger(__name__)


class Dispatcher:
    """Works on the lines of one model."""

    def __init__(
        self,
        *,
        fleet: BackendPool,
        caller: Caller,
        outbox: Outbox,
        store: Store,
        ended: ClosedBatches,
        clock: Clock,
        chance: Callable[[], float],
        in_flight_max: int,
        weights: Mapping[str, float] | None = None,
        policy: retry.Policy = retry.POLICY,
        prefixes: Prefixes[Line] | None = None,
    ) -> None:
        """Take the doors; needs a running event loop.

        Args:
            fleet: The model's backends.
            caller: Makes the calls to them.
            outbox: Takes the results.
            store: For results too large for a record.
            ended: The batches that are over.
            clock: Unix time, which deadlines are in.
            chance: Random numbers, 0 <= x < 1.
            in_flight_max: Calls at one time, of all processes.
            weights: Of projects, by name; 1 where nothing is said.
            policy: The bounds of retries.
            prefixes: Set where lines that begin alike go one after the other.
        """
        self.ledger = CompletedLines()
        self._fleet = fleet
        self._caller = caller
        packer: ResultBatcher[Line] = ResultBatcher(
            lines_max=max(1, min(PARCEL_LINES_MAX, in_flight_max // PARCELS))
        )
        self._shipper = ResultSender(outbox, store, packer, self._arrived)
        self._ended = ended
        self._clock = clock
        self._chance = chance
        self._in_flight_max = self._calls_max = in_flight_max
        self._policy = policy
        self._loop = asyncio.get_running_loop()
        self._order: Scheduler[Line] = Scheduler(weights, prefixes=prefixes)
        self._batches: dict[str, Pending] = {}
        self._account = FailureAccount(clock)
        self.stalls = Stalls(self._batches, self._order, fleet, self._account, clock=clock)
        self._proof = caller.proof(self.fill, policy.proof_seconds_min)
        self._held = HeldLines(fleet, self._proof, self.fill)
        self._opening: asyncio.TimerHandle | None = None
        self._opening_at = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_stopped = self._is_leaving = False
        ended.listen(self.drop)

    @property
    def pending(self) -> int:
        """Lines that are not done."""
        return sum(len(batch.lines) for batch in self._batches.values())

    @property
    def seats(self) -> int:
        """Calls that the servers take, as far as is known, and no more than may be in flight."""
        now = self._loop.time()
        return min(self._in_flight_max, sum(backend.found(now) for backend in self._fleet.backends))

    @property
    def busy(self) -> int:
        """Lines in flight, and those whose outcome is on its way."""
        return self._busy

    def enqueue(self, entry: Entry, head: RequestHead, texts: Sequence[bytes]) -> None:
        """Take in the lines of a record that its lane has admitted.

        Args:
            entry: The record in its lane.
            head: What it says about its lines.
            texts: The lines in order; one empty text where the line lies in the store.
        """
        if head.batch_id in self._ended or self._clock() >= head.deadline:
            entry.lane.done(entry, len(texts))
            return
        batch = self._batches.setdefault(head.batch_id, Pending())
        fresh, done = self._sorted(batch, entry, head, texts)
        batch.open += len(fresh)
        self._order.add(fresh, project=head.project, batch_id=head.batch_id, deadline=head.deadline)
        if not batch.lines:
            del self._batches[head.batch_id]
        if done:
            entry.lane.done(entry, done)
        self.fill()

    def drop(self, batch_id: str) -> None:
        """The batch is over: its lines that are not in flight are done without an outcome."""
        self.ledger.forget(batch_id)
        if batch_id not in self._batches:
            return
        for line in (*self._order.drop(batch_id), *self._held.drop(batch_id)):
            self._done(line)
        self.fill()

    def fill(self) -> None:
        """Start as many calls as may be."""
        while (found := self._next()) is not None:
            task = self._loop.create_task(self._work(*found))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def take_part(self, part: float) -> None:
        """From now on this process makes that part of the model's calls.

        Args:
            part: 0 < part <= 1; one call at a time is made in any case.
        """
        self._in_flight_max = max(1, int(self._calls_max * part))
        self._fleet.take_part(part, self._loop.time())
        self.fill()

    def halt(self) -> None:
        """Start no more calls; `resume` undoes it."""
        self._is_stopped = True

    async def drain(self, seconds: float) -> bool:
        """Start no more calls, and wait for what is under way.

        Args:
            seconds: The longest to wait.

        Returns:
            Whether all that was under way has arrived.
        """
        self._is_stopped = self._is_leaving = True
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            _log.warning("%d calls or their outcomes were under way for longer than %.0f s", self._busy, seconds)
            return False
        return True

    def forget_waiting(self) -> None:
        """The lanes are closed: what waits for a call comes again with its records."""
        for line in (*self._order.clear(), *self._held.clear()):
            self._forget(line)

    def resume(self) -> None:
        """Start calls again."""
        self._is_stopped = self._is_leaving = False
        self.fill()

    async def close(self) -> None:
        """Break off what is under way."""
        self._is_stopped = self._is_leaving = True
        self._held.close()
        await self._proof.close()
        if self._opening is not None:
            self._opening.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._shipper.close()

    def _sorted(
        self, batch: Pending, entry: Entry, head: RequestHead, texts: Sequence[bytes]
    ) -> tuple[list[Line], int]:
        """The lines of a record that are new, and how many are done already; the rest joins pending ones."""
        fresh = []
        done = 0
        knows = self.ledger.touch(head.batch_id)
        for index, text in enumerate(texts, head.first):
            if (twin := batch.lines.get(index)) is not None:
                twin.entries.append(entry)
            elif knows and self.ledger.is_done(head.batch_id, index):
                done += 1
            else:
                line = batch.lines[index] = Line(head, index, text, entry)
                fresh.append(line)
        return fresh, done

    def _next(self) -> tuple[Line, Permit] | None:
        """The next line to call, out of the order and into flight, and where to."""
        while self._is_free:
            now = self._loop.time()
            if (found := self._failed_before(now) or self._fresh(now)) is None:
                return None
            line, place = found
            if self._is_wanted(line):
                self._busy += 1
                self._idle.clear()
                # At once, and not when its task starts: the next line of this round is chosen by it.
                self._held.begin(line, others_wait=bool(self._order))
                if self._order.is_primer(line):
                    self._loop.call_later(PRIMER_SECONDS_MAX, self._primed, line)
                return line, self._fleet.load(place, line.size)
            self._fleet.leave(place)
            self._order.primed(line)
            self._done(line)
        return None

    def _failed_before(self, now: float) -> tuple[Line, Permit] | None:
        if not self._held.are_due:
            return None
        return self._held.take(now, self.seats, others_wait=bool(self._order))

    def _fresh(self, now: float) -> tuple[Line, Permit] | None:
        if not self._order:
            if self._held.are_due:
                self._set_opening(now)
            return None
        if (place := self._fleet.enter(now)) is None:
            self._set_opening(now)
            self._held.doubt()
            return None
        # Where many lines fail, the next ones may be as bad for the same reason.
        is_lost = place.is_probe or place.backend.failing > FAILING_MAX
        chance = self._chance() if is_lost else None
        line = self._order.take(place.backend, stretch=self._busy // PARCELS, chance=chance)
        assert line is not None, "there is one"
        return line, place

    def _set_opening(self, now: float) -> None:
        """Look again when a backend may have a place; the end of a call looks by itself."""
        if (at := self._fleet.opens_at(now)) is None or (self._opening is not None and self._opening_at <= at):
            return
        if self._opening is not None:
            self._opening.cancel()
        self._opening_at = at
        self._opening = self._loop.call_later(at - now, self._open)

    def _open(self) -> None:
        self._opening = None
        self.fill()

    @property
    def _is_free(self) -> bool:
        # A result that the log does not have yet counts as in flight, so that a process that is killed makes its
        # successor repeat no more calls than may be in flight.
        return self._busy < self._in_flight_max and not self._is_stopped and not self._shipper.is_full

    def _is_wanted(self, line: Line) -> bool:
        return self._clock() < line.head.deadline and line.head.batch_id not in self._ended

    async def _work(self, line: Line, place: Permit) -> None:
        """One of the tasks that call: a line after the other, until none is left."""
        found: tuple[Line, Permit] | None = (line, place)
        while found is not None:
            await self._call(*found)
            found = self._next()
            if found is not None:
                # An answer may have opened more than its own place.
                self.fill()

    async def _call(self, line: Line, place: Permit) -> None:
        made = await self._caller.make(line, place)
        self._held.end(line)
        self._primed(line)
        if isinstance(made.end, request_codec.Failure):
            self._failed(line, made, made.end, place.backend.base)
        else:
            self._settle(line, made, request_codec.result)

    def _primed(self, line: Line) -> None:
        """What waits for the call of this line may go, if anything does."""
        if self._order.primed(line):
            self.fill()

    def _failed(self, line: Line, made: CallResult, end: request_codec.Failure, server: str) -> None:
        # All waits are by the loop's time; only the deadline is a date.
        batch_id, now = line.head.batch_id, self._loop.time()
        if (past := line.past) is None:
            past = line.past = Past(now)
            for entry in line.entries:
                entry.lane.fail(entry)
        past.note(end.kind, counts=made.counts, is_full=end.is_full and end.code != Broken.TIMEOUT)
        backend = made.backend
        verdict = retry.decide(
            end.kind,
            past,
            counts=made.counts,
            attempt=line.attempts,
            now=now,
            deadline=now + line.head.deadline - self._clock(),
            chance=self._chance(),
            elsewhere=not made.counts and backend is not None and self._fleet.has_other(backend),
            brisk=made.brisk,
            retry_after=made.wait_seconds,
            policy=self._policy,
        )
        line.mark, line.avoid = now, backend
        match verdict:
            case retry.GiveUp():
                self._settle(line, made, request_codec.failed)
                return
            case retry.RetryAt(at) if batch_id not in self._ended:
                self._landed(1)
                if self._is_leaving:
                    # It comes again with its record.
                    self._forget(line)
                else:
                    self._account.note(line, server, end)
                    self._held.put(line, at)
            case retry.RetryAt() | retry.Expire():
                self._landed(1)
                self._done(line)
            case _:
                assert_never(verdict)
        if made.share is not None:
            made.share.close()

    def _settle(self, line: Line, made: CallResult, write: Callable[..., tuple[bytes, LineMark]]) -> None:
        """A line has its result."""
        batch = self._batches[line.head.batch_id]
        batch.open -= 1
        batch.settled += 1
        text, mark = write(line.head.batch_id, line.index, made.custom_id, made.end, line.attempts)
        self._shipper.ship(line, text, mark, more=batch.open > 0, share=made.share)

    def _arrived(self, lines: list[Line]) -> None:
        """The log has the results of these lines: only now are they done."""
        for line in lines:
            self.ledger.mark(line.head.batch_id, line.index)
            self._remove(line)
            for entry in line.entries:
                entry.lane.done(entry)
        self._landed(len(lines))
        self.fill()

    def _landed(self, lines: int) -> None:
        self._busy -= lines
        if not self._busy:
            self._idle.set()

    def _done(self, line: Line) -> None:
        """No outcome of a pending line is wanted any more."""
        self._forget(line)
        for entry in line.entries:
            entry.lane.done(entry)

    def _forget(self, line: Line) -> None:
        """A line that has no result leaves."""
        self._batches[line.head.batch_id].open -= 1
        self._remove(line)

    def _remove(self, line: Line) -> None:
        if line.why is not None:
            self._account.forget(line)
        batch = self._batches[line.head.batch_id]
        del batch.lines[line.index]
        if not batch.lines:
            del self._batches[line.head.batch_id]
