"""Detects symptoms of a hung Faust app from its coordinator, its fetches and its agents.

Faust and aiokafka expose little of their state, so the probe reads their private attributes (Faust 0.15.3,
aiokafka 0.14). A missing object counts as healthy, since starts and rebalances replace these objects.
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from typing import Any

from tidemill.runtime.watchdog import Symptom

# ruff: noqa: SLF001 - the purpose of this module


class Probe:
    """The probe of one app."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._fetch: int | None = None
        """Number of the fetch in progress."""
        self._fetches = itertools.count()
        self._has_had_turn = False
        self.rebalances = 0
        self.fetched_records = 0
        self.fetched_bytes = 0
        """Bytes of fetched keys and values."""

    def start(self) -> None:
        """Hook into the app, which has not started yet."""
        consumer = self._app.consumer
        self._app.on_partitions_assigned.connect(self._assigned, weak=False)
        wait = consumer._wait_next_records

        async def wait_next_records(timeout: float) -> Any:  # noqa: ASYNC109  Faust's signature
            if not consumer.flow_active:
                # A rebalance may take any time, so its wait does not count as part of the fetch.
                await consumer.wait(consumer.can_resume_flow)
            self._fetch = next(self._fetches)
            try:
                found = await wait(timeout)
            finally:
                self._fetch = None
            self._count(itertools.chain.from_iterable((found[0] or {}).values()))
            return found

        consumer._wait_next_records = wait_next_records

    @property
    def is_assigned(self) -> bool:
        """Whether the app has joined its group and recovered its tables.

        An app that the group gave no partition is assigned too.
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
        """The app's symptoms, for `watchdog.Watch`; call this about once a second on the app's loop."""
        app = self._app
        if not app.started or app.should_stop or app.consumer is None:
            return {}
        marks: dict[Symptom, Hashable] = {}
        if (coordinator := self._coordinator) is not None and not coordinator._closing.done():
            marks |= self._coordination(coordinator)
        marks[Symptom.RECOVERY_STUCK] = self._recovered()
        if not app.rebalancing and not app.in_recovery:
            fetcher = app._fetcher
            # In a process with several apps, the last ones have no client yet at the first look.
            if self._client is not None and app.consumer.assignment():
                marks[Symptom.POLL_ENDED] = True if fetcher._shutdown.is_set() else None
            marks[Symptom.POLL_STUCK] = self._fetch if app.consumer.flow_active else None
            marks[Symptom.ACTOR_ENDED] = True if any(task.done() for task in self._actors()) else None
        return marks

    def lag(self) -> dict[str, int]:
        """Records of each topic that the app has not committed, as of its last fetch."""
        consumer, client = self._app.consumer, self._client
        assigned = None if client is None else client._subscription.subscription
        if assigned is None or assigned.assignment is None:
            return {}
        found: Counter[str] = Counter()
        for tp in list(consumer._active_partitions or ()):
            state = assigned.assignment.state_value(tp)
            if state is not None and state.highwater is not None:
                done = consumer._committed_offset.get(tp) or 0
                if done == self._app.positions.next_offset(tp) and state.has_valid_position:
                    # The markers of transactions take offsets, too, and no stage commits them.
                    done = max(done, state.position)
                found[tp.topic] += max(0, state.highwater - done)
        return found

    def _count(self, records: Iterable[Any]) -> None:
        for record in records:
            self.fetched_records += 1
            self.fetched_bytes += len(record.key or b"") + len(record.value or b"")

    def _coordination(self, coordinator: Any) -> dict[Symptom, Hashable]:
        fetching = self._client._fetcher
        # While the coordinator's broker is down no consumer can rejoin, and a restart would not help.
        is_overdue = coordinator._rejoin_needed_fut.done() and coordinator.coordinator_id is not None
        return {
            Symptom.COORDINATION_ENDED: True if coordinator._coordination_task.done() else None,
            Symptom.COORDINATION_PARKED: True if coordinator._error_consumed_fut is not None else None,
            Symptom.REJOIN_OVERDUE: True if is_overdue else None,
            Symptom.FETCHER_ENDED: True if fetching is not None and fetching._fetch_task.done() else None,
        }

    def _recovered(self) -> int | None:
        """The progress of the tables' recovery; None without a recovery, or without a broker."""
        coordinator = self._coordinator
        # While the broker is down the recovery cannot progress, and a restart would not help.
        if not self._app.in_recovery or coordinator is None or coordinator.coordinator_id is None:
            return None
        # None for a changelog without a read record.
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

    async def _assigned(self, *_: Any, **__: Any) -> None:
        self._has_had_turn = True
        self.rebalances += 1
