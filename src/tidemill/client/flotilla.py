"""The batches that one large file is run as: a bounded number of them at a time, each step remembered.

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

from tidemill.client.delivery import delivered
from tidemill.client.journal import Journal, Plan, Step
from tidemill.client.place import Sink
from tidemill.client.plan import Piece
from tidemill.client.progress import Display, Silence
from tidemill.client.service import Client, Refused, Unreachable
from tidemill.schemas.batch import Batch, RequestCounts, Status

POLL_SECONDS_MIN: Final = 0.1
POLL_SECONDS_MAX: Final = 2.0
POLL_GROWTH: Final = 1.3
UPLOAD_TRIES_MAX: Final = 5
LIMITED_TRIES_MAX: Final = 10_000
"""A project that is at its limits has room again once a batch of it is over: it is asked for so often."""
LIMITED_SECONDS: Final = 10.0
LIMITED: Final = 429
FAULTS_MAX: Final = 10
"""Of each piece, those that are shown."""

T = TypeVar("T")


class Flotilla:
    """Runs the pieces of a plan."""

    def __init__(self, client: Client, source: Path, plan: Plan, journal: Journal, shown: Display) -> None:
        self._client = client
        self._source = source
        self._plan = plan
        self._journal = journal
        self._shown = shown
        self._counts: dict[int, RequestCounts] = {}
        """Of the pieces that have begun: lines that are done."""
        self._over = 0

    async def run(self, parallel: int) -> None:
        """Run all pieces that are not over yet, at most `parallel` of them at a time.

        Raises:
            Unreachable: The service went away; what was begun goes on there.
            Refused: The service does not do it.
            OSError: The disk is full.
        """
        waiting = iter(self._plan.pieces)

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
        step = self._journal.step(piece.number)
        if step.status is None or not self._is_here(step):
            step = await self._made(piece, step)
            step = await self._fetched(piece, step, await self._terminal(piece, str(step.batch)))
            self._journal.note(step)
        self._over += 1
        self._tell(piece, RequestCounts(total=piece.lines, completed=step.completed, failed=step.failed))

    def _is_here(self, step: Step) -> bool:
        """Whether the results of a piece that is over still lie where they were put."""
        output, errors = self._journal.results(step.piece)
        return output.exists() == bool(step.completed) and errors.exists() == bool(step.errors)

    async def _made(self, piece: Piece, step: Step) -> Step:
        """The batch of a piece."""
        if step.batch is not None:
            return step
        if step.file is None:
            file_id = await _patiently(lambda: self._uploaded(piece))
            step = self._journal.note(msgspec.structs.replace(step, file=file_id))
        job, file = self._plan.job, str(step.file)
        key = f"{self._plan.key}-{piece.number}"
        batch = await _patiently(lambda: self._client.create(file, job.endpoint, job.window, key=key))
        return self._journal.note(msgspec.structs.replace(step, batch=batch.id))

    async def _uploaded(self, piece: Piece) -> str:
        name = f"{self._source.name}.{piece.number:06}.jsonl"
        for tried in range(UPLOAD_TRIES_MAX):
            try:
                return await self._client.upload(
                    self._source, lambda _: None, span=(piece.start, piece.end), name=name
                )
            except Unreachable:
                if tried == UPLOAD_TRIES_MAX - 1:
                    raise
            # Whether the service is back is what a read tells, which waits for it.
            await self._client.limits()
        raise AssertionError("the last try returns or raises")

    async def _terminal(self, piece: Piece, batch_id: str) -> Batch:
        """Look again and again until nothing changes any more; the deadline of the batch is the bound."""
        pause = POLL_SECONDS_MIN
        while True:
            batch = await self._client.batch(batch_id)
            if batch.status.is_terminal:
                return batch
            self._tell(piece, batch.request_counts)
            await asyncio.sleep(pause)
            pause = min(POLL_SECONDS_MAX, pause * POLL_GROWTH)

    async def _fetched(self, piece: Piece, step: Step, batch: Batch) -> Step:
        """Fetch and check the results of a batch that is over, and say what came of it."""
        output, errors = self._journal.results(piece.number)
        sink = Sink(output=output, errors=errors)
        span = (piece.start, piece.end)
        done = await delivered(self._client, batch, sink, self._source, Silence(), span=span)
        receipt, usage, counts = batch.tidemill.receipt, batch.usage, batch.request_counts
        faults = done.faults if done else _refusals(piece, batch)
        return msgspec.structs.replace(
            step,
            status=str(batch.status),
            completed=counts.completed,
            failed=counts.failed,
            errors=receipt.errors.lines if receipt and receipt.errors else 0,
            tokens=(usage.input_tokens, usage.output_tokens) if usage else (0, 0),
            faults=tuple(f"{batch.id}: {fault}" for fault in faults[:FAULTS_MAX]),
            is_inexact=bool(done and done.faults),
        )

    def _tell(self, piece: Piece, counts: RequestCounts) -> None:
        """Show all pieces as if they were one batch."""
        self._counts[piece.number] = counts
        job, pieces = self._plan.job, len(self._plan.pieces)
        done = sum(each.completed for each in self._counts.values())
        failed = sum(each.failed for each in self._counts.values())
        # It is only shown: what stands for its id is none.
        whole = Batch.model_construct(
            id=f"{self._over} of {pieces} batches",
            endpoint=job.endpoint,
            input_file_id="",
            completion_window=job.window,
            status=Status.COMPLETED if self._over == pieces else Status.IN_PROGRESS,
            created_at=0,
            expires_at=0,
            request_counts=RequestCounts(total=self._plan.lines, completed=done, failed=failed),
        )
        self._shown.batch(whole)


async def _patiently(call: Callable[[], Awaitable[T]]) -> T:
    """Ask until there is room: a project may have so many batches and lines at one time, of all its jobs."""
    for tried in range(LIMITED_TRIES_MAX):
        try:
            return await call()
        except Refused as error:
            if error.status != LIMITED or tried == LIMITED_TRIES_MAX - 1:
                raise
        await asyncio.sleep(LIMITED_SECONDS)
    raise AssertionError("the last try returns or raises")


def _refusals(piece: Piece, batch: Batch) -> tuple[str, ...]:
    """What was wrong with the input of a batch that failed, by the lines of the whole file."""
    if batch.errors is None:
        return ("the input was refused",)
    return tuple(
        f"line {fault.line + piece.line - 1}: {fault.message} [{fault.code}]"
        if fault.line is not None
        else f"{fault.message} [{fault.code}]"
        for fault in batch.errors.data
    )
