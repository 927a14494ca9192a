"""The command line of `rerun` and `replay`; each command imports what it needs when it is called."""

from typing import Annotated

import typer

from tidemill.cli.invocation import Work, of_service
from tidemill.cli.options import (
    Again,
    BatchId,
    DryRun,
    ErrorsFile,
    Everything,
    Force,
    OtherModel,
    OtherWindow,
    OutputFile,
    ReceiptFile,
)

# ruff: noqa: PLC0415 - what one command needs, the others need not wait for


@of_service
def rerun(
    batch: BatchId,
    *,
    only: Annotated[
        str, typer.Option(help="unfinished (failed, expired and cancelled), one of these, all, or code=429,…")
    ] = "unfinished",
    model: OtherModel = None,
    window: OtherWindow = None,
    dry_run: DryRun = False,
    output: OutputFile = None,
    errors: ErrorsFile = None,
    receipt: ReceiptFile = None,
    again: Again = False,
    force: Force = False,
    everything: Everything = False,
) -> Work:
    """Run the unfinished lines of a batch once more, or others of it, as a batch of their own."""
    from tidemill.client.reruns import How, make, wished
    from tidemill.client.runs.paths import Sink

    sink = Sink(output=output, errors=errors, receipt=receipt)
    wish = wished(only=only, model=model, window=window)
    how = How(dry_run=dry_run, again=again, force=force, everything=everything)
    return lambda talk, target: make(talk, target, batch, wish, sink, how=how)


@of_service
def replay(
    of: Annotated[str, typer.Argument(metavar="MODEL", help="The model whose requests are looked through.")],
    *,
    start: Annotated[
        str, typer.Option("--from", help="A time (2026-11-23T09:00:00Z, or 2h ago as -2h) or an offset.")
    ],
    end: Annotated[str | None, typer.Option("--to", help="The same, left out itself; else now.")] = None,
    project: Annotated[
        str | None, typer.Option(help="Another project, or * for all; with an operator's key.")
    ] = None,
    endpoint: Annotated[str | None, typer.Option(help="Only lines that ask for this.")] = None,
    model: OtherModel = None,
    window: OtherWindow = None,
    dry_run: DryRun = False,
    output: OutputFile = None,
    errors: ErrorsFile = None,
    receipt: ReceiptFile = None,
    force: Force = False,
    everything: Everything = False,
) -> Work:
    """Run a part of what a model was asked once more, as a batch of its own; see docs/how-to/replay.md."""
    from tidemill.client.reruns import How, make, replayed
    from tidemill.client.runs.paths import Sink

    source = {"model": of, "from": start, "to": end, "project": project, "endpoint": endpoint}
    given = {name: value for name, value in source.items() if value is not None}
    wish = replayed(given, model=model, window=window)
    sink = Sink(output=output, errors=errors, receipt=receipt)
    how = How(dry_run=dry_run, force=force, everything=everything)
    return lambda talk, target: make(talk, target, None, wish, sink, how=how)
