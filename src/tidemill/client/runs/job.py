"""`tidemill run`: runs a file as one or several batches, with one output and one receipt."""

import asyncio
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Final

import msgspec

from tidemill.client.errors import Exit, OtherService, Refused, Unreachable, UsageError
from tidemill.client.files import join, sha256_of
from tidemill.client.http.client import Client
from tidemill.client.progress import display
from tidemill.client.runs import outcome
from tidemill.client.runs.batch_runner import BatchRunner
from tidemill.client.runs.delivery import copy_to_stdout, places
from tidemill.client.runs.journal import Job, Journal, Plan, folder_of
from tidemill.client.runs.outcome import BatchResult
from tidemill.client.runs.paths import Sink, endpoint_of, size_of
from tidemill.client.runs.plan import Shard, cut, fits
from tidemill.schemas.resources.batch import Receipt
from tidemill.terminal import Console
from tidemill.wording import counted

PARALLEL: Final = 4
"""Default number of concurrent batches."""
STDIN: Final = "-"


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of `run`.

    Attributes:
        endpoint: Endpoint of the lines; None takes that of the first line.
        window: Completion window of each batch; None takes the usual one of the service.
        dedupe: Which equal lines of a batch are asked once; None leaves it to the service.
        callback: URL that the service calls at the end of each batch; None for none.
        output_uri: Folder of a bucket that the service copies the results of each batch to; None for none.
        output_format: Format of these copies; None is the usual one.
        metadata: Metadata of each batch; `name` is its name.
        parallel: Number of concurrent batches.
        again: Start over instead of resuming.
        show_all: Show every error.
    """

    endpoint: str | None = None
    window: str | None = None
    dedupe: str | None = None
    callback: str | None = None
    output_uri: str | None = None
    output_format: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    parallel: int = PARALLEL
    again: bool = False
    show_all: bool = False

    def __post_init__(self) -> None:
        if self.parallel < 1:
            raise UsageError(f"parallel must be at least 1, and is {self.parallel}")


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A run that has come to its end.

    Attributes:
        name: The run in messages.
        sink: Paths of the results.
        results: Results of its batches, in the order of the input.
        receipt: The receipt of the whole; None if no line ran.
    """

    name: str
    sink: Sink
    results: list[BatchResult]
    receipt: Receipt | None


async def run(console: Console, client: Client, source: Path, sink: Sink, options: RunOptions) -> Exit:
    """Run a file as `finish` does, and print a summary."""
    finished = await finish(console, client, source, sink, options)
    notes = _notes(finished.results, finished.receipt, finished.sink)
    return outcome.summary(console, finished.name, finished.results, notes, show_all=options.show_all)


async def finish(console: Console, client: Client, source: Path, sink: Sink, options: RunOptions) -> Finished:
    """Run a file, or stdin (`-`), to its end; after a crash or Ctrl-C the same call resumes.

    Raises:
        UsageError: The file is faulty, or a file would be overwritten.
        Unreachable: The service went away.
        Refused: The service rejected a request.
    """
    with readable(source) as (path, name):
        sink = sink.checked(path)
        shown = source if path == source else name
        job = Job(
            endpoint=options.endpoint or endpoint_of(path, shown),
            sha256=await asyncio.to_thread(sha256_of, path),
            base_url=client.base_url,
            window=options.window,
            dedupe=options.dedupe,
            callback=options.callback,
            output_uri=options.output_uri,
            output_format=options.output_format,
            metadata=tuple(sorted(options.metadata.items())),
        )
        with Journal(folder_of(sink.output, job, os.environ), client.wording) as journal:
            if options.again or not journal.delivers:
                sink.check_new()
            if options.again:
                journal.forget()
            plan = journal.plan(job)
            if plan is None:
                plan = await _planned(console, client, job, (path, shown), journal)
            else:
                console.print(f"Resuming {name}; {client.wording.again} starts over.")
            return await _run(console, BatchRunner(client, path, name, plan, journal), sink, options)


