"""The commands `rerun` and `replay`."""

from typing import Annotated

import typer

from tidemill.cli.invocation import Work, client_command
from tidemill.cli.options import (
    Again,
    AnyProject,
    BatchId,
    DryRun,
    ErrorsFile,
    Force,
    OtherModel,
    OtherWindow,
    OutputFile,
    ReceiptFile,
    ShowAll,
)

# ruff: noqa: PLC0415 - a command imports what it needs when it runs, so that every command starts fast


@client_command
def rerun(
    batch: BatchId,
    *,
    only: Annotated[
        str,
        typer.Option(
            help="Which lines: unfinished (failed, expired or cancelled), failed, expired, cancelled, all, "
            "or code=CODE,… with error codes or HTTP statuses."
        ),
    ] = "unfinished",
    model: OtherModel = None,
    window: OtherWindow = None,
    dry_run: DryRun = False,
    output: OutputFile = None,
    errors: ErrorsFile = None,
    receipt: ReceiptFile = None,
    again: Again = False,
    force: Force = False,
    show_all: ShowAll = False,
) -> Work:
    """Run the unfinished lines of a batch again, as a new batch."""
    from tidemill.client.reruns import RerunOptions, create, rerun_body
    from tidemill.client.runs.paths import Sink

    sink = Sink(output=output, errors=errors, receipt=receipt)
    body = rerun_body(only=only, model=model, window=window)
    options = RerunOptions(dry_run=dry_run, again=again, force=force, show_all=show_all)
    return lambda console, target: create(console, target, batch, body, sink, options=options)


@client_command
def replay(
    of: Annotated[str, typer.Argument(metavar="MODEL", help="Model whose requests to replay.")],
    *,
    start: Annotated[
        str, typer.Option("--from", help="Time (2026-11-23T09:00:00Z), time ago (-2h), or log offset.")
    ],
    end: Annotated[str | None, typer.Option("--to", help="Likewise, exclusive; by default now.")] = None,
    project: AnyProject = None,
    endpoint: Annotated[str | None, typer.Option(help="Only lines for this endpoint.")] = None,
    model: OtherModel = None,
    window: OtherWindow = None,
    dry_run: DryRun = False,
    output: OutputFile = None,
    errors: ErrorsFile = None,
    receipt: ReceiptFile = None,
    again: Again = False,
    force: Force = False,
    show_all: ShowAll = False,
) -> Work:
    """Run a stretch of a model's request log again, as a new batch."""
    from tidemill.client.reruns import RerunOptions, create, is_fixed, replay_body
    from tidemill.client.runs.paths import Sink

    source = {"model": of, "from": start, "to": end, "project": project, "endpoint": endpoint}
    given = {name: value for name, value in source.items() if value is not None}
    body = replay_body(given, model=model, window=window)
    sink = Sink(output=output, errors=errors, receipt=receipt)
    again = again or not is_fixed(given)
    options = RerunOptions(dry_run=dry_run, again=again, force=force, show_all=show_all)
    return lambda console, target: create(console, target, None, body, sink, options=options)
