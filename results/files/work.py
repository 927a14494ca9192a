"""Work on batches beside the events of a partition."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Final

log: Final = logging.getLogger(__name__)


class Work:
    """Tasks that nobody waits for; what one of them raises is told."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[None, None, None]) -> None:
        """Begin one."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def cancel(self) -> None:
        """Break all of them off."""
        for task in self._tasks:
            task.cancel()

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("work on a batch broke off for good", exc_info=error)
