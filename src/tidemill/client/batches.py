"""The commands `watch`, `list`, `cancel`, `delete` and `verify`.

Results go to stdout or a file, everything else to stderr. Ctrl-C never cancels a batch.
"""

import asyncio
import functools
import shlex
import time
import webbrowser
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from rich.console import RenderableType
from rich.text import Text

from tidemill.client import listing
from tidemill.client.errors import Exit, OtherService, Refused, Unreachable, UsageError, message
from tidemill.client.http.answer import Answer
from tidemill.client.http.client import BATCHES, Client
from tidemill.client.progress import display
from tidemill.client.runs import outcome
from tidemill.client.runs.delivery import deliver
from tidemill.client.runs.outcome import SHORT, name_of, style_of, summary
from tidemill.client.runs.paths import Sink
from tidemill.client.runs.reconciliation import Damaged, reconcile
from tidemill.schemas.resources.batch import Batch, Status
from tidemill.terminal import Console, for_people, say, shortened, tabulated, words
from tidemill.wording import counted

COLUMNS = ("batch", words("name"), words("status"), "succeeded", words("model"), "created")
INPUT_ENDS = {
    "deleted": "Deleted its input file.",
    "shared": "Its input file stays: another batch has it.",
    "gone": "Its input file is gone.",
}
"""What became of the input of a deleted batch."""
NAME_CHARS_MAX = 20
MODEL_CHARS_MAX = 16
STATUS_CHARS_MAX = 12
"""Widths of columns of the list."""


async def watch(
    console: Console,
    client: Client,
    batch_id: str,
    sink: Sink,
    source: Path | None = None,
    *,
    show_all: bool = False,
) -> Exit:
    """Follow a batch to its end; with an output path, download and check its results."""
    if sink.output is None and (sink.errors or sink.receipt or source):
        raise UsageError("--errors, --receipt and --input need -o: without it no results are downloaded")
    sink = sink.checked(source)
    sink.check_new()
    found = await client.find(batch_id)
    return await follow(console, client, found, sink if sink.output else None, source, show_all=show_all)


async def cancel(console: Console, client: Client, batch_id: str) -> Exit:
    """Cancel a batch; finished lines keep their results."""
    batch = await client.cancel(await client.find(batch_id))
    hint = f"`tidemill watch {batch.id[-SHORT:]} -o out.jsonl`"
    console.print(f"{name_of(batch)} is {batch.status}. To download its results: {hint}")
    return Exit.OK


async def delete(console: Console, client: Client, batch_id: str, *, takes_input: bool = False) -> Exit:
    """Delete a finished batch and its results, and with `takes_input` its input."""
    found = await client.find(batch_id)
    options = {"params": {"input": "true"}} if takes_input else {}
    try:
        answer = await client.send_retrying("DELETE", f"/batches/{found}", **options)
    except (asyncio.CancelledError, Unreachable):
        # The list, which completes short ids, leaves out deleted batches.
        command = ["tidemill", "delete", *(["--input"] if takes_input else []), found]
        console.print(f"It may be deleted. To make sure: `{shlex.join(command)}`")
        raise
    console.print(f"Deleted {found} and its results.")
    if takes_input:
        end = answer["input_file"]
        console.print(INPUT_ENDS.get(end, f"Its input is {end}."))
    return Exit.OK


async def show(
    client: Client,
    params: Mapping[str, str] = MappingProxyType({}),
    *,
    limit: int,
    as_json: bool,
    watch: bool = False,
) -> Exit:
    """Print the newest batches that a query names on stdout, as a table or as JSON lines.

    `watch` follows them on the terminal.
    """
    if watch:
        return await listing.follow(lambda width: newest(client, limit, width, params))
    return await listing.show(client, BATCHES, params, COLUMNS, _row, limit=limit, as_json=as_json)


async def newest(
    client: Client, limit: int, width: int, params: Mapping[str, str] = MappingProxyType({})
) -> RenderableType:
    """The newest batches that a query names, as a table of this width."""
    return tabulated(COLUMNS, [_row(found) async for found in client.pages(BATCHES, params, limit=limit)], width)


