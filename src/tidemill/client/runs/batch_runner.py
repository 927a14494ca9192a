"""Runs the pieces of a file as batches, a bounded number at a time, with a journal entry after each step.

For each piece:

1. Upload its bytes; note the file id.
2. Note the request, create the batch under an idempotency key derived from the plan and the piece, note its id.
   Whatever gets lost in between, a repeated request returns the same batch.
3. Follow the batch to its end, download its results, check them against its receipt and its input.
4. Note the result.
"""

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from tidemill.client.errors import Refused
from tidemill.client.http.client import Client
from tidemill.client.http.transfers import upload
from tidemill.client.progress import Display
from tidemill.client.runs.delivery import deliver
from tidemill.client.runs.journal import Journal, Plan, Step
from tidemill.client.runs.outcome import BatchResult
from tidemill.client.runs.paths import Sink
from tidemill.client.runs.plan import Piece
from tidemill.schemas.resources.batch import Batch, RequestCounts
from tidemill.schemas.resources.waiting import Waits

QUOTA_TRIES_MAX: Final = 10_000
"""Attempts while the quota of the project is used up; it has room again when one of its batches finishes."""
QUOTA_SECONDS: Final = 10.0

T = TypeVar("T")


class BatchRunner:
    """Runs the pieces of a plan."""

    def __init__(self, client: Client, source: Path, name: str, plan: Plan, journal: Journal) -> None:
        """Create a runner of the pieces of a file, which messages call by this name."""
        self.name = name
        self.plan = plan
        self.journal = journal
        self._client = client
        self._source = source
        self._progress = Display()
        self._transfers = Display()
        self._counts: dict[int, RequestCounts] = {}
        """Counts of the pieces that have a batch."""
        self._waits: dict[int, Waits] = {}
        self._finished = 0

    @property
    def results(self) -> list[BatchResult]:
        """Results of the batches, in the order of the pieces."""
        steps = (self.journal.step(piece.number) for piece in self.plan.pieces)
        return [step.result for step in steps if step.result is not None]

    async def run(self, progress: Display, parallel: int) -> None:
        """Run all pieces without a result, at most `parallel` at a time; a single one shows its transfers too.

        Raises:
            Unreachable: The service went away; its batches keep running.
            Refused: The service rejected a request.
            OSError: The disk is full.
        """
        self._progress = progress
        if len(self.plan.pieces) == 1:
            self._transfers = progress
        waiting = iter(self.plan.pieces)

        async def work() -> None:
            for piece in waiting:
                await self._run_piece(piece)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(parallel):
                    group.create_task(work())
        except BaseExceptionGroup as failures:
            # The first failure cancelled the other tasks.
            raise failures.exceptions[0] from failures

    async def _run_piece(self, piece: Piece) -> None:
        step = self.journal.step(piece.number)
        if (result := step.result) is not None and self._has_files(piece, result):
            self._counts[piece.number] = RequestCounts(
                total=result.total, completed=result.completed, failed=result.failed
            )
        else:
            step = await self._create(piece, step)
            batch = await self._client.finished(str(step.batch), lambda seen: self._see(piece, seen))
            step = self.journal.note(msgspec.structs.replace(step, result=await self._fetch(piece, batch)))
        self._finished += 1
        if self._finished == len(self.plan.pieces) > 1:
            self._show()

    def _has_files(self, piece: Piece, result: BatchResult) -> bool:
        """Whether the downloaded results of a piece still exist."""
        output, errors = self.journal.results(piece.number)
        return output.exists() == bool(result.completed) and errors.exists() == bool(result.errors)

    async def _create(self, piece: Piece, step: Step) -> Step:
        """Create the batch of a piece, or find the one that an earlier request created."""
        if step.batch is not None:
            return step
        if step.file is None:
            file_id = await self._within_quota(lambda: self._upload(piece))
            step = self.journal.note(msgspec.structs.replace(step, file=file_id))
        batch = await self._within_quota(lambda: self._request(piece))
        return self.journal.note(msgspec.structs.replace(step, batch=batch.id))

    async def _request(self, piece: Piece) -> Batch:
        """Send the request for a batch; the journal knows until a clear refusal that there may be one."""
        job, step = self.plan.job, self.journal.step(piece.number)
        key, metadata = f"{self.plan.key}-{piece.number}", dict(job.metadata)
        self.journal.note(msgspec.structs.replace(step, is_requested=True))
        try:
            return await self._client.create(
                str(step.file), job.endpoint, self.plan.window, metadata, key=key, dedupe=job.dedupe
            )
        except Refused as error:
            if not (step.is_requested or error.may_have_happened):
                self.journal.note(step)
            raise

    async def _upload(self, piece: Piece) -> str:
        is_whole = len(self.plan.pieces) == 1
        name = self.name if is_whole else f"{self.name}.{piece.number:06}.jsonl"
        span = (piece.start, piece.end)

        async def attempt() -> str:
            self._transfers.transfer("upload", piece.end - piece.start)
            return await upload(self._client, self._source, self._transfers.moved, span=span, name=name)

        return await self._client.retrying(attempt)

    async def _fetch(self, piece: Piece, batch: Batch) -> BatchResult:
        """Download and check the results of a finished batch."""
        output, errors = self.journal.results(piece.number)
        sink = Sink(output=output, errors=errors)
        span = (piece.start, piece.end)
        result, _ = await deliver(
            self._client, batch, sink, self._source, self._transfers, span=span, line=piece.line
        )
        return result

    def _see(self, piece: Piece, batch: Batch) -> None:
        """Show all pieces as one batch."""
        self._counts[piece.number] = batch.request_counts
        self._waits[piece.number] = batch.tidemill.waiting
        self._show(str(batch.status) if len(self.plan.pieces) == 1 else None)
        self._progress.waits(wait for waits in self._waits.values() for wait in waits)

    def _show(self, status: str | None = None) -> None:
        counts = self._counts.values()
        self._progress.lines(
            self.name,
            status or f"{self._finished} of {len(self.plan.pieces)} batches",
            RequestCounts(
                total=self.plan.lines or sum(each.total for each in counts),
                completed=sum(each.completed for each in counts),
                failed=sum(each.failed for each in counts),
            ),
        )

    async def _within_quota(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat a call until the quota of the project has room."""
        for _ in range(QUOTA_TRIES_MAX - 1):
            try:
                return await call()
            except Refused as error:
                if error.status != HTTPStatus.TOO_MANY_REQUESTS:
                    raise
                self._show(f"waits for quota: {error}")
            await asyncio.sleep(QUOTA_SECONDS)
        return await call()
