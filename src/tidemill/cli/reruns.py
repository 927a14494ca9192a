"""The commands `rerun` and `replay`."""

from typing import Annotated

import typer

from tidemill.cli.invocation import Work, client_command
from tidemill.cli.options import AnyProject, BatchId, NewBatchOptions, RerunOptions


@client_command
def rerun(
    batch: BatchId,
    only: Annotated[
        str,
        typer.Option(
            help="Which lines: unfinished (failed, expired or cancelled), failed, expired, cancelled, all, "
            "or code=CODE,… with error codes or HTTP statuses."
        ),
    ] = "unfinished",
    of_model: Annotated[str | None, typer.Option(help="Only lines of this model.")] = None,
    *,
    changes: RerunOptions,
    results: NewBatchOptions,
) -> Work:
    """Run the unfinished lines of a batch again, as a new batch."""
    from tidemill.client import reruns

    body = reruns.rerun_body(only=only, of_model=of_model, model=changes.model, window=changes.window)
    return _work(batch, body, changes, results, again=results.again)


@client_command
def replay(
    of: Annotated[str, typer.Argument(metavar="MODEL", help="Model whose requests to replay.")],
    start: Annotated[
        str,
        typer.Option("--from", help="Start: a time (2026-11-23T09:00:00Z), a time ago (-2h), or a log offset."),
    ],
    end: Annotated[
        str | None, typer.Option("--to", help="End, exclusive, in the same forms; by default now.")
    ] = None,
    project: AnyProject = None,
    endpoint: Annotated[str | None, typer.Option(help="Only lines for this endpoint.")] = None,
    *,
    changes: RerunOptions,
    results: NewBatchOptions,
) -> Work:
    """Run a range of a model's request log again, as a new batch."""
    from tidemill.client import reruns

    source = {"model": of, "from": start, "to": end, "project": project, "endpoint": endpoint}
    given = {name: value for name, value in source.items() if value is not None}
    body = reruns.replay_body(given, model=changes.model, window=changes.window)
    return _work(None, body, changes, results, again=results.again or not reruns.is_fixed(given))


def _work(
    batch: str | None, body: dict[str, object], changes: RerunOptions, results: NewBatchOptions, *, again: bool
) -> Work:
    from tidemill.client.reruns import create

    return lambda console, target: create(
        console,
        target,
        batch,
        body,
        results.sink(),
        again=again,
        dry_run=changes.dry_run,
        show_all=results.show_all,
    )
