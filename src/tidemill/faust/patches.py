"""Corrects how Faust 0.15.3 delivers records around a rebalance, where it loses records in four ways.

1. After the recovery of new partitions' tables it seeks to the committed offsets, resumes the flow of records, and
   then calls `resume()` a second time, which empties the queues of all agents. No stage reads the records in them
   again, and the commit stays before them (`Flow`).
2. It seeks only in partitions with a committed offset. In others, records that were fetched and dropped before the
   seek are missing.
3. In an app with tables it resumes the partitions before it seeks in them, in one after the other, with a request
   for each. Records that come meanwhile may be later than others, which it has dropped: a stage would acknowledge
   them first.
4. It drops the result of a fetch that began before a rebalance, even if the fetch read from the new position. It
   then takes the missing records for a gap in the topic, acknowledges them, and commits past them.

`go_back` corrects the last three.

After the first record of a partition it overlooks a real gap, and never commits again; of any other gap it lists
all offsets, 68 MiB for a million (`commit_in_order`). Of a topic that is created anew it drops the first records
(`go_back`).

It also loses time: it sleeps for a second while all partitions are paused, and while some are paused it waits for
records of the others, even after the paused ones have room again (`resume_at_once`). aiokafka 0.14 sends one fetch
at a time to a broker: it waits up to 1.5 s for partitions without records, and meanwhile fetches nothing more of
the partitions whose records are being taken; it looks for something to do five times a second (`fetch_briefly`).
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from typing import Any, Final

from faust.types import TP
from mode.utils.queues import FlowControlEvent

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0
"""How often a consumer whose partitions are all paused checks for a stop or a rebalance."""
BRIEF_MS: Final = 100
"""How long a fetch waits for records of some partitions while the app takes those of others, or in a rebalance."""
IDLE_MS: Final = 500
"""How long any other fetch waits: requests of a rebalance wait behind it."""


class Flow(FlowControlEvent):  # type: ignore[misc]  # mode is untyped here
    """Keeps the queues' records when an active flow is resumed again.

    It empties the queue of changelog records at each call: its records after a recovery are older than the tables.
    """

    def __init__(self, changelogs: Callable[[], Any]) -> None:
        super().__init__()
        self._changelogs = changelogs

    def resume(self) -> None:
        """Resume the flow; Faust calls this once or twice at each assignment."""
        if not self.is_active():
            super().resume()
        elif (queue := self._changelogs()) is not None:
            queue.clear()


class LogReset(RuntimeError):
    """A partition has lost the records that come next: its topic was created anew, or its log was cut off."""


def go_back(consumer: Any, transient: tuple[type[Exception], ...]) -> "Positions":
    """Make the consumer seek in all partitions at once, deliver no record before that, and read what it skipped.

    If the client's fetch began where Faust was, or does so after the seek, and brings the same record first,
    the log has no other before it: transactions, compaction and batches that cannot be decompressed leave gaps.
    Records that the broker has removed meanwhile count as delivered. `transient` are errors of a broker that is
    away. If such a fetch brings an earlier record, it raises `LogReset`: the process knows a former log.
    """
    positions = Positions(consumer, transient)
    consumer.seek, consumer.seek_to_committed = positions.seek, positions.seek_to_committed
    consumer.getmany, consumer.stop_flow = positions.getmany, positions.stop_flow
    consumer._wait_next_records = positions.wait_next_records  # noqa: SLF001  not public
    return positions


def commit_in_order(consumer: Any) -> None:
    """Make the consumer commit after the last acknowledged record: stages acknowledge in order (`AckGate`)."""
    acked, index = consumer._acked, consumer._acked_index  # noqa: SLF001  not public

    def new_offset(tp: Any) -> int | None:
        offset = max(acked[tp], default=-1) + 1
        acked[tp].clear()
        index[tp].clear()
        return offset or None

    async def add_gap(*_: Any) -> None:
        pass

    consumer._new_offset, consumer._add_gap = new_offset, add_gap  # noqa: SLF001


class Positions:
    """The offset of each partition's next record; five of its methods replace those of Faust's consumer."""

    def __init__(self, consumer: Any, transient: tuple[type[Exception], ...]) -> None:
        self._consumer, self._transient = consumer, transient
        self._seek = consumer.seek
        self._getmany, self._stop_flow = consumer.getmany, consumer.stop_flow
        self._next: dict[Any, int] = {}
        """Without those of partitions in which a seek is due: none of their records is delivered before it."""
        self._wait_next_records = consumer._wait_next_records  # noqa: SLF001  not public
        self._begins: dict[Any, int] = {}
        """Where the client's next fetch begins, if that is certain."""
        self._gaps: dict[Any, tuple[int, int]] = {}
        """Where the client's last fetch began, and the first offset that it brought, if Faust drops it or not."""
        self._fetched_to: dict[Any, int] = {}
        """The offset after the last record that it has delivered of the current fetch."""
        self._untaken: dict[Any, float] = {}
        """When records were written that it has fetched and not delivered, Unix seconds."""
        self._of_fetch = self._begins, self._gaps, self._fetched_to
        self._states = self._next, self._untaken, *self._of_fetch
        self._seeks = 0
        """Seeks in all partitions, and stops of the flow, which come before one."""

    def expect(self, tp: Any, offset: int) -> None:
        """Expect an added partition's first record at this offset."""
        self.forget(tp)
        self._next[tp] = offset

    def forget(self, tp: Any) -> None:
        """Expect no more records of a partition."""
        for state in self._states:
            state.pop(tp, None)

    def next_offset(self, tp: Any) -> int | None:
        """The offset after the partition's last delivered record, or where it has begun to read."""
        return self._next.get(tp)

    def oldest(self) -> float | None:
        """When the oldest record was written that it has fetched and not delivered, Unix seconds."""
        return min(self._untaken.values(), default=None)

    async def seek(self, tp: Any, offset: int) -> None:
        """Seek."""
        await self._seek(tp, offset)
        self._begin(tp, offset)

    async def seek_to_committed(self) -> dict[Any, int | None]:
        """Seek in all partitions to their committed offsets, which it returns, or to their first ones.

        The client's places and these positions change without a wait between them: a fetch between would bring
        records that are earlier than the expected ones. Faust seeks once or twice at each assignment; the second
        seek moves only what it has fetched and not delivered, so that no record is delivered twice.
        """
        thread = self._consumer._thread  # noqa: SLF001  not public
        seeks = None
        while seeks != self._seeks:
            # A rebalance meanwhile makes the answers those of an earlier generation.
            seeks, tps = self._seeks, list(thread.assignment())
            found = await thread._ensure_consumer()._coordinator.fetch_committed_offsets(tps)  # noqa: SLF001
            places = {tp: found[tp].offset for tp in tps if tp in found and found[tp].offset > 0}
            committed = {tp: places.get(tp) for tp in tps}
            if uncommitted := [tp for tp in tps if tp not in places]:
                places |= await self._consumer.earliest_offsets(*uncommitted)
        self._seeks += 1
        for tp, offset in places.items():
            if not self._is_there(tp):
                thread.seek(tp, offset)
                self._begin(tp, offset)
        return committed

    def stop_flow(self) -> None:
        """Stop the flow, and deliver no records before a seek."""
        self.clear()
        self._stop_flow()

    def clear(self) -> None:
        """Deliver no records before a seek."""
        self._seeks += 1
        for state in self._states:
            state.clear()

    async def getmany(self, **how: Any) -> AsyncIterator[Any]:
        """Fetch records, without those after records that were skipped."""
        skipped = set()
        self._fetched_to.clear()
        async with aclosing(self._getmany(**how)) as fetched:
            async for tp, message in fetched:
                # Between two records of one fetch the log has no others.
                follows = tp in self._fetched_to and self._fetched_to[tp] == self._next.get(tp)
                if tp in skipped or not (follows or await self._is_next(tp, message)):
                    skipped.add(tp)
                    continue
                self._untaken.pop(tp, None)
                self._next[tp] = self._fetched_to[tp] = message.offset + 1
                yield tp, message

    async def wait_next_records(self, seconds: float) -> Any:
        """Wait for the records of a fetch, and note between which offsets the log has none."""
        found = await self._wait_next_records(seconds)
        for tp, records in (found[0] or {}).items():
            if not records:
                continue
            if (begin := self._begins.get(tp)) is None:
                self._gaps.pop(tp, None)
            else:
                self._gaps[tp] = begin, records[0].offset
            self._begins[tp] = records[-1].offset + 1
        return found

    async def _is_next(self, tp: Any, message: Any) -> bool:
        """Whether no record before this one was skipped; otherwise the next fetch reads those."""
        if not self._acknowledges(tp):
            return True
        position, offset = self._next.get(tp), message.offset
        if position is None:
            return False
        is_proven = self._gaps.get(tp) == (position, offset)
        if is_proven and offset < position:
            raise LogReset("{}/{} has begun anew: offset {} came after {}".format(*tp, offset, position - 1))
        return is_proven or offset <= position or await self._begins_with(tp, message, position)

    async def _begins_with(self, tp: Any, message: Any, position: int) -> bool:
        """Whether the log begins with this record or later; otherwise seek to the position before it."""
        self._untaken.setdefault(tp, message.timestamp)
        seeks = self._seeks
        try:
            position = max(position, (await self._consumer.earliest_offsets(tp))[tp])
        except self._transient as error:
            log.warning("the first offset of %s/%d is unknown: %s", *tp, type(error).__name__)
        if seeks != self._seeks:
            # Both the record and the position are of an earlier generation.
            return False
        if message.offset <= position:
            return True
        # A rebalance may have revoked it meanwhile.
        with suppress(*self._transient):
            await self.seek(tp, position)
            self._begins[tp] = position
        return False

    def _is_there(self, tp: Any) -> bool:
        """Whether the client's next fetch begins with the record that comes next."""
        position = self._next.get(tp)
        return position is not None and self._begins.get(tp, position) == position

    def _begin(self, tp: Any, offset: int) -> None:
        self._next[tp] = offset
        for state in self._of_fetch:
            state.pop(tp, None)

    def _acknowledges(self, tp: Any) -> bool:
        """Whether a partition is not of a changelog."""
        return bool(self._consumer.app.topics.acks_enabled_for(tp.topic))