async def open_page(client: Client, batch_id: str) -> Exit:
    """Print the address of a batch in the dashboard, and on a terminal open it in the browser."""
    batch = await client.batch(await client.find(batch_id))
    address = f"{client.base_url.removesuffix('/v1')}/dashboard/#/batches/{batch.id}"
    say(address)
    if for_people():
        webbrowser.open(address)
    return Exit.OK


def _row(found: Answer) -> list[Text]:
    """A batch in 79 columns; names and the status wrap in fewer."""
    batch = found.read(Batch)
    counts = batch.request_counts
    is_final = batch.status.is_terminal
    ok = batch.status is Status.COMPLETED
    style = style_of(completed=counts.completed, failed=counts.failed, ok=ok) if is_final else ""
    created = time.localtime(batch.created_at)
    is_today = created[:3] == time.localtime()[:3]
    return [
        Text(batch.id[-SHORT:]),
        Text(shortened(batch.tidemill.name or "", NAME_CHARS_MAX)),
        Text(_status(batch), style),
        Text(f"{counts.completed:,}/{counts.total:,}", style),
        Text(shortened(_model(batch), MODEL_CHARS_MAX)),
        Text(time.strftime("%H:%M" if is_today else "%m-%d", created)),
    ]


def _model(batch: Batch) -> str:
    models = batch.tidemill.models
    return counted(len(models), "model") if models else batch.model or ""


def _status(batch: Batch) -> str:
    """Why most of its lines wait, if they do, else its status; a failed batch is one whose input was rejected."""
    waiting = () if batch.status.is_terminal else batch.tidemill.waiting
    if not waiting:
        return "rejected" if batch.status is Status.FAILED else str(batch.status)
    return waiting[0].reason.removeprefix("server_").replace("_", " ")[:STATUS_CHARS_MAX]


def verify(console: Console, source: Path, output: Path | None, errors: Path | None) -> Exit:
    """Check files offline: every input line has exactly one result line."""
    try:
        found = reconcile(source, output, errors)
    except (Damaged, OSError) as error:
        console.print(f"tidemill: {message(error)}", style="red")
        return Exit.INEXACT if isinstance(error, Damaged) else Exit.USAGE
    console.print(found.sentence())
    if found.is_exact:
        return Exit.OK
    console.print(f"for example {', '.join(name for name in found.examples)}", style="red")
    return Exit.INEXACT


async def follow(
    console: Console,
    client: Client,
    batch_id: str,
    sink: Sink | None,
    source: Path | None,
    *,
    show_all: bool,
) -> Exit:
    """Follow a batch to its end, download and check its results, and print a summary.

    Without a sink it downloads nothing; with the input as `source`, it checks the results against that too.

    Raises:
        UsageError: An output file appeared meanwhile.
    """
    has_ended = False
    try:
        with display(console) as progress:
            batch = await client.finished(batch_id, functools.partial(outcome.show, progress))
            has_ended = True
            if sink:
                sink.check_new()
            result, notes = await deliver(client, batch, sink, source, progress)
    except OtherService:
        raise
    except (asyncio.CancelledError, Unreachable):
        if has_ended:
            _say_kept(console, batch_id, sink, source)
        else:
            console.print(f"The batch keeps running. To follow it: `{_watch_command(batch_id, sink, source)}`")
        raise
    except Refused as error:
        if error.code == "file_damaged":
            console.print(f"On its machine, `tidemill rebuild {batch_id} --write` makes the file again.")
        raise
    except UsageError:
        _say_kept(console, batch_id, sink, source)
        raise
    return summary(console, name_of(batch), [result], notes, show_all=show_all)


def _say_kept(console: Console, batch_id: str, sink: Sink | None, source: Path | None) -> None:
    command = _watch_command(batch_id, sink, source)
    console.print(f"The service keeps the results. To download them: `{command}`")


def _watch_command(batch_id: str, sink: Sink | None, source: Path | None) -> str:
    words = ["tidemill", "watch", batch_id[-SHORT:]]
    words += ["--input", str(source)] if source else []
    words += ["-o", str(sink.output)] if sink and sink.output else []
    return shlex.join(words)
