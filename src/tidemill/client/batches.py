"""The commands `watch`, `list`, `cancel` and `verify`: a batch from the outside.

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

from tidemill.client.exit_codes import Exit
from tidemill.client.http import Client, Refused, Unreachable
from tidemill.client.progress import display
from tidemill.client.runs.delivery import delivered
from tidemill.client.runs.outcome import SHORT, end_of, name_of, style_of, summary
from tidemill.client.runs.paths import InputFault, Sink
from tidemill.client.runs.reconciliation import Damaged, reconcile
from tidemill.client.target import NoTarget, Target, find
from tidemill.schemas.resources.batch import Batch, Status
from tidemill.terminal import Console, show_table

NAME_CHARS_MAX = 20
MODEL_CHARS_MAX = 16
STATUS_CHARS_MAX = 12
"""Of a row of the list."""


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
    except BrokenPipeError:
        # Whoever read the results has gone; without this the interpreter complains once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.DETACHED
    except (InputFault, Refused, Unreachable, ValidationError, OSError) as error:
        talk.print(f"tidemill: {_why(error)}", style="red")
        return Exit.UNREACHABLE if isinstance(error, Unreachable | ValidationError) else Exit.USAGE


def _why(error: Exception) -> str:
    if isinstance(error, ValidationError):
        fault = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, fault["loc"]))
        return f"the service does not speak the Batch API: {place}: {fault['msg']}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


async def watch(
    talk: Console,
    target: Target,
    batch_id: str,
    sink: Sink,
    source: Path | None = None,
    *,
    force: bool = False,
    everything: bool = False,
) -> Exit:
    """Follow a batch to its end; with a place for its results, fetch and check them."""
    sink = sink.checked(source, force=force)
    async with Client(target.base_url, target.api_key) as client:
        found, wants = await client.find(batch_id), sink.output is not None
        return await followed(talk, client, found, sink, source, wants=wants, force=force, everything=everything)


async def cancel(talk: Console, target: Target, batch_id: str) -> Exit:
    """Ask for a batch to be cancelled; what it has done by then is kept."""
    async with Client(target.base_url, target.api_key) as client:
        batch = await client.cancel(await client.find(batch_id))
    hint = f"`tidemill watch {batch.id[-SHORT:]} -o out.jsonl`"
    talk.print(f"{name_of(batch)} is {batch.status}. Its results so far: {hint}")
    return Exit.OK


async def delete(talk: Console, target: Target, batch_id: str) -> Exit:
    """Delete a batch that is over, with its results."""
    async with Client(target.base_url, target.api_key) as client:
        found = await client.find(batch_id)
        await client.delete(f"/batches/{found}")
    talk.print(f"{found} is deleted, with its results")
    return Exit.OK


async def show(target: Target, *, limit: int, as_json: bool) -> Exit:
    """Print the newest batches on stdout, as a table or as one JSON object a line."""
    table = Table("batch", "name", "status", "succeeded", "model", "created", box=None, padding=(0, 1, 0, 0))
    async with Client(target.base_url, target.api_key) as client:
        async for batch in client.batches(limit=limit):
            if as_json:
                sys.stdout.write(batch.model_dump_json() + "\n")
                continue
            table.add_row(*_row(batch))
    if not as_json:
        show_table(table)
    return Exit.OK


def _row(batch: Batch) -> list[Text]:
    """A batch in 79 columns."""
    counts = batch.request_counts
    is_over = batch.status.is_terminal
    ok = batch.status is Status.COMPLETED
    style = style_of(completed=counts.completed, failed=counts.failed, ok=ok) if is_over else ""
    created = time.localtime(batch.created_at)
    is_today = created[:3] == time.localtime()[:3]
    return [
        Text(batch.id[-SHORT:]),
        Text(_cut(batch.tidemill.name or "", NAME_CHARS_MAX)),
        Text(_status(batch), style),
        Text(f"{counts.completed:,}/{counts.total:,}", style),
        Text(_cut(batch.model or "", MODEL_CHARS_MAX)),
        Text(time.strftime("%H:%M" if is_today else "%m-%d", created)),
    ]


def _status(batch: Batch) -> str:
    """What most of its lines wait for, if they do, else its status."""
    waiting = () if batch.status.is_terminal else batch.tidemill.waiting
    if not waiting:
        return str(batch.status)
    return waiting[0].reason.removeprefix("server_").replace("_", " ")[:STATUS_CHARS_MAX]


def _cut(text: str, chars_max: int) -> str:
    """The text, or its end where it is too long: names differ there."""
    return text if len(text) <= chars_max else f"…{text[1 - chars_max :]}"


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
    talk: Console,
    client: Client,
    batch_id: str,
    sink: Sink,
    source: Path | None,
    *,
    wants: bool,
    force: bool,
    everything: bool,
) -> Exit:
    """Follow a batch to its end, fetch and check its results where they are wanted, and say what came of it.

    Raises:
        InputFault: A file has come meanwhile that would be overwritten.
    """
    try:
        with display(talk) as shown:

            def seen(batch: Batch) -> None:
                shown.lines(name_of(batch), str(batch.status), batch.request_counts)
                shown.waits(batch.tidemill.waiting)

            batch = await client.terminal(batch_id, seen)
            if wants and not force:
                sink.check_new()
            done = await delivered(client, batch, sink, source, shown) if wants else None
            report = await client.errors(batch)
    except (asyncio.CancelledError, Unreachable):
        talk.print(f"It goes on without you. To see it again: `{_again(batch_id, sink, source)}`")
        raise
    except InputFault:
        talk.print(f"Its results stay at the service. To fetch them: `{_again(batch_id, sink, source)}`")
        raise
    end = end_of(batch, report, done.faults if done else ())
    return summary(talk, name_of(batch), [end], done.told if done else (), everything=everything)


def _again(batch_id: str, sink: Sink, source: Path | None) -> str:
    words = ["tidemill", "watch", batch_id[-SHORT:]]
    words += ["--input", str(source)] if source else []
    words += ["-o", str(sink.output)] if sink.output else []
    return shlex.join(words)
