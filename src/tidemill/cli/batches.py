"""The commands `watch`, `list`, `cancel`, `delete` and `verify`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

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
    """
    from tidemill.client.batches import watch as work

    return lambda console, target: work(console, target, batch, results.sink(), source, show_all=results.show_all)


@client_command
def list_batches(
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Number of batches.")] = 20,
    *,
    as_json: AsJson = False,
) -> Work:
    """List the newest batches."""
    from tidemill.client.batches import show

    return lambda _, target: show(target, limit=limit, as_json=as_json)


@client_command
def cancel(batch: BatchId) -> Work:
    """Cancel a batch; finished lines keep their results."""
    from tidemill.client.batches import cancel as work

    return lambda console, target: work(console, target, batch)


@client_command
def delete(batch: BatchId) -> Work:
    """Delete a finished batch and its results for good."""
    from tidemill.client.batches import delete as work

    return lambda console, target: work(console, target, batch)


def verify(
    file: Annotated[Path, typer.Argument(help="Input of the batch.")],
    output: Annotated[Path | None, typer.Argument(help="Its output file.")] = None,
    errors: Annotated[Path | None, typer.Argument(help="Its error file.")] = None,
) -> None:
    """Check files offline: every input line has exactly one result.

    Exit codes: 0 yes, 1 no, 2 a file cannot be read.
    """
    from tidemill.client import batches
    from tidemill.terminal import stderr_console

    raise typer.Exit(batches.verify(stderr_console(), file, output, errors))
