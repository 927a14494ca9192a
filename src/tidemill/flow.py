"""How records flow to a stage while partitions change hands: none may be lost on the way.

Faust 0.15.3 loses some in two ways, and both are answered here.

1. When the tables of new partitions are recovered, it seeks to the committed offsets, lets records flow, and only
   then says `resume()`, which empties the queues of all agents, with the records that have come by then. Nobody
   reads them again: the commit stays before them, and what they were to bring about does not happen.
2. It seeks only where an offset was committed. In a partition that has none yet, records which were fetched and
   dropped before the seek would be missing.
"""

from collections.abc import Callable
from typing import Any

from mode.utils.queues import FlowControlEvent


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
