"""What can be seen of a running Faust app: the state of its coordinator, its fetching and its agents.

Faust and aiokafka tell little of this, so it is read from their insides (Faust 0.15.3, aiokafka 0.14). Whatever is
not there yet, or not any more, counts as well: a start and a rebalance take things apart and put them together.
"""

import asyncio
import itertools
from collections.abc import Hashable, Iterable, Iterator
from typing import Any

from tidemill.runtime.watchdog import Symptom

# ruff: noqa: SLF001 - this is what the module is for


class Probe:
    """Looks at one app."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._fetch: int | None = None
        """Number of the fetch that is under way."""
        self._fetches = itertools.count()
        self._asked = 0
        self._answered = 0
        self._has_had_turn = False

    def start(self) -> None:
        """Follow the app's fetches and assignments; it is not started yet."""
        consumer = self._app.consumer
        self._app.on_partitions_assigned.connect(self._assigned, weak=False)
        wait = consumer._wait_next_records

        async def followed(timeout: float) -> Any:  # noqa: ASYNC109  it is Faust's
            if not consumer.flow_active:
                # What is waited for here is the end of a rebalance, however long that takes.
                await consumer.wait(consumer.can_resume_flow)
            self._fetch = next(self._fetches)
            try:
                return await wait(timeout)
            finally:
                self._fetch = None

        consumer._wait_next_records = followed

    @property
    def is_assigned(self) -> bool:
        """Whether the app has taken its place in its group, and its tables are recovered.

        An app without partitions is assigned too, once the group has decided so.
        """
        app = self._app
        coordinator = self._coordinator
        return bool(
            self._has_had_turn
            and app.started
            and not (app.should_stop or app.rebalancing or app.in_recovery)
            and coordinator is not None
            and not coordinator._rejoin_needed_fut.done()
        )

    def marks(self) -> dict[Symptom, Hashable]:
        """What is wrong, for `watchdog.Watch`; to be called about each second on the app's loop."""
        app = self._app
        if not app.started or app.should_stop or app.consumer is None:
            return {}
        marks: dict[Symptom, Hashable] = {}
        if (coordinator := self._coordinator) is not None and not coordinator._closing.done():
            marks |= self._coordination(coordinator)
        marks[Symptom.CONSUMER_BLOCKED] = self._ask_thread()
        marks[Symptom.RECOVERY_STUCK] = self._recovered()
        if not app.rebalancing and not app.in_recovery:
            fetcher = app._fetcher
            # Where a process has several apps, the last ones have no client yet when it is first looked at.
            if self._client is not None and app.consumer.assignment():
                marks[Symptom.POLL_ENDED] = True if fetcher._shutdown.is_set() else None
            marks[Symptom.POLL_STUCK] = self._fetch if app.consumer.flow_active else None
            marks[Symptom.ACTOR_ENDED] = True if any(task.done() for task in self._actors()) else None
        return marks

    def _coordination(self, coordinator: Any) -> dict[Symptom, Hashable]:
        fetching = self._client._fetcher
        # While the coordinator's broker is away nobody can rejoin, and to start anew would not help.
        is_asked = coordinator._rejoin_needed_fut.done() and coordinator.coordinator_id is not None
        return {
            Symptom.COORDINATION_ENDED: True if coordinator._coordination_task.done() else None,
            Symptom.COORDINATION_PARKED: True if coordinator._error_consumed_fut is not None else None,
            Symptom.REJOIN_OVERDUE: True if is_asked else None,
            Symptom.FETCHER_ENDED: True if fetching is not None and fetching._fetch_task.done() else None,
        }

    def _recovered(self) -> int | None:
        """How far the tables are read again, as a number that grows; None where they are not, or cannot be."""
        coordinator = self._coordinator
        # While the broker is away there is nothing to read, and to start anew would not help.
        if not self._app.in_recovery or coordinator is None or coordinator.coordinator_id is None:
            return None
        # A changelog of which nothing was ever read has none.
        offsets: Iterable[int | None] = self._app.tables.recovery.active_offsets.values()
        return sum(offset or 0 for offset in offsets)

    @property
    def _client(self) -> Any:
        thread = getattr(self._app.consumer, "_thread", None)
        return None if thread is None else thread._consumer

    @property
    def _coordinator(self) -> Any:
        return None if (client := self._client) is None else client._coordinator

    def _actors(self) -> Iterator["asyncio.Task[Any]"]:
        for agent in self._app.agents.values():
            for actor in list(agent._actors):
                if actor.actor_task is not None and not actor.should_stop:
                    yield actor.actor_task

    def _ask_thread(self) -> int | None:
        """Ask the consumer's thread for a sign; gives the number of the question while it has no answer."""
        if self._asked > self._answered:
            return self._asked
        thread = self._app.consumer._thread
        if thread is None or thread.thread_loop.is_closed():
            return None
        self._asked += 1
        thread.thread_loop.call_soon_threadsafe(self._answer)
        return None

    def _answer(self) -> None:
        self._answered = self._asked

    async def _assigned(self, *_: Any, **__: Any) -> None:
        self._has_had_turn = True
