"""The command line of `retry` and `replay`; each command imports what it needs when it is called."""

from pathlib import Path
from typing import Annotated

import typer

from tidemill.client.command import Work, of_service
from tidemill.client.options import DryRun, ErrorsFile, OtherModel, OtherWindow, OutputFile, ReceiptFile

# ruff: noqa: PLC0415 - what one command needs, the others need not wait for

app = typer.Typer(help="Run lines of the past once more, as a batch of their own.", no_args_is_help=True)


@of_service
def retry(
    batch: Annotated[str, typer.Argument(help="Id of a batch that is over.")],
    *,
    only: Annotated[str, typer.Option(help="failed, expired, cancelled, all, or code=429,…")] = "failed",
    model: OtherModel = None,
    window: OtherWindow = None,
    output: OutputFile = None,
    errors: ErrorsFile = None,
    receipt: ReceiptFile = None,
) -> Work:
    """Run lines of a batch once more, as a batch of their own, and follow it as `run` does."""
    from tidemill.client import again
    from tidemill.client.place import Sink

    sink = Sink(output=output, errors=errors, receipt=receipt)
    wish = again.wished(only=only, model=model, window=window)
    return lambda talk, target: again.retry(talk, target, batch, wish, sink)


@app.command("batch")
@of_service
def replay_batch(
    batch: Annotated[str, typer.Argument(help="Id of a batch that is over.")],
    *,
    model: OtherModel = None,
    window: OtherWindow = None,
    dry_run: DryRun = False,
    output: OutputFile = None,
    errors: ErrorsFile = None,
    receipt: ReceiptFile = None,
) -> Work:
    """Run a whole batch once more."""
    return _replay({"batch": batch}, model, window, dry_run=dry_run, places=(output, errors, receipt))


@app.command("topic")
@of_service
def replay_topic(
    of: Annotated[str, typer.Argument(metavar="MODEL", help="The model whose requests are looked through.")],
    *,
    start: Annotated[
        str, typer.Option("--from", help="A time (2026-11-23T09:00:00Z, or 2h ago as -2h) or an offset.")
    ],
    end: Annotated[str | None, typer.Option("--to", help="The same, left out itself; else now.")] = None,
    project: Annotated[
        str | None, typer.Option(help="Another project, or * for all; with an admin's key.")
    ] = None,
    endpoint: Annotated[str | None, typer.Option(help="Only lines that ask for this.")] = None,
    model: OtherModel = None,
    window: OtherWindow = None,
    dry_run: DryRun = False,
    output: OutputFile = None,
    errors: ErrorsFile = None,
    receipt: ReceiptFile = None,
) -> Work:
    """Run a part of what a model was asked once more; see docs/replay.md."""
    source = {"model": of, "from": start, "to": end, "project": project, "endpoint": endpoint}
    given = {name: value for name, value in source.items() if value is not None}
    return _replay(given, model, window, dry_run=dry_run, places=(output, errors, receipt))


def _replay(
    source: dict[str, str],
    model: str | None,
    window: str | None,
    *,
    dry_run: bool,
    places: tuple[Path | None, Path | None, Path | None],
) -> Work:
    from tidemill.client import again
    from tidemill.client.place import Sink

    output, errors, receipt = places
    sink = Sink(output=output, errors=errors, receipt=receipt)
    wish = again.replayed(source, model=model, window=window)
    if dry_run:
        return lambda talk, target: again.tell(talk, target, wish)
    return lambda talk, target: again.replay(talk, target, wish, sink)
