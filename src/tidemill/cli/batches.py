"""The commands of batches: `watch`, `list`, `open`, `begin`, `append`, `seal`, `cancel`, `delete` and `verify`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from tidemill.cli.invocation import Work, client_command
from tidemill.cli.options import AsJson, BatchId, ResultOptions


@dataclass(frozen=True, kw_only=True)
class WatchOptions(ResultOptions):
    """As for a new batch, but without a path nothing is downloaded."""

    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Download results here; by default not at all.")
    ] = None


@client_command
def watch(
    batch: BatchId,
    source: Annotated[Path | None, typer.Option("--input", help="Check the results against this input.")] = None,
    *,
    results: WatchOptions,
) -> Work:
    """Follow a batch to its end; with -o, download its results.

    Ctrl-C leaves the batch running. The exit codes are those of `run`.

    Example: `tidemill watch 1a2b3c4d -o out.jsonl`
    """
    from tidemill.client.batches import watch as work

    return lambda console, client: work(console, client, batch, results.sink(), source, show_all=results.show_all)


@client_command
def list_batches(
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Number of batches.")] = 20,
    *,
    single: Annotated[
        bool, typer.Option("--single", help="Single asynchronous requests instead, each a batch of one line.")
    ] = False,
    trouble: Annotated[
        Literal["stalled", "late", "failures"] | None,
        typer.Option(help="Only those that are stalled, that are expected to end late, or that have failures."),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow them on the terminal; q ends it.")] = False,
    as_json: AsJson = False,
) -> Work:
    """List the newest batches.

    Example: `tidemill list --trouble late`
    """
    from tidemill.client.batches import show
    from tidemill.client.http.client import SINGLE

    params = (SINGLE if single else {}) | ({"trouble": trouble} if trouble else {})
    return lambda _, client: show(client, params, limit=limit, as_json=as_json, watch=watch)


@client_command
def open_batch(batch: BatchId) -> Work:
    """Open the page of a batch in the browser, and print its address; in a pipe only print it.

    Example: `tidemill open 1a2b3c4d`
    """
    from tidemill.client.batches import open_page

    return lambda _, client: open_page(client, batch)


@client_command
def begin(
    endpoint: Annotated[str, typer.Argument(help="Endpoint of all requests, /v1/embeddings for example.")],
    *,
    name: Annotated[str | None, typer.Option(help="Name of the batch.")] = None,
    metadata: Annotated[list[str] | None, typer.Option(help="Metadata as KEY=VALUE; repeatable.")] = None,
    window: Annotated[
        str | None, typer.Option(help="Completion window; by default the service's usual one.")
    ] = None,
    callback: Annotated[
        str | None, typer.Option(metavar="URL", help="Call this URL when the batch ends, as for `run`.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="Idempotency key: the same command with it prints the same batch.")
    ] = None,
    as_json: AsJson = False,
) -> Work:
    """Begin an open batch; prints its id. Requests follow with `append`, and run as they come, until `seal`.

    Example: `tidemill begin /v1/embeddings --name crawl`
    """
    from tidemill.client.runs.appends import begin as work
    from tidemill.client.runs.paths import metadata_of

    fields = {
        "endpoint": endpoint,
        "completion_window": window,
        "callback_url": callback,
        "metadata": metadata_of(metadata or []) | ({"name": name} if name else {}),
    }
    return lambda _, client: work(client, fields, key=key, as_json=as_json)


@client_command
def append(
    batch: BatchId,
    file: Annotated[Path, typer.Argument(help="JSONL with one request per line; - reads stdin.")],
    *,
    as_json: AsJson = False,
) -> Work:
    """Append the requests of a file to an open batch.

    After a crash or Ctrl-C the same command goes on; a file that the batch has is not appended twice. Only one
    program at a time appends to a batch. Tidemill checks requests when it runs them: one whose `custom_id` the
    batch already has fails then. Exit codes: 0 the batch has all requests, 2 the service refused some.

    Example: `tidemill append 1a2b3c4d more.jsonl`
    """
    from tidemill.client.runs.appends import append as work

    return lambda console, client: work(console, client, batch, file, as_json=as_json)


@client_command
def seal(batch: BatchId, *, as_json: AsJson = False) -> Work:
    """Seal an open batch: it ends with its last request.

    Example: `tidemill seal 1a2b3c4d`
    """
    from tidemill.client.runs.appends import seal as work

    return lambda console, client: work(console, client, batch, as_json=as_json)


@client_command
def cancel(batch: BatchId) -> Work:
    """Cancel a batch; finished lines keep their results.

    Example: `tidemill cancel 1a2b3c4d`
    """
    from tidemill.client.batches import cancel as work

    return lambda console, client: work(console, client, batch)


@client_command
def delete(
    batch: BatchId,
    takes_input: Annotated[
        bool, typer.Option("--input", help="Delete its input file, too, unless another batch has that.")
    ] = False,
) -> Work:
    """Delete a finished batch and its results for good; its input file stays unless you pass `--input`.

    You may repeat it with the complete id, which it prints. `tidemill purge` verifies that nothing is left.

    Example: `tidemill delete --input 1a2b3c4d`
    """
    from tidemill.client.batches import delete as work

    return lambda console, client: work(console, client, batch, takes_input=takes_input)


def verify(
    file: Annotated[Path, typer.Argument(help="Input of the batch.")],
    output: Annotated[Path | None, typer.Argument(help="Its output file.")] = None,
    errors: Annotated[Path | None, typer.Argument(help="Its error file.")] = None,
) -> None:
    """Check files offline: every input line has exactly one result.

    Exit codes: 0 yes, 1 no, 2 a file cannot be read.

    Example: `tidemill verify in.jsonl out.jsonl out.errors.jsonl`
    """
    from tidemill.client import batches
    from tidemill.terminal import stderr_console

    raise typer.Exit(batches.verify(stderr_console(), file, output, errors))
