"""Partitions that a Faust app reads beyond the subscription of its group.

The members of a group divide the partitions of the topics that they subscribe to, and each change of a
subscription is a rebalance of all. So an app that reads many topics subscribes to one, and adds the partitions of
the others to its assignment for as long as it reads them, unknown to the group. Everything else is as for
subscribed partitions: their records reach the app's agents, and their offsets are committed for the group with its
generation, so that the broker refuses commits of a process that has lost its membership.

A rebalance ends all additions. This module uses internals of Faust 0.15.3: its state of each partition.
"""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from faust.types import TP

from tidemill.faust.stage_app import StageApp
from tidemill.kafka.partitions import live_assignment

__all__ = ["TP", "AddedPartitions", "Start"]

# ruff: noqa: SLF001 - the purpose of this module

COMMIT_AGAIN_SECONDS: Final = 43_200.0


@dataclass(frozen=True, slots=True)
class Start:
    """Where to begin to read a partition."""

    position: int
    """The offset of the first record."""
    is_committed: bool
    """Whether the group has committed this offset."""


class AddedPartitions:
    """The added partitions of an app; its methods run on the app's loop."""

    def __init__(self, app: StageApp, topic: str) -> None:
        """Add none yet; records of added partitions go to the agents of `topic`, which the app subscribes to."""
        self._app = app
        self._topic = topic
        app.on_partitions_assigned.connect(self._assigned, weak=False)
        self._starts: dict[TP, Start] = {}
        self._committed_at = time.monotonic()

    @property
    def is_assigned(self) -> bool:
        """Whether the app has an assignment, and no rebalance is under way."""
        return bool(self._app.started) and not self._app.rebalancing and not self._app.should_stop

    async def add(self, starts: Mapping[TP, Start]) -> bool:
        """Begin to read partitions; False if a rebalance prevents it."""
        if not self.is_assigned:
            return False
        consumer, conductor = self._app.consumer, self._app.topics
        for tp, start in starts.items():
            self._starts[tp] = start
            consumer._read_offset[tp] = start.position or None
            consumer._committed_offset[tp] = start.position if start.is_committed else None
            self._app.positions.expect(tp, start.position)
            conductor._acking_topics.add(tp.topic)
            channels = conductor._tp_index[tp] = set(conductor._topic_name_index[self._topic])
            conductor._tp_to_callback[tp] = conductor._build_handler(tp, channels)
        consumer._active_partitions.update(starts)
        generation = self._app.consumer_generation_id
        positions = {tp: start.position for tp, start in starts.items()}
        is_added = self._change(lambda client: live_assignment.extend(client, generation, positions))
        if not is_added:
            self._forget(starts)
        return is_added

    async def remove(self, tps: Collection[TP], *, is_forced: bool = False) -> dict[TP, Start] | None:
        """Stop reading partitions; returns where to begin again.

        None if a partition has unread or uncommitted records, unless forced: then these are read again after an
        `add`.
        """
        tps = list(tps)
        starts = {tp: self._start(tp) for tp in tps}
        expected = None if is_forced else {tp: start.position for tp, start in starts.items()}
        if is_forced:
            # Faust drops the records that it has already fetched.
            self._app.consumer._active_partitions.difference_update(tps)
            self._app.consumer._buffered_partitions.difference_update(tps)
        if not self._change(lambda client: live_assignment.reduce(client, tps, expected)):
            return None
        self._forget(tps)
        return starts

    def clear(self) -> None:
        """Forget all partitions: a rebalance has ended the assignment."""
        self._forget(list(self._starts))

    def committed(self, tps: Collection[TP]) -> dict[TP, int]:
        """The committed offsets of those partitions that have one."""
        return {tp: start.position for tp in tps if (start := self._start(tp)).is_committed}

    async def commit_again(self) -> None:
        """Commit all offsets again, twice a day: a broker forgets those of unsubscribed topics after some days."""
        if time.monotonic() < self._committed_at + COMMIT_AGAIN_SECONDS:
            return
        self._committed_at = time.monotonic()
        if committed := self.committed(list(self._starts)):
            await self._app.consumer._commit(committed)

    async def _assigned(self, *_: Any, **__: Any) -> None:
        self._change(live_assignment.pause_subscribed)

    def _start(self, tp: TP) -> Start:
        committed = self._app.consumer._committed_offset[tp]
        return self._starts[tp] if committed is None else Start(committed, is_committed=True)

    def _forget(self, tps: Collection[TP]) -> None:
        consumer, conductor = self._app.consumer, self._app.topics
        for tp in tps:
            self._starts.pop(tp, None)
            self._app.positions.forget(tp)
            for state in (
                consumer._read_offset, consumer._committed_offset, consumer._acked, consumer._acked_index,
                consumer._gap, conductor._tp_index,
            ):  # fmt: skip
                state.pop(tp, None)
            for tps_in_state in (consumer._active_partitions, consumer._buffered_partitions):
                tps_in_state.discard(tp)

    def _change(self, change: Callable[[Any], bool]) -> bool:
        """Change the state of the consumer's client, if there is one."""
        client = self._app.consumer._thread._consumer
        return client is not None and change(client)