def resume_at_once(consumer: Any) -> None:
    """Make the consumer fetch from a paused partition as soon as it has room again."""
    drop, next_records = consumer.on_buffer_drop, consumer._wait_next_records  # noqa: SLF001  not public
    has_room = asyncio.Event()

    def on_buffer_drop(tp: Any) -> None:
        if tp in consumer._buffered_partitions:  # noqa: SLF001
            drop(tp)
            has_room.set()
            _wake_fetch(consumer._thread)  # noqa: SLF001

    async def wait_next_records(seconds: float) -> Any:
        while consumer.flow_active and not consumer._get_active_partitions() and not consumer.should_stop:  # noqa: SLF001
            has_room.clear()
            await consumer.wait(has_room.wait(), timeout=LOOK_SECONDS)
        return await next_records(seconds)

    consumer.on_buffer_drop = on_buffer_drop
    consumer._wait_next_records = wait_next_records  # noqa: SLF001


def remember_assignment(consumer: Any) -> None:
    """Cache the set of the consumer's partitions: Faust asks for it with each partition of a commit."""
    thread = consumer._thread  # noqa: SLF001  not public
    found: tuple[Any, set[TP]] = (None, set())

    def assignment() -> set[TP]:
        nonlocal found
        partitions = thread._ensure_consumer().assignment()  # noqa: SLF001
        if partitions is not found[0]:
            found = partitions, {TP(*tp) for tp in partitions}
        return found[1]

    thread.assignment = assignment


