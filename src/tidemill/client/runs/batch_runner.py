"""The batches that a file is run as: a bounded number of them at a time, each step remembered.

For each piece:

1. Its bytes are uploaded, and the file's id is noted.
2. The batch is made, under an idempotency key that follows from the plan and the piece, and noted. A crash before
   the note asks for it again and gets the same batch.
3. It is followed to its end; its results are fetched and checked against its receipt and its input.
4. What came of it is noted.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from tidemill.client.http import Client, Refused, Unreachable
from tidemill.client.progress import Display, Silence
from tidemill.client.runs.delivery import delivered
from tidemill.client.runs.journal import Journal, Plan, Step
from tidemill.client.runs.outcome import End, end_of
from tidemill.client.runs.paths import Sink
from tidemill.client.runs.plan import Piece
from tidemill.schemas.resources.batch import Batch, RequestCounts
from tidemill.schemas.resources.waiting import Waits

UPLOAD_TRIES_MAX: Final = 5
LIMITED_TRIES_MAX: Final = 10_000
"""A project that is at its limits has room again once a batch of it is over: it is asked for so often."""
LIMITED_SECONDS: Final = 10.0
LIMITED: Final = 429

T = TypeVar("T")


class BatchRunner:
    """Runs the pieces of a plan."""

    def __init__(self, client: Client, source: Path, name: str, plan: Plan, journal: Journal) -> None:
        """Nothing is begun.

        Args:
            client: The service.
            source: The file.
            name: What it is called.
            plan: Its pieces.
            journal: What is known of them.
        """
        self.name = name
        self.plan = plan
        self.journal = journal
        self._client = client
        self._source = source
        self._shown: Display = Silence()
        self._bytes: Display = Silence()
        self._counts: dict[int, RequestCounts] = {}
        """Of the pieces that have begun: lines that are done."""
        self._waits: dict[int, Waits] = {}
        self._over = 0

    @property
    def ends(self) -> list[End]:
        """How the batches ended, in the order of the pieces."""
        steps = (self.journal.step(piece.number) for piece in self.plan.pieces)
        return [step.end for step in steps if step.end is not None]

    async def run(self, shown: Display, parallel: int) -> None:
        """Run all pieces that are not over yet, at most `parallel` of them at a time.

        Args:
            shown: Shows how far they are, and of a single one the bytes that move.
            parallel: How many at one time.

        Raises:
            Unreachable: The service went away; what was begun goes on there.
            Refused: The service does not do it.
            OSError: The disk is full.
        """
        self._shown = shown
        if len(self.plan.pieces) == 1:
            self._bytes = shown
        waiting = iter(self.plan.pieces)

        async def work() -> None:
            for piece in waiting:
                await self._piece(piece)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(parallel):
                    group.create_task(work())
        except BaseExceptionGroup as failures:
            # The first one says why; the others were ended by it.
            raise failures.exceptions[0] from failures

    async def _piece(self, piece: Piece) -> None:
        step = self.journal.step(piece.number)
        if (end := step.end) is not None and self._is_here(piece, end):
            self._counts[piece.number] = RequestCounts(total=end.total, completed=end.completed, failed=end.failed)
        else:
            step = await self._made(piece, step)
            batch = await self._client.terminal(str(step.batch), lambda seen: self._tell(piece, seen))
            step = self.journal.note(msgspec.structs.replace(step, end=await self._fetched(piece, batch)))
        self._over += 1
        if self._over == len(self.plan.pieces) > 1:
            self._show()

    def _is_here(self, piece: Piece, end: End) -> bool:
        """Whether the results of a piece that is over still lie where they were put."""
        output, errors = self.journal.results(piece.number)
        return output.exists() == bool(end.completed) and errors.exists() == bool(end.errors)

    async def _made(self, piece: Piece, step: Step) -> Step:
        """The batch of a piece."""
        if step.batch is not None:
            return step
        if step.file is None:
            file_id = await self._patiently(lambda: self._uploaded(piece))
            step = self.journal.note(msgspec.structs.replace(step, file=file_id))
        job, file = self.plan.job, str(step.file)
        key, metadata = f"{self.plan.key}-{piece.number}", dict(job.metadata)
        batch = await self._patiently(
            lambda: self._client.create(file, job.endpoint, job.window, metadata, key=key)
        )
        return self.journal.note(msgspec.structs.replace(step, batch=batch.id))

    async def _uploaded(self, piece: Piece) -> str:
        is_whole = len(self.plan.pieces) == 1
        name = self.name if is_whole else f"{self.name}.{piece.number:06}.jsonl"
        self._bytes.transfer("upload", piece.end - piece.start)
        for tried in range(UPLOAD_TRIES_MAX):
            try:
                return await self._client.upload(
                    self._source, self._bytes.moved, span=(piece.start, piece.end), name=name
                )
            except Unreachable:
                if tried == UPLOAD_TRIES_MAX - 1:
                    raise
            # Whether the service is back is what a read tells, which waits for it.
            await self._client.limits()
        raise AssertionError("the last try returns or raises")

    async def _fetched(self, piece: Piece, batch: Batch) -> End:
        """Fetch and check the results of a batch that is over, and say what came of it."""
        output, errors = self.journal.results(piece.number)
        sink = Sink(output=output, errors=errors)
        span = (piece.start, piece.end)
        done = await delivered(self._client, batch, sink, self._source, self._bytes, span=span)
        report = await self._client.errors(batch)
        return end_of(batch, report, done.faults if done else (), line=piece.line)

    def _tell(self, piece: Piece, batch: Batch) -> None:
        """Show all pieces as if they were one batch."""
        self._counts[piece.number] = batch.request_counts
        self._waits[piece.number] = batch.tidemill.waiting
        self._show(str(batch.status) if len(self.plan.pieces) == 1 else None)
        self._shown.waits(wait for waits in self._waits.values() for wait in waits)

    def _show(self, status: str | None = None) -> None:
        counts = self._counts.values()
        self._shown.lines(
            self.name,
            status or f"{self._over} of {len(self.plan.pieces)} batches",
            RequestCounts(
                total=self.plan.lines or sum(each.total for each in counts),
                completed=sum(each.completed for each in counts),
                failed=sum(each.failed for each in counts),
            ),
        )

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Ask until there is room: a project may have so many batches and lines at one time, of all its jobs."""
        for tried in range(LIMITED_TRIES_MAX):
            try:
                return await call()
            except Refused as error:
                if error.status != LIMITED or tried == LIMITED_TRIES_MAX - 1:
                    raise
                self._show(f"waits for room: {error}")
            await asyncio.sleep(LIMITED_SECONDS)
        raise AssertionError("the last try returns or raises")
