"""The commands `run`, `watch`, `list`, `cancel` and `verify`: a batch from the outside.

Results go to stdout or to a file, all talk to stderr. Leaving (Ctrl-C) never cancels a batch.
"""

import asyncio
import os
import shlex
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.table import Table
from rich.text import Text

from tidemill.client import split
from tidemill.client.delivery import Delivery, delivered
from tidemill.client.ending import Exit
from tidemill.client.place import InputFault, Sink, endpoint_of, size_of
from tidemill.client.plan import fits
from tidemill.client.progress import Display, display, duration
from tidemill.client.reconciliation import Damaged, reconcile
from tidemill.client.service import Client, Refused, Unreachable
from tidemill.client.target import NoTarget, Target, find
from tidemill.schemas.batch import Batch, Status
from tidemill.terminal import Console, show_table

POLL_SECONDS_MIN = 0.1
POLL_SECONDS_MAX = 1.0
POLL_GROWTH = 1.3


def found(talk: Console, **options: Any) -> Target:
    """Find the service (see `tidemill.client.target.find`), or end with a sentence about what is missing."""
    try:
        return find(**options)
    except NoTarget as error:
        talk.print(f"tidemill: {error}", style="red")
        raise SystemExit(Exit.USAGE) from error


def ended(talk: Console, command: Coroutine[Any, Any, Exit]) -> Exit:
    """Run a command to its end, and say in one line why it could not go on, if so."""
    try:
        return asyncio.run(command)
    except KeyboardInterrupt:
        return Exit.DETACHED
    except (InputFault, Refused) as error:
        talk.print(f"tidemill: {error}", style="red")
        return Exit.USAGE
    except Unreachable as error:
        talk.print(f"tidemill: {error}", style="red")
        return Exit.UNREACHABLE
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, fault["loc"]))
        talk.print(f"tidemill: the service does not speak the Batch API: {place}: {fault['msg']}", style="red")
        return Exit.UNREACHABLE
    except BrokenPipeError:
        # Whoever read the results has gone; without this the interpreter complains once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.DETACHED


async def run(
    talk: Console,
    target: Target,
    source: Path,
    sink: Sink,
    *,
    endpoint: str | None,
    window: str,
    parallel: int = split.PARALLEL,
) -> Exit:
    """Upload a file, make a batch of it, follow it to its end, fetch and check what it brought.

    A file that is more than one batch holds is run as many; see `tidemill.client.split`.
    """
    sink = sink.checked(source)
    read = endpoint_of(source)
    asked = endpoint or read
    async with Client(target.base_url, target.api_key) as client:
        bounds = await client.limits()
        if not await asyncio.to_thread(fits, source, bounds, is_embedding=asked == split.EMBEDDINGS):
            return await split.run(
                talk, client, target, source, sink, endpoint=asked, window=window, bounds=bounds, parallel=parallel
            )
        try:
            with display(talk) as shown:
                shown.transfer("upload", size_of(source))
                file_id = await client.upload(source, shown.moved)
                batch = await client.create(file_id, asked, window)
        except asyncio.CancelledError:
            talk.print("broken off before there was a batch")
            raise
        return await followed(talk, client, batch.id, sink, source, wants_results=True)


async def watch(talk: Console, target: Target, batch_id: str, sink: Sink, source: Path | None) -> Exit:
    """Follow a batch to its end; with a place for its results, fetch and check them."""
    sink = sink.checked(source)
    async with Client(target.base_url, target.api_key) as client:
        return await followed(talk, client, batch_id, sink, source, wants_results=sink.output is not None)


async def cancel(talk: Console, target: Target, batch_id: str) -> Exit:
    """Ask for a batch to be cancelled; what it has done by then is kept."""
    async with Client(target.base_url, target.api_key) as client:
        batch = await client.cancel(batch_id)
    talk.print(f"{batch.id} is {batch.status}. Its results so far: tidemill watch {batch.id} -o out.jsonl")
    return Exit.OK


async def delete(talk: Console, target: Target, batch_id: str) -> Exit:
    """Delete a batch that is over, with its results."""
    async with Client(target.base_url, target.api_key) as client:
        await client.delete(f"/batches/{batch_id}")
    talk.print(f"{batch_id} is deleted, with its results")
    return Exit.OK


