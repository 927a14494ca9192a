"""How records flow to a stage while partitions change hands: none may be lost on the way.

Faust 0.15.3 loses some in three ways, and all are answered here.

1. When the tables of new partitions are recovered, it seeks to the committed offsets, lets records flow, and only
   then says `resume()`, which empties the queues of all agents, with the records that have come by then. Nobody
   reads them again: the commit stays before them, and what they were to bring about does not happen.
2. It seeks only where an offset was committed. In a partition that has none yet, records which were fetched and
   dropped before the seek would be missing.
3. It drops what a fetch brings that was begun before a rebalance, also where the fetch read from the place that it
   had sought to since. It takes the records that are missing then for a gap of the topic, acknowledges them, and
   commits what comes behind them (`go_back`).

And it loses time: while all partitions are held back it sleeps for a second, and while some are it waits as long
for records of the others, whatever has room by then (`resume_at_once`). aiokafka 0.14 has one fetch under way to a
broker: it asks for partitions that have no records, for 1.5 s, while the records of others are being taken, and
fetches more of those only then (`fetch_briefly`).
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from typing import Any, Final

from mode.utils.queues import FlowControlEvent

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0
"""How often a consumer with no partition to fetch from looks whether it has to stop, or to let go of them."""
BRIEF_MS: Final = 100
"""How long a broker may wait for records of some partitions while those of others are being taken."""


class Flow(FlowControlEvent):  # type: ignore[misc]  # mode is untyped here
    """Lets records flow; where they flow already, what waits in the queues stays there.

    Args:
        changelogs: Gives the queue of changelog records. It is emptied each time: what is left in it after a
            recovery is older than what the tables hold by then.
    """

    def __init__(self, changelogs: Callable[[], Any]) -> None:
        super().__init__()
        self._changelogs = changelogs

    def resume(self) -> None:
        """Let records flow; called once or twice at each assignment."""
        if not self.is_active():
            super().resume()
        elif (queue := self._changelogs()) is not None:
            queue.clear()


def seek_all(consumer: Any) -> None:
    """Have the consumer seek in every partition of its assignment, committed to or not."""
    seek = consumer.seek_to_committed

    async def seek_to_committed() -> Any:
        committed = await seek()
        if fresh := [tp for tp, offset in committed.items() if not offset or offset < 0]:
            for tp, offset in (await consumer.earliest_offsets(*fresh)).items():
                await consumer.seek(tp, offset)
        return committed

    consumer.seek_to_committed = seek_to_committed


def go_back(consumer: Any, transient: tuple[type[Exception], ...]) -> None:
    """Have the consumer fetch again what it has passed over: a topic that is read for its records has no gaps.

    What the broker has removed since is no gap either: the log begins behind it.

    Args:
        consumer: Faust's.
        transient: Errors of a broker that is away: the next fetch tries again.
    """
    places = _Places(consumer, transient)
    consumer.seek, consumer.seek_to_committed = places.seek, places.seek_to_committed
    consumer.getmany, consumer.stop_flow = places.getmany, places.stop_flow


class _Places:
    """The offset of the next record of each partition; it stands in for four methods of Faust's consumer."""

    def __init__(self, consumer: Any, transient: tuple[type[Exception], ...]) -> None:
        self._consumer, self._transient = consumer, transient
        self._seek, self._seek_to_committed = consumer.seek, consumer.seek_to_committed
        self._getmany, self._stop_flow = consumer.getmany, consumer.stop_flow
        self._next: dict[Any, int] = {}

    async def seek(self, tp: Any, offset: int) -> None:
        await self._seek(tp, offset)
        self._next[tp] = offset

    async def seek_to_committed(self) -> Any:
        committed = await self._seek_to_committed()
        self._next.update({tp: offset for tp, offset in committed.items() if offset and offset > 0})
        return committed

    def stop_flow(self) -> None:
        self._next.clear()
        self._stop_flow()

    async def getmany(self, **how: Any) -> AsyncIterator[Any]:
        left = set()
        async with aclosing(self._getmany(**how)) as fetched:
            async for tp, message in fetched:
                if tp in left or await self._is_ahead(tp, message.offset):
                    left.add(tp)
                    continue
                self._next[tp] = message.offset + 1
                yield tp, message

    async def _is_ahead(self, tp: Any, offset: int) -> bool:
        """Whether records before this one have not come; then they are fetched next."""
        place = self._next.get(tp, offset)
        if offset <= place or not self._consumer.app.topics.acks_enabled_for(tp.topic):
            return False
        try:
            place = max(place, (await self._consumer.earliest_offsets(tp))[tp])
            if offset <= place:
                return False
            log.warning("records %d to %d of %s/%d were passed over: going back", place, offset - 1, *tp)
            await self.seek(tp, place)
        except self._transient as error:
            # The place stays, so the next fetch tries again.
            log.warning("%s/%d cannot go back to %d: %s", *tp, place, type(error).__name__)
        return True


def resume_at_once(consumer: Any) -> None:
    """Have the consumer fetch from a partition that was held back as soon as it has room again."""
    drop, next_records = consumer.on_buffer_drop, consumer._wait_next_records  # noqa: SLF001  there is no other way in
    roomy = asyncio.Event()

    def on_buffer_drop(tp: Any) -> None:
        if tp in consumer._buffered_partitions:  # noqa: SLF001
            drop(tp)
            roomy.set()
            thread = consumer._thread  # noqa: SLF001
            # Closed, its consumer has stopped.
            with suppress(RuntimeError):
                thread.thread_loop.call_soon_threadsafe(_look_again, thread)

    async def wait_next_records(seconds: float) -> Any:
        while consumer.flow_active and not consumer._get_active_partitions() and not consumer.should_stop:  # noqa: SLF001
            roomy.clear()
            await consumer.wait(roomy.wait(), timeout=LOOK_SECONDS)
        return await next_records(seconds)

    consumer.on_buffer_drop = on_buffer_drop
    consumer._wait_next_records = wait_next_records  # noqa: SLF001


def fetch_briefly(fetcher: Any) -> None:
    """Have a fetch wait briefly if it leaves partitions out; calling this again changes nothing.

    Args:
        fetcher: The one of an aiokafka consumer.
    """
    if getattr(fetcher, "is_brief", False):
        return
    actions = fetcher._get_actions_per_node  # noqa: SLF001  there is no other way in

    def brief(assignment: Any) -> Any:
        requests, *others = actions(assignment)
        if fetcher._records:  # noqa: SLF001  a fetch leaves out the partitions that have some
            for _, request in requests:
                request._max_wait_ms = BRIEF_MS  # noqa: SLF001
        return requests, *others

    fetcher._get_actions_per_node, fetcher.is_brief = brief, True  # noqa: SLF001


def _look_again(thread: Any) -> None:
    """Have a fetch that waits for records look at what is there already; called on the consumer's own loop."""
    if thread._consumer is not None:  # noqa: SLF001
        fetcher = thread._consumer._fetcher  # noqa: SLF001
        for waiter in list(fetcher._fetch_waiters):  # noqa: SLF001
            fetcher._notify(waiter)  # noqa: SLF001
