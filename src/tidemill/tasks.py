"""Tasks that fail together: those of a process, which another replaces, and those of one piece of work."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable
from typing import Any, Final, TypeVar

Crash = Callable[[BaseException], Awaitable[None]]
"""Ends the process because of an error, and logs the error."""

T = TypeVar("T")

CANCEL_SECONDS_MAX: Final = 4.0
"""How long `drain` waits for cancelled tasks."""

_log: Final = logging.getLogger(__name__)
_crashing: Final[set["asyncio.Future[None]"]] = set()
"""The event loop has only weak references to them."""


class CrashLatch:
    """The first error that ends a process which runs no Faust app; an instance is a `Crash`."""

    def __init__(self) -> None:
        """No error yet."""
        self.error: BaseException | None = None
        self._is_set = asyncio.Event()

    async def __call__(self, error: BaseException) -> None:
        """End the process."""
        self.error = self.error or error
        self._is_set.set()

    async def wait(self) -> None:
        """Wait for an error."""
        await self._is_set.wait()


def watched(task: "asyncio.Task[T]", crash: Crash) -> "asyncio.Task[T]":
    """Return the task; its error goes to `crash`, unless the process cancels it first."""

    def ended(task: "asyncio.Task[T]") -> None:
        if task.cancelled() or (error := task.exception()) is None:
            return
        _log.error("the task %s failed: %s", task.get_name(), type(error).__name__)
        crashing = asyncio.ensure_future(crash(error))
        _crashing.add(crashing)
        crashing.add_done_callback(_crashing.discard)

    task.add_done_callback(ended)
    return task


async def drain(tasks: "Collection[asyncio.Task[None]]", seconds_max: float, crash: Crash) -> int:
    """Wait for tasks within a bound, then cancel the others, and return their number; crash if one goes on."""
    _, late = await asyncio.wait(tasks, timeout=seconds_max) if tasks else ((), ())
    for task in late:
        task.cancel()
    _, stuck = await asyncio.wait(late, timeout=CANCEL_SECONDS_MAX) if late else ((), ())
    if stuck:
        _log.error("cancelled tasks do not end: %s", [task.get_stack()[-1:] for task in stuck])
        await crash(RuntimeError(f"{len(stuck)} cancelled tasks do not end"))
    return len(late)


async def run_all(works: Iterable[Coroutine[Any, Any, object]]) -> None:
    """Do several works at once; the first error cancels the others, and is raised once they have ended.

    So does the cancellation of one work, which has not done what the caller needs. A cancellation of the caller
    cancels all works, and is raised whatever errors they end with. (`asyncio.TaskGroup` does neither.)
    """
    tasks = [asyncio.create_task(work) for work in works]
    failed: asyncio.Task[object] | None = None
    cancellation: asyncio.CancelledError | None = None

    def cancel_all() -> None:
        for task in tasks:
            task.cancel()

    def ended(task: "asyncio.Task[object]") -> None:
        nonlocal failed
        if (task.cancelled() or task.exception() is not None) and failed is None:
            failed = task
            cancel_all()

    for task in tasks:
        task.add_done_callback(ended)
    while not all(task.done() for task in tasks):
        try:
            await asyncio.wait(tasks)
        except asyncio.CancelledError as error:
            cancellation = error
            cancel_all()
    if cancellation is not None:
        raise cancellation
    if failed is not None:
        failed.result()


class Background:
    """Background tasks of a partition; an error in a task is logged."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Start a task."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def cancel(self) -> None:
        """Cancel all tasks."""
        for task in self._tasks:
            task.cancel()

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a background task of a partition failed", exc_info=error)
