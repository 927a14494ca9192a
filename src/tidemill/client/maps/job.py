"""`tidemill map` and `tidemill embed`: run a table in parts, and write one table.

A sample of rows is the first part, so that no row of it is asked twice. Parts are made while earlier ones run, and
at most `parallel` are at work, so memory does not grow with the table.
"""

import asyncio
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from threading import Event
from typing import Final

import pyarrow as pa

from tidemill.client.errors import Exit, OtherService, Refused, Rejected, Unreachable, UsageError, Wording
from tidemill.client.http.client import Client
from tidemill.client.maps import output, sample
from tidemill.client.maps.failed_rows import FinishedTable, keeps_types
from tidemill.client.maps.output import Totals
from tidemill.client.maps.part_runner import PartRunner
from tidemill.client.maps.parts import Part, PartFolder, PartMaker, Stopped, folder_of
from tidemill.client.maps.progress import Whole
from tidemill.client.maps.task import Task, identity
from tidemill.client.progress import display
from tidemill.client.runs import outcome
from tidemill.client.runs.journal import Job, Journal, Plan
from tidemill.client.runs.journal import folder_of as journal_folder
from tidemill.client.runs.outcome import BatchResult
from tidemill.schemas.resources.batch import RequestCounts, Status
from tidemill.tables import TableError, pieces
from tidemill.tables.columns import FACTS, VectorReader
from tidemill.tables.sources.files import S3
from tidemill.tasks import run_all
from tidemill.terminal import Console
from tidemill.wording import counted

REASONS_SHOWN: Final = 10
SAMPLE_ROWS: Final = 5


@dataclass(frozen=True, kw_only=True)
class MapOptions:
    """Options of a run over a table.

    Attributes:
        output: Path of the table to write, also in a bucket.
        window: Completion window of each batch; None takes the usual one of the service.
        dedupe: Which equal rows of a part are asked once; None leaves it to the service.
        metadata: Metadata of each batch.
        parallel: Parts at work.
        tries: Rows of the sample; None is `SAMPLE_ROWS`, but none if failed rows are asked again.
        is_dry: Whether to end after the sample.
        again: Start over instead of resuming.
        force: Whether the output may be overwritten.
        retry_failed: Whether to ask the rows of the output again that have an error.
    """

    output: str
    window: str | None = None
    dedupe: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    parallel: int = 4
    tries: int | None = None
    is_dry: bool = False
    again: bool = False
    force: bool = False
    retry_failed: bool = False

    def __post_init__(self) -> None:
        if self.parallel < 1:
            raise UsageError(f"parallel must be at least 1, and is {self.parallel}")

    @property
    def sample_rows(self) -> int:
        """Rows of the sample.

        Rows that failed say nothing of each other: some may fail for ever, and the next ones failed in an outage.
        """
        if self.tries is not None:
            return self.tries
        return 0 if self.retry_failed and not self.is_dry else SAMPLE_ROWS

    @property
    def may_end(self) -> bool:
        """Whether a sample without a valid answer ends the run."""
        return self.tries is not None or not self.retry_failed

    @property
    def local_output(self) -> Path | None:
        """The output on this machine; None for a bucket."""
        return None if self.output.startswith(S3) else Path(self.output)


async def run(console: Console, client: Client, task: Task, options: MapOptions) -> Exit:
    """Run a table to its end; after a crash or Ctrl-C the same call resumes.

    Raises:
        UsageError: The source cannot be read, the output exists, or the service rejected the requests.
        Unreachable: The service went away.
        Refused: The service rejected a request.
    """
    asked = identity(task)
    finished = await _finished(task, options) if options.retry_failed else None
    if finished is not None:
        console.print(f"{options.output}: {counted(len(finished.failed), 'row')} with an error")
        if not finished.failed:
            return Exit.OK
        task = finished.task(task)
    job = Job(
        sha256=identity(task),
        base_url=client.base_url,
        endpoint=task.requests.endpoint,
        window=options.window,
        dedupe=options.dedupe,
        metadata=tuple(sorted(options.metadata.items())),
    )
    with Journal(journal_folder(options.local_output, job, os.environ), client.wording) as journal:
        if finished is None and (options.again or not journal.delivers):
            await asyncio.to_thread(_check_new, options, client.wording)
        if options.again:
            journal.forget()
        if journal.plan(job) is None:
            journal.start(Plan(job=job, window=job.window or "", key=uuid.uuid4().hex, shards=[]))
        else:
            console.print(f"Resuming {task.name}; {client.wording.again} starts over.")
        try:
            work = _Run(console, journal, task, options, asked=asked, finished=finished, wording=client.wording)
            return await work.run(client, job)
        except TableError as error:
            raise UsageError(str(error)) from error


