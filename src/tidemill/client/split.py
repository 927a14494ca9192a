"""`tidemill run` of a file that no single batch can hold: many batches, but one output and one receipt."""

import asyncio
import shlex
import time
import uuid
from pathlib import Path
from typing import Final

import msgspec

from tidemill.client.digests import Digests
from tidemill.client.ending import Exit
from tidemill.client.flotilla import Flotilla
from tidemill.client.joint import join
from tidemill.client.journal import Job, Journal, Plan, Step
from tidemill.client.place import InputFault, Sink
from tidemill.client.plan import Bounds, cut
from tidemill.client.progress import display, duration
from tidemill.client.reconciliation import shown as told
from tidemill.client.service import Client, Unreachable
from tidemill.client.target import Target
from tidemill.schemas.batch import Receipt, Status
from tidemill.terminal import Console

EMBEDDINGS: Final = "/v1/embeddings"
PARALLEL: Final = 4
"""Batches at one time, unless another number is asked for."""
_ORDER: Final = (Exit.FAILED, Exit.INEXACT, Exit.EXPIRED, Exit.CANCELLED, Exit.SOME_FAILED)
"""What the whole run ends as: the first that any of its batches did."""


async def run(
    talk: Console,
    client: Client,
    target: Target,
    source: Path,
    sink: Sink,
    *,
    endpoint: str,
    window: str,
    bounds: Bounds,
    parallel: int,
) -> Exit:
    """Run a file as many batches; the same call after a crash goes on where that one was.

    Args:
        talk: Where all talk goes.
        client: The service.
        target: Its address.
        source: The file.
        sink: Where results go; stdout cannot be gone on with, so there must be a file.
        endpoint: What the lines ask for.
        window: How long each batch may take.
        bounds: What one batch may hold.
        parallel: How many batches run at one time.

    Raises:
        InputFault: The file is faulty, or the folder of the run is another run's.
        Unreachable: The service went away.
        Refused: The service does not do it.
    """
    if sink.output is None or sink.errors is None:
        raise InputFault(f"{source} is more than one batch holds: name the file for its results with -o")
    began = time.monotonic()
    with Journal(sink.output) as journal:
        job = await asyncio.to_thread(_job, source, target.base_url, endpoint, window)
        if (plan := journal.plan(job)) is None:
            talk.print(f"{source} is more than one batch holds; it is looked through first")
            plan = await asyncio.to_thread(_planned, job, source, bounds, journal)
        talk.print(
            f"{plan.lines:,} lines in {len(plan.pieces):,} batches, {parallel} at a time; see {journal.folder}"
        )
        try:
            with display(talk) as bars:
                await Flotilla(client, source, plan, journal, bars).run(parallel)
        except (asyncio.CancelledError, Unreachable):
            words = ["tidemill", "run", str(source), "-o", str(sink.output)]
            talk.print(
                f"What has begun goes on without you. The same command goes on with it: {shlex.join(words)} …"
            )
            raise
        steps = [journal.step(piece.number) for piece in plan.pieces]
        receipt = await asyncio.to_thread(_joined, plan, journal, sink)
        talk.print(
            f"{len(plan.pieces):,} batches over after {duration(time.monotonic() - began)}",
            style="green" if verdict(steps) is Exit.OK else "yellow",
        )
        _told(talk, steps, receipt, sink)
        journal.remove()
    return verdict(steps)


def verdict(steps: list[Step]) -> Exit:
    """How a run of these batches ends: as the worst of them."""
    ends = {_end(step) for step in steps}
    return next((end for end in _ORDER if end in ends), Exit.OK)


def _end(step: Step) -> Exit:
    match step.status:
        case Status.FAILED:
            return Exit.FAILED
        case _ if step.is_inexact:
            return Exit.INEXACT
        case Status.EXPIRED:
            return Exit.EXPIRED
        case Status.CANCELLED:
            return Exit.CANCELLED
        case _:
            return Exit.SOME_FAILED if step.failed else Exit.OK


def _job(source: Path, base_url: str, endpoint: str, window: str) -> Job:
    found = source.stat()
    return Job(
        source=str(source.resolve()),
        size=found.st_size,
        modified_ns=found.st_mtime_ns,
        base_url=base_url,
        endpoint=endpoint,
        window=window,
    )


def _planned(job: Job, source: Path, bounds: Bounds, journal: Journal) -> Plan:
    digests = Digests(journal.folder)
    try:
        plan = Plan(
            job=job,
            key=uuid.uuid4().hex,
            pieces=cut(source, bounds, digests, is_embedding=job.endpoint == EMBEDDINGS),
        )
    except InputFault:
        # Nothing was begun, so nothing is to be gone on with.
        journal.remove()
        raise
    digests.clear()
    journal.begin(plan)
    return plan


def _joined(plan: Plan, journal: Journal, sink: Sink) -> Receipt:
    """Put the results together. The ids of different pieces differ, so what holds for each piece holds for all."""
    assert sink.output is not None
    assert sink.errors is not None
    results = [journal.results(piece.number) for piece in plan.pieces]
    output = join((output for output, _ in results), sink.output)
    errors = join((errors for _, errors in results), sink.errors)
    there = sum(file.lines for file in (output, errors) if file)
    receipt = Receipt(lines=plan.lines, output=output, errors=errors, missing=max(0, plan.lines - there))
    if sink.receipt:
        batches = [journal.step(piece.number) for piece in plan.pieces]
        content = receipt.model_dump() | {
            "batches": [{"id": step.batch, "status": step.status, "lines": piece.lines}
                        for piece, step in zip(plan.pieces, batches, strict=True)]
        }  # fmt: skip
        sink.receipt.write_bytes(msgspec.json.format(msgspec.json.encode(content)) + b"\n")
    return receipt


def _told(talk: Console, steps: list[Step], receipt: Receipt, sink: Sink) -> None:
    """Say what came of it, and where it lies."""
    for step in steps:
        for fault in step.faults:
            talk.print(f"  {fault}", style="red")
    output, errors = (file.lines if file else 0 for file in (receipt.output, receipt.errors))
    talk.print(
        f"  {receipt.lines:,} lines in = {output:,} out + {errors:,} errors, {receipt.missing:,} missing, 0 double"
    )
    for name, path, file in (("output", sink.output, receipt.output), ("errors", sink.errors, receipt.errors)):
        if file:
            talk.print(f"  {name}: {path}, {told(file)}")
    read, written = (sum(step.tokens[side] for step in steps) for side in (0, 1))
    talk.print(f"  tokens: {read:,} in, {written:,} out")
