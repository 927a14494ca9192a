"""A batch of the Python client: its state, its end, and its results."""

import asyncio
import functools
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, Final, Self

from tidemill.client.errors import LIBRARY, UsageError
from tidemill.client.http.answer import plain
from tidemill.client.http.client import BATCHES, POLL_GROWTH, POLL_SECONDS_MAX, POLL_SECONDS_MIN, Client
from tidemill.client.library.answers import Line
from tidemill.client.progress import display
from tidemill.client.runs.delivery import deliver
from tidemill.client.runs.outcome import BatchResult, show
from tidemill.client.runs.paths import Sink
from tidemill.schemas.resources.batch import Batch
from tidemill.terminal import Console
from tidemill.wording import counted

PAGE_LINES_MAX: Final = 1_000
FAULTS_SHOWN: Final = 3


class AsyncBatch:
    """A batch at the service, and its state when it was last read."""

    def __init__(self, client: Client, console: Console, state: Batch) -> None:
        self._client = client
        self._console = console
        self.state = state

    def __repr__(self) -> str:
        counts = self.state.request_counts
        return f"<{self.id} {self.status}, {counts.completed + counts.failed} of {counted(counts.total, 'line')}>"

    @property
    def id(self) -> str:
        """Its id."""
        return self.state.id

    @property
    def status(self) -> str:
        """Its status when it was last read."""
        return str(self.state.status)

    async def refresh(self) -> Self:
        """Read its state."""
        self.state = await self._client.batch(self.id)
        return self

    async def wait(self) -> Self:
        """Wait for its end, at the latest after its deadline."""
        with display(self._console) as shown:
            self.state = await self._client.finished(self.id, functools.partial(show, shown))
        return self

    async def cancel(self) -> Self:
        """Cancel it; finished lines keep their results."""
        self.state = await self._client.cancel(self.id)
        return self

    async def results(self, *, after: int = -1) -> AsyncGenerator[Line, None]:
        """Read the results in the order of the input, each as soon as it and those before it are finished.

        It ends with the batch.

        Args:
            after: The index of the last line that is known already.

        Raises:
            UsageError: The batch ended before any line ran; the text has its errors.
        """
        pause, limit = POLL_SECONDS_MIN, PAGE_LINES_MAX
        while True:
            # Read the state before the page: the next round then reads lines that end in between.
            is_over = (await self.refresh()).state.status.is_terminal
            self._check_has_lines()
            before = after
            for index, result in await self._page(after, limit):
                if index != after + 1 and not is_over:
                    break
                after = index
                yield Line.from_result(result, index)
            if after != before or is_over:
                if after == before and limit == PAGE_LINES_MAX:
                    return
                pause, limit = POLL_SECONDS_MIN, PAGE_LINES_MAX
            else:
                # While the next line is pending, a page of one line suffices to notice its arrival.
                limit = 1
                await asyncio.sleep(pause)
                pause = min(POLL_SECONDS_MAX, pause * POLL_GROWTH)

    def _check_has_lines(self) -> None:
        """Check that the batch did not end without any results."""
        if self.state.status.is_terminal and not self.state.request_counts.total:
            faults = self.state.errors.data[:FAULTS_SHOWN] if self.state.errors else ()
            why = "; ".join(
                f"line {fault.line}: {fault.message}" if fault.line else fault.message for fault in faults
            )
            raise UsageError(f"{self.id} is {self.status} and has no results{': ' if why else ''}{why}")

    async def download(
        self,
        output: str | os.PathLike[str],
        errors: str | os.PathLike[str] | None = None,
        *,
        overwrite: bool = False,
    ) -> BatchResult:
        """Wait for its end, download its files, and check them against its receipt.

        Raises:
            UsageError: A file exists, or the batch ended before any line ran; the text has its errors.
        """
        chosen = None if errors is None else Path(errors)
        sink = Sink(output=Path(output), errors=chosen, force=overwrite, wording=LIBRARY).checked(None)
        sink.check_new()
        await self.wait()
        self._check_has_lines()
        with display(self._console) as shown:
            result, _ = await deliver(self._client, self.state, sink, None, shown)
        return result

    async def _page(self, after: int, limit: int) -> list[tuple[int, dict[str, Any]]]:
        """The next finished lines, each with its index."""
        path, query = f"{BATCHES}/{self.id}/results", {"limit": str(limit), "after": str(after)}
        page = await self._client.send_retrying("GET", path, params=query)
        return [(entry["index"], plain(entry["result"])) for entry in page.objects("data")]
