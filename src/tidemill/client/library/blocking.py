"""The Python client for programs without an event loop of their own, and for notebooks, whose loop runs already.

with Tidemill() as client:
    run = client.run("in.jsonl")
"""

import asyncio
import functools
import inspect
import os
import threading
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any, Concatenate, Final, Generic, ParamSpec, Self, TypeVar, Unpack

from tidemill.client.library.answers import Line
from tidemill.client.library.asynchronous import AsyncTidemill, BatchOptions
from tidemill.client.library.batch import AsyncBatch
from tidemill.client.library.lines import Source
from tidemill.schemas.resources.batch import Batch as State
from tidemill.tasks import CANCEL_SECONDS_MAX

WAIT_SECONDS: Final = 0.2
"""How long Ctrl-C may go unnoticed."""
CLOSED: Final = "the client is closed: make another one, and use it before it is closed"

A = TypeVar("A")
P = ParamSpec("P")
T = TypeVar("T")


class Loop:
    """An event loop on a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._serve, name="tidemill", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        self._loop.run_until_complete(self._until_stopped())
        self._loop.close()

    async def _until_stopped(self) -> None:
        await self._stopping.wait()
        await _cancel(asyncio.all_tasks() - {asyncio.current_task()})

    @property
    def is_closed(self) -> bool:
        """Whether it has ended."""
        return self._loop.is_closed()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do work on the loop and wait for it; Ctrl-C cancels it, and waits a moment for its end.

        Raises:
            RuntimeError: The loop has ended.
        """
        try:
            return self._result(self._scheduled(work))
        except BaseException:
            if not self._stopping.is_set():
                # The same call may follow at once, and needs the files that this one has locked.
                self._result(self._scheduled(_end(work)))
            raise

    def _scheduled(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        # Another thread may close the loop after it was looked at.
        with suppress(RuntimeError):
            if not self._stopping.is_set():
                return asyncio.run_coroutine_threadsafe(work, self._loop)
        work.close()
        raise RuntimeError(CLOSED)

    def _result(self, future: Future[T]) -> T:
        """The result of work, in short waits: a signal interrupts none if its handler restarts system calls.

        polars installs such a handler for Ctrl-C.
        """
        while True:
            try:
                return future.result(WAIT_SECONDS)
            except CancelledError:
                if self._stopping.is_set():
                    raise RuntimeError(CLOSED) from None
                raise
            except TimeoutError:
                if future.done():
                    return future.result()
                if self.is_closed:
                    raise RuntimeError(CLOSED) from None

    def iterate(self, found: AsyncGenerator[T, None]) -> Iterator[T]:
        """The items of an asynchronous generator."""

        async def following() -> T:
            return await anext(found)

        try:
            with suppress(StopAsyncIteration):
                while True:
                    yield self.run(following())
        finally:
            if not self._stopping.is_set():
                self.run(found.aclose())

    def stop(self) -> None:
        """Cancel all work, and end the loop and its thread; several threads may do so."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()


async def _end(work: Coroutine[Any, Any, object]) -> None:
    """Cancel work on this loop unless it has ended."""
    if tasks := {task for task in asyncio.all_tasks() if task.get_coro() is work}:
        await _cancel(tasks)
    else:
        work.close()


async def _cancel(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel tasks, and wait a bounded time for their end."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=CANCEL_SECONDS_MAX)


class _Blocking(Generic[A]):
    """An asynchronous object, whose work runs on a loop."""

    def __init__(self, inner: A, loop: Loop) -> None:
        self._inner = inner
        self._loop = loop


def _waiting(
    method: Callable[Concatenate[A, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[_Blocking[A], P], T]:
    """The method of an asynchronous object, without `await`."""

    @functools.wraps(method, assigned=("__module__", "__name__", "__doc__"))
    def call(self: _Blocking[A], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._loop.run(method(self._inner, *args, **kwargs))

    return call


def _taking(
    method: Callable[Concatenate[AsyncTidemill, P], Coroutine[Any, Any, Any]],
) -> Callable[Concatenate[_Blocking[AsyncTidemill], P], Any]:
    """The method, which leaves the answers on disk until its result is in the caller's thread."""
    kept = _waiting(inspect.unwrap(method))

    @functools.wraps(method, assigned=("__module__", "__name__", "__doc__"))
    def call(self: _Blocking[AsyncTidemill], /, *args: P.args, **kwargs: P.kwargs) -> Any:
        return kept(self, *args, **kwargs).handed_over()

    return call


class Tidemill(_Blocking[AsyncTidemill]):
    """Client of one service; a context manager. See `AsyncTidemill` for what its methods do and raise."""

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        data: str | os.PathLike[str] | None = None,
        progress: bool | None = None,
    ) -> None:
        """Find a service as `AsyncTidemill` does, and connect to it."""
        super().__init__(AsyncTidemill(base_url, api_key, data=data, progress=progress), Loop())
        self._closing = threading.RLock()
        self._loop.run(self._inner.__aenter__())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections; a closed client stays closed."""
        with self._closing:
            if self._loop.is_closed:
                return
            try:
                self._loop.run(self._inner.__aexit__())
            finally:
                self._loop.stop()

    def submit(self, source: Source, *, key: str | None = None, **options: Unpack[BatchOptions]) -> "Batch":
        """Create a batch of a file or of lines, and return at once."""
        return Batch(self._loop.run(self._inner.submit(source, key=key, **options)), self._loop)

    run = _waiting(AsyncTidemill.run)
    map = _taking(AsyncTidemill.map)
    embed = _taking(AsyncTidemill.embed)

    def batch(self, batch_id: str) -> "Batch":
        """Read a batch by its id."""
        return Batch(self._loop.run(self._inner.batch(batch_id)), self._loop)

    def batches(self, **filters: Any) -> Iterator["Batch"]:
        """Read batches, the newest first."""
        for found in self._loop.iterate(self._inner.batches(**filters)):
            yield Batch(found, self._loop)


class Batch(_Blocking[AsyncBatch]):
    """A batch at the service; see `AsyncBatch` for what its methods do."""

    def __repr__(self) -> str:
        return repr(self._inner)

    @property
    def id(self) -> str:
        """Its id."""
        return self._inner.id

    @property
    def status(self) -> str:
        """Its status when it was last read."""
        return self._inner.status

    @property
    def state(self) -> State:
        """Its state when it was last read."""
        return self._inner.state

    def refresh(self) -> Self:
        """Read its state."""
        return self._after(self._inner.refresh)

    def wait(self) -> Self:
        """Wait for its end."""
        return self._after(self._inner.wait)

    def cancel(self) -> Self:
        """Cancel it; finished lines keep their results."""
        return self._after(self._inner.cancel)

    def results(self, *, after: int = -1) -> Iterator[Line]:
        """Read the results in the order of the input, also while it runs."""
        return self._loop.iterate(self._inner.results(after=after))

    download = _waiting(AsyncBatch.download)

    def _after(self, work: Callable[[], Coroutine[Any, Any, object]]) -> Self:
        self._loop.run(work())
        return self
