"""`tidemill run`: a file becomes one batch, or as many as it needs, with one output and one receipt."""

import asyncio
import hashlib
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from tidemill.client.exit_codes import Exit
from tidemill.client.http import Client, Refused, Unreachable
from tidemill.client.progress import display
from tidemill.client.runs import outcome
from tidemill.client.runs.batch_runner import BatchRunner
from tidemill.client.runs.joining import join
from tidemill.client.runs.journal import Job, Journal, Plan, folder_of
from tidemill.client.runs.outcome import End
from tidemill.client.runs.paths import InputFault, Sink, endpoint_of, size_of
from tidemill.client.runs.plan import Bounds, Piece, cut, fits
from tidemill.client.runs.reconciliation import shown
from tidemill.client.runs.unique_ids import UniqueIds
from tidemill.client.target import Target
from tidemill.schemas.resources.batch import FileReceipt, Receipt
from tidemill.terminal import Console

EMBEDDINGS: Final = "/v1/embeddings"
PARALLEL: Final = 4
"""Batches at one time, unless another number is asked for."""
STDIN: Final = "-"
NOT_FOUND: Final = 404


@dataclass(frozen=True, kw_only=True)
class Order:
    """How a file is to be run.

    Attributes:
        endpoint: What the lines ask for; None is read from the first line.
        window: How long each batch may take.
        metadata: Of each batch; `name` is what it is called.
        parallel: How many batches run at one time.
        again: Run it anew, whatever was begun.
        force: Overwrite files that are there.
        everything: Show every fault.
    """

    endpoint: str | None = None
    window: str = "24h"
    metadata: dict[str, str] = field(default_factory=dict)
    parallel: int = PARALLEL
    again: bool = False
    force: bool = False
    everything: bool = False


async def run(talk: Console, target: Target, source: Path, sink: Sink, order: Order) -> Exit:
    """Run a file to its end; the same call after a crash or Ctrl-C goes on where that one was.

    Args:
        talk: Where all talk goes.
        target: The service.
        source: The file; `-` is stdin.
        sink: Where results go.
        order: How.

    Raises:
        InputFault: The file is faulty, or a file would be overwritten.
        Unreachable: The service went away.
        Refused: The service does not do it.
    """
    with _readable(source) as (path, name):
        sink = sink.checked(path)
        job = Job(
            endpoint=order.endpoint or endpoint_of(path),
            sha256=await asyncio.to_thread(_sha256, path),
            base_url=target.base_url,
            window=order.window,
            metadata=tuple(sorted(order.metadata.items())),
        )
        async with Client(target.base_url, target.api_key) as client:
            with Journal(folder_of(sink.output, job, os.environ)) as journal:
                if not order.force and (order.again or not journal.delivers):
                    sink.check_new()
                if order.again:
                    journal.forget()
                plan = journal.plan(job)
                if plan is None:
                    plan = await _planned(talk, client, job, path, journal)
                else:
                    talk.print(f"{name} was begun before, and this goes on with it; --again runs it anew.")
                return await _run(talk, BatchRunner(client, path, name, plan, journal), sink, order)


async def _run(talk: Console, fleet: BatchRunner, sink: Sink, order: Order) -> Exit:
    plan, journal = fleet.plan, fleet.journal
    try:
        with display(talk) as bars:
            await fleet.run(bars, order.parallel)
    except (asyncio.CancelledError, Unreachable):
        how = "goes on without you" if journal.has_batches else "was broken off before there was a batch"
        talk.print(f"{fleet.name} {how}. The same command goes on with it.")
        raise
    except Refused as error:
        if not journal.has_batches:
            journal.forget()
        elif error.status == NOT_FOUND:
            raise InputFault(f"{error} What was begun is not there any more: --again runs it anew.") from error
        raise
    ends = fleet.ends
    if not (order.force or journal.delivers):
        # They may have come since, and are not this run's.
        sink.check_new()
    journal.deliver()
    receipt = await asyncio.to_thread(_delivered, plan, journal, sink, ends)
    name = fleet.name if len(ends) > 1 else f"{fleet.name} ({ends[0].batch[-outcome.SHORT :]})"
    code = outcome.summary(talk, name, ends, _told(ends, receipt, sink), everything=order.everything)
    journal.remove()
    return code


