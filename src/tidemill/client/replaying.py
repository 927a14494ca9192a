"""The command line of `retry` and `replay`; each command imports what it needs when it is called."""

import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidemill.client.options import (
    ApiKey,
    BaseUrl,
    DataFolder,
    DryRun,
    ErrorsFile,
    OtherModel,
    OtherWindow,
    OutputFile,
    ReceiptFile,
)

if TYPE_CHECKING:
    from rich.console import Console

    from tidemill.client.ending import Exit
    from tidemill.client.target import Target

# ruff: noqa: PLC0415 - what one command needs, the others need not wait for

app = typer.Typer(help="Run lines of the past once more, as a batch of their own.", no_args_is_help=True)


def retry(
    batch: Annotated[str, typer.Argument(help="Id of a batch that is over.")],
    *,
    only: Annotated[str, typer.Option(help="failed, expired, cancelled, all, or code=429,…")] = "failed",
    model: OtherModel = None,
    window: OtherWindow = None,
    output: OutputFile = None,
    errors: ErrorsFile = None,
    receipt: ReceiptFile = None,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    data: DataFolder = None,
) -> None:
    """Run lines of a batch once more, as a batch of their own, and follow it as `run` does."""
    from tidemill.client import again
    from tidemill.client.place import Sink

    sink = Sink(output=output, errors=errors, receipt=receipt)

    def work(talk: "Console", target: "Target") -> Coroutine[Any, Any, "Exit"]:
        return again.retry(talk, target, batch, again.wished(only=only, model=model, window=window), sink)

    _ended(work, base_url, api_key, data)


@app.command("batch")
def replay_batch(
    batch: Annotated[str, typer.Argument(help="Id of a batch that is over.")],
    *,
    model: OtherModel = None,
    window: OtherWindow = None,
    dry_run: DryRun = False,
    output: OutputFile = None,
    errors: ErrorsFile = None,
    receipt: ReceiptFile = None,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    data: DataFolder = None,
) -> None:
    """Run a whole batch once more."""
    _replay(
        {"batch": batch}, model, window, dry_run=dry_run, places=(output, errors, receipt),
        where=(base_url, api_key, data),
    )  # fmt: skip


@app.command("topic")
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
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    data: DataFolder = None,
) -> None:
    """Run a part of what a model was asked once more; see docs/replay.md."""
    source = {"model": of, "from": start, "to": end, "project": project, "endpoint": endpoint}
    _replay(
        {name: value for name, value in source.items() if value is not None}, model, window, dry_run=dry_run,
        places=(output, errors, receipt), where=(base_url, api_key, data),
    )  # fmt: skip


def _replay(
    source: dict[str, str],
    model: str | None,
    window: str | None,
    *,
    dry_run: bool,
    places: tuple[Path | None, Path | None, Path | None],
    where: tuple[str | None, str | None, Path | None],
) -> None:
    from tidemill.client import again
    from tidemill.client.place import Sink

    output, errors, receipt = places
    sink = Sink(output=output, errors=errors, receipt=receipt)

    def work(talk: "Console", target: "Target") -> Coroutine[Any, Any, "Exit"]:
        wish = again.replayed(source, model=model, window=window)
        return again.tell(talk, target, wish) if dry_run else again.replay(talk, target, wish, sink)

    _ended(work, *where)


def _ended(
    work: "Callable[[Console, Target], Coroutine[Any, Any, Exit]]",
    base_url: str | None,
    api_key: str | None,
    data: Path | None,
) -> None:
    from tidemill.client import run as command
    from tidemill.client.place import InputFault

    talk = command.console()
    target = command.found(talk, base_url=base_url, api_key=api_key, data=data, environ=os.environ)
    try:
        doing = work(talk, target)
    except InputFault as error:
        typer.echo(f"tidemill: {error}", err=True)
        raise typer.Exit(2) from error
    raise typer.Exit(command.ended(talk, doing))