def check_no_partitions(consumer: Any) -> None:
    """Skip Faust's check of each partition: it takes time, and reports partitions that need no fetch as errors.

    `probe.py` detects fetches and consumers that have stopped.
    """

    async def verify() -> None:
        pass

    consumer.verify_all_partitions_active = verify


def fetch_briefly(consumer: Any) -> None:
    """Bound how long a client's fetches wait, more so while some records are untaken, and let it rest when idle.

    A partition that the app does not read counts for nothing: it has untaken records for as long as the app has
    its partitions, as those of a changelog that were fetched after its recovery. It acts once for each client.
    """
    fetcher = consumer._thread._consumer._fetcher  # noqa: SLF001  not public
    if getattr(fetcher, "is_brief", False):
        return
    actions = fetcher._get_actions_per_node  # noqa: SLF001

    def brief(assignment: Any) -> Any:
        requests, *others = actions(assignment)
        active, full = consumer._active_partitions, consumer._buffered_partitions  # noqa: SLF001
        # A fetch omits partitions with records.
        if consumer.app.rebalancing or any(tp in active or tp in full for tp in fetcher._records):  # noqa: SLF001
            for _, request in requests:
                request._max_wait_ms = BRIEF_MS  # noqa: SLF001
        return requests, *others

    fetcher._get_actions_per_node, fetcher.is_brief = brief, True  # noqa: SLF001
    fetcher._fetch_max_wait_ms = IDLE_MS  # noqa: SLF001
    # Any new work wakes it earlier.
    fetcher._fetcher_timeout = LOOK_SECONDS  # noqa: SLF001


def _wake_fetch(thread: Any) -> None:
    """Make a waiting fetch return the records that are already there."""
    if thread._consumer is not None:  # noqa: SLF001
        fetcher = thread._consumer._fetcher  # noqa: SLF001
        for waiter in list(fetcher._fetch_waiters):  # noqa: SLF001
            fetcher._notify(waiter)  # noqa: SLF001
