"""The process as a member of its consumer group: handles assignments and revocations for all its models."""

import asyncio
import time
from collections.abc import Iterable
from typing import Any, Final

from tidemill.faust import stage_app
from tidemill.faust.stage_app import StageApp
from tidemill.kafka.freeze_guard import MembershipGuard
from tidemill.processors.awake_model import Shared
from tidemill.processors.models import Models
from tidemill.processors.scheduling.stalls import CHECK_SECONDS
from tidemill.schemas.log import topics
from tidemill.tasks import watched

REBALANCE_DRAIN_SECONDS_MAX: Final = 30.0
STOP_DRAIN_SECONDS_MAX: Final = 7.0
"""Less than the time that the process has to stop."""
HOLD_SECONDS: Final = 1.0
"""Seconds after which paused partitions are paused again, since Faust may have resumed them."""


class Member:
    """Lets the models follow the group."""

    def __init__(self, app: StageApp, models: Models, shared: Shared, partitions: int) -> None:
        """Attach to the app before it starts; needs a running event loop.

        Args:
            app: Subscribes to `tidemill.processors` alone.
            models: All models.
            shared: The services that the models share.
            partitions: Number of partitions of `tidemill.processors`.
        """
        self._app = app
        self._models = models
        self._shared = shared
        self._partitions = partitions
        self._guard = MembershipGuard(app.membership, models)
        self._work: asyncio.Task[None] | None = None
        self._reports = watched(asyncio.create_task(self._report()), app.crash)
        self._agent = app.agent(stage_app.raw_topic(app, topics.PROCESSORS.name))(self._take_all)
        app.timer(HOLD_SECONDS)(self._hold)
        app.drain = self._leave
        app.oldest = lambda: stage_app.oldest(window.oldest for window in shared.assignment.windows)
        app.on_partitions_assigned.connect(self._assigned, weak=False)

    def close(self) -> None:
        """Stop following the group."""
        self._reports.cancel()
        self._shared.recovery.stop()
        self._stop_work()

    async def _take_all(self, events: Any) -> None:
        async for event in events.noack().events():
            await self._models.take(event)

    async def _assigned(self, _: Any, assigned: Iterable[Any], **__: Any) -> None:
        numbers = {tp.partition for tp in assigned if tp.topic == topics.PROCESSORS.name}
        self._stop_work()
        self._shared.recovery.stop()
        self._shared.assignment.assign(time.time())
        self._models.begin(numbers, len(numbers) / self._partitions)
        self._shared.recovery.start(self._app.crash)
        self._work = watched(asyncio.create_task(self._models.run()), self._app.crash)

    async def _leave(self, _: set[Any]) -> None:
        """Leave all partitions: a rebalance revokes all at once."""
        self._stop_work()
        self._guard.reset()
        seconds = STOP_DRAIN_SECONDS_MAX
        if self._app.rebalancing:
            # Without a membership, another process may already own the partitions and repeat the calls.
            seconds = REBALANCE_DRAIN_SECONDS_MAX if self._app.membership.is_valid else 0.0
        models = self._models.at_work
        await asyncio.gather(*(model.dispatcher.drain(seconds) for model in models))
        self._shared.assignment.leave()
        for model in models:
            model.held_records.clear()
            model.dispatcher.forget_waiting()

    async def _hold(self) -> None:
        self._guard.check()
        for window in self._shared.assignment.windows:
            window.hold()

    async def _report(self) -> None:
        """Report why lines wait, until cancelled."""
        loop, outbox = asyncio.get_running_loop(), self._shared.outbox
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            facts = [fact for model in self._models.at_work for fact in model.dispatcher.stalls.check(loop.time())]
            await asyncio.gather(*(outbox.stalled(fact) for fact in facts))

    def _stop_work(self) -> None:
        if self._work is not None:
            self._work.cancel()
