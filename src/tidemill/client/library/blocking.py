"""The Python client for programs without an event loop of their own, and for notebooks, whose loop runs already.

with Tidemill() as client:
    run = client.run("in.jsonl")
"""

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Self, TypeVar, Unpack

from tidemill.client.library.answers import Line
from tidemill.client.library.asynchronous import AsyncTidemill, BatchOptions, Run, Schema, TableOptions, Text
from tidemill.client.library.batch import AsyncBatch
from tidemill.client.library.lines import Source
from tidemill.client.runs.job import PARALLEL
from tidemill.client.runs.outcome import BatchResult
from tidemill.schemas.resources.batch import Batch as State

T = TypeVar("T")


class Loop:
    """An event loop on a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tidemill", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do work on the loop and wait for it; Ctrl-C cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, found: AsyncGenerator[T, None]) -> Iterator[T]:
        """The items of an asynchronous generator."""

        async def following() -> T:
            return await anext(found)

        try:
            with suppress(StopAsyncIteration):
                while True:
                    yield self.run(following())
        finally:
            self.run(found.aclose())

    def stop(self) -> None:
        """End the loop and its thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Tidemill:
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
        self._client = AsyncTidemill(base_url, api_key, data=data, progress=progress)
        self._loop = Loop()
        self._loop.run(self._client.__aenter__())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._loop.run(self._client.__aexit__())
        self._loop.stop()

    def submit(self, source: Source, *, key: str | None = None, **options: Unpack[BatchOptions]) -> "Batch":
        """Create a batch of a file or of lines, and return at once."""
        return Batch(self._loop, self._loop.run(self._client.submit(source, key=key, **options)))

    def run(
        self,
        source: str | os.PathLike[str],
        output: str | os.PathLike[str] | None = None,
        *,
        errors: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        parallel: int = PARALLEL,
        **options: Unpack[BatchOptions],
    ) -> Run:
        """Run a file of any size to its end, and check the results."""
        return self._loop.run(
            self._client.run(source, output, errors=errors, overwrite=overwrite, parallel=parallel, **options)
        )

    def map(
        self,
        frame: Any,
        *,
        model: str,
        prompt: Text | None = None,
        system: Text | None = None,
        schema: Schema | None = None,
        repairs: int = 2,
        images: Sequence[str] = (),
        keep: Sequence[str] = (),
        fields: Mapping[str, Any] | None = None,
        **options: Unpack[TableOptions],
    ) -> Any:
        """Ask a model about each row of a table, and return a table of the same library with the answers."""
        work = self._client.map(
            frame,
            model=model,
            prompt=prompt,
            system=system,
            schema=schema,
            repairs=repairs,
            images=images,
            keep=keep,
            fields=fields,
            **options,
        )
        return self._loop.run(work)

    def embed(
        self,
        frame: Any,
        *,
        model: str,
        column: str | None = None,
        prompt: Text | None = None,
        keep: Sequence[str] = (),
        fields: Mapping[str, Any] | None = None,
        **options: Unpack[TableOptions],
    ) -> Any:
        """Embed a column of a table, and return a table of the same library with the vectors."""
        work = self._client.embed(
            frame, model=model, column=column, prompt=prompt, keep=keep, fields=fields, **options
        )
        return self._loop.run(work)

    def batch(self, batch_id: str) -> "Batch":
        """Read a batch by its id."""
        return Batch(self._loop, self._loop.run(self._client.batch(batch_id)))

    def batches(self, **filters: Any) -> Iterator["Batch"]:
        """Read batches, the newest first."""
        for found in self._loop.iterate(self._client.batches(**filters)):
            yield Batch(self._loop, found)


class Batch:
    """A batch at the service; see `AsyncBatch` for what its methods do."""

    def __init__(self, loop: Loop, batch: AsyncBatch) -> None:
        self._loop = loop
        self._batch = batch

    def __repr__(self) -> str:
        return repr(self._batch)

    @property
    def id(self) -> str:
        """Its id."""
        return self._batch.id

    @property
    def status(self) -> str:
        """Its status when it was last read."""
        return self._batch.status

    @property
    def state(self) -> State:
        """Its state when it was last read."""
        return self._batch.state

    def refresh(self) -> Self:
        """Read its state."""
        return self._after(self._batch.refresh)

    def wait(self) -> Self:
        """Wait for its end."""
        return self._after(self._batch.wait)

    def cancel(self) -> Self:
        """Cancel it; finished lines keep their results."""
        return self._after(self._batch.cancel)

    def results(self, *, after: int = -1) -> Iterator[Line]:
        """Read the results in the order of the input, also while it runs."""
        return self._loop.iterate(self._batch.results(after=after))

    def download(
        self,
        output: str | os.PathLike[str],
        errors: str | os.PathLike[str] | None = None,
        *,
        overwrite: bool = False,
    ) -> BatchResult:
        """Wait for its end, download its files, and check them against its receipt."""
        return self._loop.run(self._batch.download(output, errors, overwrite=overwrite))

    def _after(self, work: Callable[[], Coroutine[Any, Any, object]]) -> Self:
        self._loop.run(work())
        return self
