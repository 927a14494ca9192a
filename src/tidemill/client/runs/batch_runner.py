"""Runs the shards of a file as batches, a bounded number at a time, with a journal entry after each step.

For each shard:

1. Upload its bytes; note the file id.
2. Note the request, create the batch under an idempotency key derived from the plan and the shard, note its id.
   Whatever gets lost in between, a repeated request returns the same batch.
3. Follow the batch to its end, download its results, check them against its receipt and its input.
4. Note the result.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from tidemill.client.errors import NoSpace, OtherService, Refused
from tidemill.client.http.client import Client
from tidemill.client.http.transfers import upload
from tidemill.client.progress import Display
from tidemill.client.runs.delivery import deliver
from tidemill.client.runs.journal import Journal, Plan, Step
from tidemill.client.runs.outcome import BatchResult
from tidemill.client.runs.paths import Sink
from tidemill.client.runs.plan import Shard
from tidemill.schemas.resources.batch import Batch, RequestCounts
from tidemill.schemas.resources.waiting import Waits
from tidemill.tasks import run_all

PASSING_LIMITS: Final = ("batches_in_progress_max", "lines_enqueued_max")
"""Limits of a project that have room again when its batches go on; the message of a 429 ends with the name."""
QUOTA_TRIES_MAX: Final = 10_000
"""Attempts while the quota of the project is used up; it has room again when one of its batches finishes."""
QUOTA_SECONDS: Final = 10.0

T = TypeVar("T")


class BatchRunner:
    """Runs the shards of a plan."""

    def __init__(
        self, client: Client, source: Path, name: str, plan: Plan, journal: Journal, *, reconciles: bool = True
    ) -> None:
        """Create a runner of the shards of a file, which messages call by this name.

        Unless it `reconciles`, the caller compares the results with the input.
        """
        self.name = name
        self.plan = plan
        self.journal = journal
        self._client = client
        self._source = source
        self._reconciles = reconciles
        self._progress = Display()
        self._transfers = Display()
        self._counts: dict[int, RequestCounts] = {}
        """Counts of the shards that have a batch."""
        self._waits: dict[int, Waits] = {}
        self._finished = 0

    @property
    def results(self) -> list[BatchResult]:
        """Results of the batches, in the order of the shards."""
        steps = (self.journal.step(shard.number) for shard in self.plan.shards)
        return [step.result for step in steps if step.result is not None]

    async def run(self, progress: Display, parallel: int) -> None:
        """Run all shards without a result, at most `parallel` at a time; a single one shows its transfers too.

        Raises:
            Unreachable: The service went away; its batches keep running.
            Refused: The service rejected a request.
            OtherService: The address is that of another service.
            OSError: The disk is full.
        """
        self._progress = progress
        if len(self.plan.shards) == 1:
            self._transfers = progress
        waiting = iter(self.plan.shards)

        async def work() -> None:
            for shard in waiting:
                await self._run_shard(shard)

        await run_all(work() for _ in range(parallel))

    async def _run_shard(self, shard: Shard) -> None:
        step = self.journal.step(shard.number)
        if (result := step.result) is not None and self._has_files(shard, result):
            self._counts[shard.number] = RequestCounts(
                total=result.total, completed=result.completed, failed=result.failed
            )
        else:
            step = await self._create(shard, step)
            batch = await self._client.finished(str(step.batch), lambda seen: self._see(shard, seen))
            step = self.journal.note(msgspec.structs.replace(step, result=await self._fetch(shard, batch)))
        self._finished += 1
        if self._finished == len(self.plan.shards) > 1:
            self._show()

    def _has_files(self, shard: Shard, result: BatchResult) -> bool:
        """Whether the downloaded results of a shard still exist."""
        output, errors = self.journal.results(shard.number)
        return output.exists() == bool(result.completed) and errors.exists() == bool(result.errors)

    async def _create(self, shard: Shard, step: Step) -> Step:
        """Create the batch of a shard, or find the one that an earlier request created."""
        if step.batch is not None:
            return step
        if step.file is None:
            file_id = await self._within_quota(lambda: self._upload(shard))
            step = self.journal.note(msgspec.structs.replace(step, file=file_id))
        batch = await self._within_quota(lambda: self._request(shard))
        return self.journal.note(msgspec.structs.replace(step, batch=batch.id))

    async def _request(self, shard: Shard) -> Batch:
        """Send the request for a batch; the journal knows until a clear refusal that there may be one."""
        job, step = self.plan.job, self.journal.step(shard.number)
        key = f"{self.plan.key}-{shard.number}"
        self.journal.note(msgspec.structs.replace(step, is_requested=True))
        try:
            return await self._client.create(
                str(step.file), job.endpoint, self.plan.window,
                key=key, metadata=dict(job.metadata), dedupe=job.dedupe, callback_url=job.callback,
                rerun_of=job.rerun_of, output_uri=job.output_uri, output_format=job.output_format,
            )  # fmt: skip
        except (NoSpace, OtherService, Refused) as error:
            if not (step.is_requested or error.may_have_happened):
                self.journal.note(step)
            raise

    async def _upload(self, shard: Shard) -> str:
        is_whole = len(self.plan.shards) == 1
        name = self.name if is_whole else f"{self.name}.{shard.number:06}.jsonl"
        span = (shard.start, shard.end)

        async def attempt() -> str:
            self._transfers.transfer("upload", shard.end - shard.start)
            return await upload(self._client, self._source, self._transfers.moved, span=span, name=name)

        return await self._client.retrying(attempt)

    async def _fetch(self, shard: Shard, batch: Batch) -> BatchResult:
        """Download and check the results of a finished batch."""
        output, errors = self.journal.results(shard.number)
        sink = Sink(output=output, errors=errors)
        span = (shard.start, shard.end)
        source = self._source if self._reconciles else None
        result, _ = await deliver(self._client, batch, sink, source, self._transfers, span=span, line=shard.line)
        return result

    def _see(self, shard: Shard, batch: Batch) -> None:
        """Show all shards as one batch."""
        self._counts[shard.number] = batch.request_counts
        self._waits[shard.number] = batch.tidemill.waiting
        self._show(str(batch.status) if len(self.plan.shards) == 1 else None)
        self._progress.waits(wait for waits in self._waits.values() for wait in waits)

    def _show(self, status: str | None = None) -> None:
        counts = sum(self._counts.values(), start=RequestCounts())
        counts = counts.model_copy(update={"total": self.plan.lines or counts.total})
        self._progress.lines(self.name, status or f"{self._finished} of {len(self.plan.shards)} batches", counts)

    async def _within_quota(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat a call until the quota of the project has room, if running batches make room."""
        for _ in range(QUOTA_TRIES_MAX - 1):
            try:
                return await call()
            except Refused as error:
                limit = re.search(r"\(limit: (\w+)\)$", str(error))
                if error.status != HTTPStatus.TOO_MANY_REQUESTS or (limit and limit[1] not in PASSING_LIMITS):
                    raise
                self._show(f"waits for quota: {error}")
            await asyncio.sleep(QUOTA_SECONDS)
        return await call()