async def show(target: Target, *, limit: int, as_json: bool) -> Exit:
    """Print the newest batches on stdout, as a table or as one JSON object a line."""
    table = Table("batch", "status", "lines", "done", "failed", "model", "created", box=None)
    async with Client(target.base_url, target.api_key) as client:
        async for batch in client.batches(limit=limit):
            if as_json:
                sys.stdout.write(batch.model_dump_json() + "\n")
                continue
            counts = batch.request_counts
            created = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(batch.created_at))
            numbers = (f"{number:,}" for number in (counts.total, counts.completed, counts.failed))
            cells = (batch.id, str(batch.status), *numbers, batch.model or "", created)
            table.add_row(*map(Text, cells))
    if not as_json:
        show_table(table)
    return Exit.OK


def verify(talk: Console, source: Path, output: Path | None, errors: Path | None) -> Exit:
    """Check files against each other, without a service: each input line has exactly one result line."""
    try:
        found = reconcile(source, output, errors)
    except (Damaged, OSError) as error:
        talk.print(f"tidemill: {error}", style="red")
        return Exit.INEXACT if isinstance(error, Damaged) else Exit.USAGE
    talk.print(found.sentence())
    if found.is_exact:
        return Exit.OK
    talk.print(f"for example {', '.join(name for name in found.examples)}", style="red")
    return Exit.INEXACT


async def followed(
    talk: Console, client: Client, batch_id: str, sink: Sink, source: Path | None, *, wants_results: bool
) -> Exit:
    """Follow a batch to its end, fetch and check its results where they are wanted, and say what came of it."""
    began = time.monotonic()
    try:
        with display(talk) as shown:
            batch = await _terminal(client, batch_id, shown)
            done = await delivered(client, batch, sink, source, shown) if wants_results else None
    except (asyncio.CancelledError, Unreachable):
        talk.print(f"{batch_id} goes on without you. To see it again: {_again(batch_id, sink, source)}")
        raise
    return _summary(talk, batch, done, time.monotonic() - began)


async def _terminal(client: Client, batch_id: str, shown: Display) -> Batch:
    """Look again and again until nothing changes any more; the deadline of the batch is the bound."""
    pause = POLL_SECONDS_MIN
    while True:
        batch = await client.batch(batch_id)
        shown.batch(batch)
        if batch.status.is_terminal:
            return batch
        await asyncio.sleep(pause)
        pause = min(POLL_SECONDS_MAX, pause * POLL_GROWTH)


def _again(batch_id: str, sink: Sink, source: Path | None) -> str:
    words = ["tidemill", "watch", batch_id]
    words += ["--input", str(source)] if source else []
    words += ["-o", str(sink.output)] if sink.output else []
    return shlex.join(words)


def verdict(batch: Batch, done: Delivery | None) -> Exit:
    """The exit code of a batch that has ended."""
    match batch.status:
        case Status.FAILED:
            return Exit.FAILED
        case _ if done and done.faults:
            return Exit.INEXACT
        case Status.EXPIRED:
            return Exit.EXPIRED
        case Status.CANCELLED:
            return Exit.CANCELLED
        case _:
            return Exit.SOME_FAILED if batch.request_counts.failed else Exit.OK


def _summary(talk: Console, batch: Batch, done: Delivery | None, seconds: float) -> Exit:
    code = verdict(batch, done)
    talk.print(
        f"{batch.id} {batch.status} after {duration(seconds)}", style="green" if code is Exit.OK else "yellow"
    )
    for fault in batch.errors.data if batch.errors else ():
        place = f"line {fault.line}" if fault.line is not None else "file"
        param = f" ({fault.param})" if fault.param else ""
        talk.print(f"  {place}{param}: {fault.message} [{fault.code}]")
    for line in done.told if done else ():
        talk.print(f"  {line}")
    for line in done.faults if done else ():
        talk.print(f"  {line}", style="red")
    if batch.usage:
        usage = batch.usage
        talk.print(f"  tokens: {usage.input_tokens:,} in, {usage.output_tokens:,} out")
    return code