async def _finished(task: Task, options: MapOptions) -> FinishedTable:
    try:
        return await asyncio.to_thread(FinishedTable, options.output, task, os.environ)
    except TableError as error:
        raise UsageError(f"--retry-failed: {error}") from error


def _check_new(options: MapOptions, wording: Wording) -> None:
    path = options.local_output
    if path is None:
        try:
            output.check_bucket(options.output, os.environ, force=options.force)
        except TableError as error:
            raise UsageError(str(error)) from error
        return
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{wording.output} {path}: the folder {path.absolute().parent} does not exist")
    if path.exists() and not (options.force and path.is_file()):
        raise UsageError(f"{path} already exists; {wording.overwrite} overwrites it")


class _Run:
    """One run over a table."""

    def __init__(
        self,
        console: Console,
        journal: Journal,
        task: Task,
        options: MapOptions,
        *,
        asked: str,
        finished: FinishedTable | None,
        wording: Wording,
    ) -> None:
        """`asked` identifies the requests of all rows; answers to failed ones join the finished table."""
        self._console, self._journal, self._task, self._options = console, journal, task, options
        self._asked, self._finished, self._wording = asked, finished, wording
        self._stop = Event()
        self._is_whole = False
        """Whether the sample has all rows."""
        self._parts: dict[int, list[BatchResult]] = {}
        """Results of the parts that are done."""
        names = pieces.added(task.kept, task.reader)
        self._facts = [field.name for field in names[-len(FACTS) :]]
        self._vector = names[0].name if isinstance(task.reader, VectorReader) else None

    async def run(self, client: Client, job: Job) -> Exit:
        """Run it."""
        try:
            is_useful = await self._ask(client, job)
        except (asyncio.CancelledError, Unreachable):
            self._show_unfinished()
            raise
        except Rejected:
            if not self._parts:
                self._journal.forget()
            raise
        except TableError:
            if folder_of(self._journal.folder, 0).part() is None:  # nothing was asked
                self._journal.forget()
            raise
        except (Refused, OtherService) as error:
            if not self._is_asked():
                self._journal.forget()
                raise
            if isinstance(error, Refused) and error.status == HTTPStatus.NOT_FOUND:
                step = f"If the service no longer has this run, {self._wording.again} starts over."
                raise UsageError(f"{error} {step}") from error
            self._show_unfinished()
            raise
        finally:
            self._stop.set()
        return await self._end(is_useful=is_useful)

    async def _end(self, *, is_useful: bool) -> Exit:
        """Write the table, unless only the sample ran."""
        if not is_useful:
            self._journal.forget()
            self._console.print(
                "No row of the sample has a valid answer. Correct the prompt or the schema; "
                "`--try 0` runs all rows anyway."
            )
            return Exit.SOME_FAILED
        if self._options.is_dry:
            rest = "writes the table" if self._is_whole else "goes on with the other rows"
            self._console.print(f"The same command without --dry-run {rest}.")
            return Exit.OK
        return await self._deliver()

    async def _ask(self, client: Client, job: Job) -> bool:
        """Run the sample, and unless that is all, the other parts.

        Returns False, without running them, if no row of the sample has a valid answer.
        """
        bounds = await client.limits()
        maker = PartMaker(self._journal.folder, self._task, bounds, self._stop)
        runner = PartRunner(client, self._task, job, bounds)
        size = self._options.sample_rows
        first = await self._sample(maker, runner, size) if size else None
        # A sample without a request says nothing of the other rows.
        is_sample = first is not None and first.lines and first.rows <= size and not first.is_last
        if first is not None and is_sample and self._options.may_end:
            piece = folder_of(self._journal.folder, first.number).piece
            if not await asyncio.to_thread(sample.has_answer, piece, self._facts[0]):
                return False
        if self._options.is_dry:
            return True
        with display(self._console) as progress:
            whole = Whole(progress, self._task.name, self._task.source.rows)
            if first is not None:
                self._show_done(first, whole)
            await self._run_parts(maker, runner, whole)
        return True

    def _is_asked(self) -> bool:
        """Whether the service has a batch of the run, or may have one."""
        return any(PartFolder(path).is_asked() for path in self._journal.folder.iterdir() if path.is_dir())

    def _show_unfinished(self) -> None:
        same = f"The same {self._wording.call} goes on."
        self._console.print(f"{counted(len(self._parts), 'part')} done. {same}")

    async def _sample(self, maker: PartMaker, runner: PartRunner, size: int) -> Part:
        """Run the first part, and show it if it is new."""
        part = await asyncio.to_thread(maker.next, size)
        assert part is not None
        self._is_whole = part.is_last or part.rows == self._task.source.rows
        folder = folder_of(self._journal.folder, part.number)
        is_new = not folder.piece.exists()
        with display(self._console) as progress:
            whole = Whole(progress, "sample", part.rows)
            self._parts[0] = await runner.run(part, folder, whole.of(part.number, part.rows, part.lines))
        if is_new or self._options.is_dry:
            kept, error = self._task.kept, self._facts[0]
            total = None if part.is_last else self._task.source.rows or 0
            sample.show(self._console, folder.piece, kept, error, total)
        return part

    async def _run_parts(self, maker: PartMaker, runner: PartRunner, whole: Whole) -> None:
        """Run the other parts, at most `parallel` at a time."""
        making = asyncio.Lock()

        async def work() -> None:
            while True:
                async with making:
                    part = await asyncio.to_thread(maker.next)
                if part is None:
                    return
                await self._run_part(part, runner, whole)

        try:
            await run_all(work() for _ in range(self._options.parallel))
        except Stopped as error:
            raise asyncio.CancelledError from error

    async def _run_part(self, part: Part, runner: PartRunner, whole: Whole) -> None:
        view = whole.of(part.number, part.rows, part.lines)
        folder = folder_of(self._journal.folder, part.number)
        self._parts[part.number] = await runner.run(part, folder, view)
        self._show_done(part, whole)

    def _show_done(self, part: Part, whole: Whole) -> None:
        completed = sum(result.completed for result in self._parts[part.number][:1])
        whole.see(part.number, RequestCounts(total=part.rows, completed=completed, failed=part.rows - completed))

    async def _deliver(self) -> Exit:
        if self._finished is None and not self._journal.delivers:
            await asyncio.to_thread(_check_new, self._options, self._wording)
        self._journal.deliver()
        error, _, read, written, cost = self._facts
        totals = Totals(run=self._asked, error=error, input_tokens=read, output_tokens=written, cost=cost)
        await asyncio.to_thread(
            output.write,
            self._options.output,
            self._journal.folder,
            self._batches,
            vector=self._vector,
            totals=totals,
            environ=os.environ,
        )
        code = self._summary(totals)
        self._journal.remove()
        return code

    def _batches(self) -> Iterator[pa.RecordBatch]:
        """The rows of the output, from the first one."""
        found = [folder_of(self._journal.folder, number).piece for number in sorted(self._parts)]
        answers = pieces.batches(found)
        return answers if self._finished is None else self._finished.with_answers(answers)

    def _summary(self, totals: Totals) -> Exit:
        results = [result for _, batches in sorted(self._parts.items()) for result in batches]
        damages = [(result.batch, damage) for result in results for damage in result.damage]
        # The run goes on after a rejected repair only: the rows keep the errors of their first answers.
        rejected = [result for result in results if result.status == Status.FAILED]
        for result in rejected:
            said = f"repair rejected{result.refusals[0].text if result.refusals else ''}"
            damages.append((result.batch, said))
        verdict = outcome.verdict([result for result in results if result not in rejected])
        code = Exit.SOME_FAILED if totals.failed else Exit.OK
        code = code if verdict in {Exit.OK, Exit.SOME_FAILED} else verdict
        done = totals.rows - totals.failed
        style = outcome.style_of(completed=done, failed=totals.failed, ok=code is Exit.OK)
        head = f"{self._task.name}: {done:,} of {counted(totals.rows, 'row')} answered"
        failed = f", {totals.failed:,} with an error" if totals.failed else ""
        self._console.print(f"{head}{failed}, in {counted(len(results), 'batch')}", style=style)
        for reason, count in totals.reasons.most_common(REASONS_SHOWN):
            self._console.print(f"  {count:,} x {reason}")
        for batch, damage in damages:
            self._console.print(f"  {batch[-outcome.SHORT :]}: {damage}", style="red")
        if (retry := self._wording.retry_failed) is not None:
            self._console.print(f"  output: {self._options.output}")
            if totals.failed and keeps_types(self._options.output):
                self._console.print(f"  {retry} asks the rows with an error again")
        cost = f", cost {totals.costs:,.6g}" if totals.costs else ""
        self._console.print(f"  tokens: {totals.tokens[0]:,} in, {totals.tokens[1]:,} out{cost}")
        return code