async def _run(console: Console, runner: BatchRunner, sink: Sink, options: RunOptions) -> Finished:
    plan, journal = runner.plan, runner.journal
    try:
        with display(console) as progress:
            await runner.run(progress, options.parallel)
    except (asyncio.CancelledError, Unreachable):
        state = "keeps running" if journal.has_batches else "was interrupted before its batch was created"
        same = f"The same {sink.wording.call} resumes it."
        console.print(f"{runner.name} {state}. {same}{_ending(journal.running)}")
        raise
    except (Refused, OtherService) as error:
        if not journal.has_batches:
            journal.forget()
            raise
        if isinstance(error, Refused) and error.status == HTTPStatus.NOT_FOUND:
            step = f"The service no longer has this run: {sink.wording.again} starts over."
            raise UsageError(f"{error} {step}") from error
        console.print(f"{runner.name} may have a batch at the service. The same {sink.wording.call} looks for it.")
        raise
    results = runner.results
    if not journal.delivers:
        # A file that appeared during the run is not this run's.
        sink.check_new()
    journal.deliver()
    receipt = await asyncio.to_thread(_deliver, plan, journal, sink, results)
    name = runner.name if len(results) > 1 else f"{runner.name} ({results[0].batch[-outcome.SHORT :]})"
    journal.remove()
    return Finished(name=name, sink=sink, results=results, receipt=receipt)


def _ending(batches: list[str]) -> str:
    """How to end the batches of an interrupted run."""
    if len(batches) == 1:
        return f" `tidemill cancel {batches[0][-outcome.SHORT :]}` ends it."
    return " `tidemill list` shows its batches, and `tidemill cancel` ends one." if batches else ""


@contextmanager
def readable(source: Path) -> Iterator[tuple[Path, str]]:
    """The file and its name; a pipe is copied into a temporary file, since a run reads its input several times."""
    is_stdin = str(source) == STDIN
    if not is_stdin and not source.is_fifo():
        yield source, source.name
        return
    with tempfile.NamedTemporaryFile(prefix="tidemill-", suffix=".jsonl") as file:
        with open(0 if is_stdin else source, "rb", closefd=not is_stdin) as pipe:
            shutil.copyfileobj(pipe, file, 1 << 20)
        file.flush()
        yield Path(file.name), "stdin" if is_stdin else source.name


async def _planned(
    console: Console, client: Client, job: Job, named: tuple[Path, object], journal: Journal
) -> Plan:
    source, name = named
    bounds = await client.limits()
    if await asyncio.to_thread(fits, source, bounds, endpoint=job.endpoint):
        # The service validates it and reports all faults.
        shards = [Shard(number=0, start=0, end=size_of(source), lines=0, line=1)]
    else:
        console.print(f"{name} exceeds one batch; checking all lines first")
        shards = await asyncio.to_thread(cut, source, bounds, endpoint=job.endpoint, name=name)
        console.print(
            f"{counted(sum(shard.lines for shard in shards), 'line')} in {counted(len(shards), 'batch')}; "
            f"journal: {journal.folder}"
        )
    plan = Plan(job=job, window=job.window or bounds.usual_window, key=uuid.uuid4().hex, shards=shards)
    journal.start(plan)
    return plan


def _deliver(plan: Plan, journal: Journal, sink: Sink, results: list[BatchResult]) -> Receipt | None:
    """Join the results of all shards. Their ids differ, so checks of each shard hold for the whole.

    Returns:
        The receipt of the whole; None if no line ran.
    """
    files = [journal.results(shard.number) for shard in plan.shards]
    outputs, failures = ([pair[side] for pair in files] for side in (0, 1))
    output = join(outputs, sink.output or journal.folder / "output.jsonl")
    errors = join(failures, sink.errors or journal.folder / "errors.jsonl")
    if sink.output is None and output:
        copy_to_stdout(journal.folder / "output.jsonl")
    written = sum(file.lines for file in (output, errors) if file)
    lines = plan.lines or results[0].total
    if not written and not lines:
        return None
    receipt = Receipt(
        lines=lines,
        output=output,
        errors=errors,
        missing=max(0, lines - written),
        copies=sum(result.copies for result in results),
    )
    if sink.receipt:
        batches = [{"id": result.batch, "status": result.status, "lines": result.total} for result in results]
        content = receipt.model_dump() | {"batches": batches}
        sink.receipt.write_bytes(msgspec.json.format(msgspec.json.encode(content)) + b"\n")
    return receipt


def _notes(results: list[BatchResult], receipt: Receipt | None, sink: Sink) -> list[str]:
    """Lines for the summary: the balance and the paths of the files."""
    if receipt is None:
        return []
    output, errors = (file.lines if file else 0 for file in (receipt.output, receipt.errors))
    balance = f"in = {output:,} out + {counted(errors, 'error')}, {receipt.missing:,} missing, 0 duplicate"
    if receipt.copies:
        balance += f"; {receipt.copies:,} have the answer to an equal line"
    # For damaged results the summary lists the faults instead.
    checked = [] if any(result.damage for result in results) else [f"{counted(receipt.lines, 'line')} {balance}"]
    kept = [f"receipt: {sink.receipt}"] if sink.receipt else []
    return [*checked, *places(sink, receipt.output, receipt.errors), *kept]