@contextmanager
def _readable(source: Path) -> Iterator[tuple[Path, str]]:
    """A file that can be read as often as need be, and its name; what a pipe has is kept in one for the time."""
    is_stdin = str(source) == STDIN
    if not is_stdin and not source.is_fifo():
        yield source, source.name
        return
    with tempfile.NamedTemporaryFile(prefix="tidemill-", suffix=".jsonl") as file:
        with open(0 if is_stdin else source, "rb", closefd=not is_stdin) as pipe:
            shutil.copyfileobj(pipe, file, 1 << 20)
        file.flush()
        yield Path(file.name), "stdin" if is_stdin else source.name


def _sha256(source: Path) -> str:
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def _planned(talk: Console, client: Client, job: Job, source: Path, journal: Journal) -> Plan:
    bounds = await client.limits()
    is_embedding = job.endpoint == EMBEDDINGS
    if await asyncio.to_thread(fits, source, bounds, is_embedding=is_embedding):
        # The service looks through it, and names all of its faults.
        pieces = [Piece(number=0, start=0, end=size_of(source), lines=0, line=1)]
    else:
        talk.print(f"{source} is more than one batch holds; it is looked through first")
        pieces = await asyncio.to_thread(_cut, source, bounds, journal, is_embedding=is_embedding)
        talk.print(
            f"{sum(piece.lines for piece in pieces):,} lines in {len(pieces):,} batches; see {journal.folder}"
        )
    plan = Plan(job=job, key=uuid.uuid4().hex, pieces=pieces)
    journal.begin(plan)
    return plan


def _cut(source: Path, bounds: Bounds, journal: Journal, *, is_embedding: bool) -> list[Piece]:
    digests = UniqueIds(journal.folder)
    try:
        return cut(source, bounds, digests, is_embedding=is_embedding)
    finally:
        digests.clear()


def _delivered(plan: Plan, journal: Journal, sink: Sink, ends: list[End]) -> Receipt | None:
    """Put the results together. The ids of different pieces differ, so what holds for each piece holds for all.

    Returns:
        The receipt over all; None where no line was run.
    """
    results = [journal.results(piece.number) for piece in plan.pieces]
    outputs, failures = ([pair[side] for pair in results] for side in (0, 1))
    output = join(outputs, sink.output or journal.folder / "output.jsonl")
    errors = join(failures, sink.errors or journal.folder / "errors.jsonl")
    if sink.output is None and output:
        _print(journal.folder / "output.jsonl")
    there = sum(file.lines for file in (output, errors) if file)
    lines = plan.lines or ends[0].total
    if not there and not lines:
        return None
    receipt = Receipt(lines=lines, output=output, errors=errors, missing=max(0, lines - there))
    if sink.receipt:
        batches = [{"id": end.batch, "status": end.status, "lines": end.total} for end in ends]
        content = receipt.model_dump() | {"batches": batches}
        sink.receipt.write_bytes(msgspec.json.format(msgspec.json.encode(content)) + b"\n")
    return receipt


def _print(output: Path) -> None:
    with output.open("rb") as file:
        shutil.copyfileobj(file, sys.stdout.buffer, 1 << 20)
    sys.stdout.flush()


def _told(ends: list[End], receipt: Receipt | None, sink: Sink) -> list[str]:
    """What was checked, and where it lies."""
    if receipt is None:
        return []
    output, errors = (file.lines if file else 0 for file in (receipt.output, receipt.errors))
    balance = f"in = {output:,} out + {errors:,} errors, {receipt.missing:,} missing, 0 double"
    # The balance would contradict what the summary says of damaged results.
    checked = [] if any(end.damage for end in ends) else [f"{outcome.lines_of(receipt.lines)} {balance}"]
    files = (("output", sink.output, receipt.output), ("errors", sink.errors, receipt.errors))
    places = [_place(name, path, file) for name, path, file in files if file and (path or name == "errors")]
    kept = [f"receipt: {sink.receipt}"] if sink.receipt else []
    return [*checked, *places, *kept]


def _place(name: str, path: Path | None, file: FileReceipt) -> str:
    return f"{name}: {path}, {shown(file)}" if path else f"{name}: {shown(file)}; --errors FILE keeps them"
