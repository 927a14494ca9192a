"""Threads for a disk that may hang: a caller that is cancelled leaves its call, and neither it nor the exit waits.

The threads have a pool of their own, so a disk that hangs takes no thread from other work. Once all of them hang,
further calls wait in the queue until they are cancelled or the disk answers.
"""

import asyncio
import functools
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, ParamSpec, TypeVar

THREADS_MAX: Final = 32

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """At most `most` daemon threads, which begin as they are needed."""

    def __init__(self, most: int = THREADS_MAX) -> None:
        self._most = most
        self._count = 0
        self._lock = threading.Lock()
        self._idle = threading.Semaphore(0)
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()

    def submit(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Call in a thread."""
        future: Future[T] = Future()
        self._calls.put((future, functools.partial(call, *args, **kwargs)))
        with self._lock:
            if not self._idle.acquire(blocking=False) and self._count < self._most:
                self._count += 1
                threading.Thread(target=self._run, daemon=True, name=f"disk {self._count}").start()
        return future

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call in a thread, and wait for the end; a cancellation leaves the call to its thread."""
        return await asyncio.wrap_future(self.submit(call, *args, **kwargs))

    def _run(self) -> None:
        while True:
            future, call = self._calls.get()
            if future.set_running_or_notify_cancel():
                answer: Callable[[Any], None] = future.set_result
                try:
                    result = call()
                except BaseException as error:  # noqa: BLE001  the caller gets it
                    answer, result = future.set_exception, error
                # First: the caller may go on before this thread does, and its arguments may be large.
                del call
                answer(result)
                del answer, result
            else:
                del call
            del future
            self._idle.release()


class Held:
    """A resource of one caller and the thread that works for it: the one who needs it last releases it."""

    def __init__(self, release: Callable[[], None]) -> None:
        self._release = release
        self._lock = threading.Lock()
        self._is_busy = self.is_left = False

    def use(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call in this thread, with the resource.

        Raises:
            CancelledError: The caller has left.
        """
        with self._lock:
            if self.is_left:
                raise asyncio.CancelledError
            self._is_busy = True
        try:
            return call(*args, **kwargs)
        finally:
            with self._lock:
                self._is_busy = False
                is_left = self.is_left
            if is_left:
                self._release()

    def leave(self) -> bool:
        """Need it no more; returns whether the caller must release it, since no thread has it."""
        with self._lock:
            self.is_left = True
            return not self._is_busy
