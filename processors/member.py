"""The process as a member of its consumer group: handles assignments and revocations for all its models."""

import asyncio
import functools
import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Final

from tidemill.faust import stage_app
from tidemill.faust.marks import Marks
from tidemill.faust.stage_app import StageApp
from tidemill.kafka.freeze_guard import MembershipGuard
from tidemill.processors.awake_model import Shared
from tidemill.processors.models import Models
from tidemill.processors.partitions.handover import Handover, Work
from tidemill.processors.scheduling.handover_reports import HandoverReports
from tidemill.processors.scheduling.stalls import CHECK_SECONDS
from tidemill.schemas.log import topics
from tidemill.schemas.log.messages import Stalled
from tidemill.schemas.ports import Clock
from tidemill.tasks import watched

REBALANCE_DRAIN_SECONDS_MAX: Final = 2.0
"""Short, since no member starts a call until the last one has rejoined the group. Longer calls go on, and the
next owners of their partitions wait for them (`partitions/handover.py`)."""
LOOK_SECONDS: Final = 0.25
"""Between two looks whether such calls have ended."""
HOLD_SECONDS: Final = 1.0
"""Seconds after which paused partitions are paused again, since Faust may have resumed them."""


class Member:
    """Lets the models follow the group."""

    def __init__(
        self,
        app: StageApp,
        models: Models,
        shared: Shared,
        partitions: int,
        *,
        clock: Clock = time.time,
    ) -> None:
        """Attach to the app before it starts; needs a running event loop.

        Args:
            app: Subscribes to `tidemill.processors` alone.
            models: All models.
            shared: The services that the models share.
            partitions: Number of partitions of `tidemill.processors`.
            clock: Unix time.
        """
        self._app = app
        self._models = models
        self._shared = shared
        self._partitions = partitions
        self._clock = clock
        self._guard = MembershipGuard(app.membership, models)
        self._is_leaving = self._has_finished = False
        self._stopping_since: float | None = None
        self._handover_reports = HandoverReports(clock)
        self._handover = Handover(Marks(app, topics.PROCESSORS.name), asyncio.get_running_loop().time)
        self._handing_over: asyncio.Task[None] | None = None
        self._numbers: set[int] = set()
        """The partitions that are read."""
        self._work: asyncio.Task[None] | None = None
        self._reports = watched(asyncio.create_task(self._report()), app.crash)
        app.agent(stage_app.raw_topic(app, topics.PROCESSORS.name))(self._take_all)
        app.timer(HOLD_SECONDS)(self._hold)
        app.drain = self._leave
        # A stop may come during a rebalance, or a rebalance during a stop.
        app.finish = self._finish
        app.oldest = lambda: stage_app.oldest(window.oldest for window in shared.assignment.windows)
        app.on_partitions_assigned.connect(self._assigned, weak=False)

    def close(self) -> None:
        """Stop following the group."""
        self._reports.cancel()
        self._shared.recovery.stop()
        self._stop_work()
        self._stop_handover()

    @property
    def _is_stopping(self) -> bool:
        return self._stopping_since is not None

    async def _take_all(self, events: Any) -> None:
        async for event in events.noack().events():
            await self._models.take(event)

    async def _assigned(self, _: Any, assigned: Iterable[Any], **__: Any) -> None:
        numbers = {tp.partition for tp in assigned if tp.topic == topics.PROCESSORS.name}
        self._stop_work()
        # A rebalance that revokes nothing, as this process had no partition, calls no `_leave`.
        self._stop_handover()
        self._shared.recovery.stop()
        self._shared.assignment.assign(self._clock())
        # While it stops, its calls in flight go on, and the records wait for the next owner.
        self._numbers = await self._handover.take(() if self._is_stopping else numbers)
        self._models.begin(self._numbers, len(self._numbers) / self._partitions)
        self._handing_over = watched(asyncio.create_task(self._hand_over()), self._app.crash)
        self._is_leaving = self._is_stopping
        if self._is_stopping:
            for model in self._models.at_work:
                model.dispatcher.leave()
            return
        self._shared.recovery.start(self._app.crash)
        self._work = watched(asyncio.create_task(self._models.run()), self._app.crash)

    async def _leave(self, _: set[Any]) -> None:
        """Leave all partitions: a rebalance revokes all at once."""
        self._stop_handover()
        is_member = self._app.membership.is_valid
        await self._drain(REBALANCE_DRAIN_SECONDS_MAX if is_member else 0.0, logging.INFO)
        if not is_member:
            self._disown()
        if not self._has_finished:
            await self._handover.hold(self._in_flight())

    async def _finish(self, _: set[Any]) -> None:
        """Leave all partitions for good: calls that are still in flight at the end of the process end with it."""
        self._stopping_since = asyncio.get_running_loop().time()
        await self._drain(self._app.stop_seconds, logging.WARNING)
        self._has_finished = True
        self._stop_handover()
        await self._handover.release()

    async def _drain(self, seconds: float, level: int) -> None:
        """Start no more calls, wait up to `seconds` for those in flight, and forget all other lines.

        `level` is that of the log's line about calls that take longer.
        """
        self._stop_work()
        self._guard.reset()
        self._is_leaving = True
        models = self._models.at_work
        await asyncio.gather(*(model.dispatcher.drain(seconds, level) for model in models))
        self._shared.assignment.leave()
        for model in models:
            model.held_requests.clear()
            model.dispatcher.forget_waiting()

    def _disown(self) -> None:
        """Hold no partition that was read until now: another process may own it, and repeat its calls."""
        for model in self._models.at_work:
            for line in model.dispatcher.lines:
                for entry in line.entries:
                    if entry.window.number in self._numbers:
                        entry.window.number = None

    def _in_flight(self) -> Mapping[int, list[Work]]:
        """The lines whose results the log lacks, by partition; waiting ones are forgotten by now."""
        work: defaultdict[int, list[Work]] = defaultdict(list)
        for model in self._models.at_work:
            lines = model.dispatcher.lines
            for line in lines:
                for number in {entry.window.number for entry in line.entries}:
                    if number is not None:
                        work[number].append(functools.partial(lines.__contains__, line))
        return work

    async def _hand_over(self) -> None:
        """Hold partitions for the calls in flight, and read others once their last owners have done so."""
        while self._handover.is_busy:
            await asyncio.sleep(LOOK_SECONDS)
            if free := await self._handover.step():
                self._numbers |= free
                self._shared.assignment.hand_over()
                self._models.extend(free, len(self._numbers) / self._partitions)

    def _stop_handover(self) -> None:
        if self._handing_over is not None:
            self._handing_over.cancel()

    async def _hold(self) -> None:
        if not self._is_leaving:
            self._guard.check()
        for window in self._shared.assignment.windows:
            window.hold()

    async def _report(self) -> None:
        """Report why lines wait, until cancelled."""
        loop, outbox = asyncio.get_running_loop(), self._shared.outbox
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            now = loop.time()
            facts = [fact for model in self._models.at_work for fact in model.dispatcher.stalls.check(now)]
            facts += self._waits(now)
            await asyncio.gather(*(outbox.stalled(fact) for fact in facts))

    def _waits(self, now: float) -> list[Stalled]:
        """The reports on batches whose lines are not read yet, since calls for others of their partitions last."""
        since = self._handover.waits_since if self._stopping_since is None else self._stopping_since
        return self._handover_reports.check(now, since, () if since is None else _unread(self._models))

    def _stop_work(self) -> None:
        if self._work is not None:
            self._work.cancel()


def _unread(models: Models) -> list[tuple[str, str]]:
    """The open batches without a pending line here, each with its model."""
    pending = {(model.name, batch_id) for model in models.at_work for batch_id in model.dispatcher.lines.batches}
    found = [(name, batch_id) for name in models.open_batches for batch_id in models.open_batches.of(name)]
    return [one for one in found if one not in pending]
