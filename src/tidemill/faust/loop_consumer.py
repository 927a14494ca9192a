"""A Faust consumer on the event loop of its app; Faust's own runs in a thread with a loop of its own.

Each record of that thread costs two switches between threads that share an interpreter. The thread would maintain
the group membership while the app's loop is blocked, but no step of a stage blocks the loop for as long as a
second.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer


class LoopConsumer(Consumer):  # type: ignore[misc]  # Faust is untyped here
    """See the module."""

    def _new_consumer_thread(self) -> Any:
        return _OnLoop(self, loop=self.loop, thread_loop=self.loop, beacon=self.beacon)


class _OnLoop(AIOKafkaConsumerThread):  # type: ignore[misc]
    """Faust's consumer thread without a thread: it serves in a task, and its calls are direct ones."""

    async def start(self) -> None:
        """Start as Faust does, and return or raise once the client has connected."""
        self._thread_started.set()
        self._thread_running = started = self.parent_loop.create_future()
        serving = asyncio.create_task(self._serve(), name="consume")
        # `crash` reports its error.
        serving.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            await started
        finally:
            self._thread_running = None

    async def on_thread_started(self) -> None:
        """Do nothing: there is no queue of calls to start."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        """Create the client; it reads no records of transactions that are open or were aborted."""
        client = super()._create_worker_consumer(transport)
        # Faust has no setting for it.
        client._isolation_level = "read_committed"  # noqa: SLF001  not public
        return client

    async def call_thread(self, fun: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function of the client, of either kind."""
        found = fun(*args, **kwargs)
        return await found if asyncio.iscoroutine(found) else found

    async def _gather_remaining_tasks(self) -> None:
        """Leave the tasks of the loop alone, since they belong to the whole process."""
