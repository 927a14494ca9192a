"""The command line of `produce`; it imports what it needs when it is called."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tidemill.cli.invocation import ApiKey, BaseUrl, DataFolder

if TYPE_CHECKING:
    from tidemill.configuration.security import Cluster

# ruff: noqa: PLC0415 - what one command needs, the others need not wait for


def produce(
    file: Annotated[Path, typer.Argument(help="JSONL, one request a line.")],
    *,
    stream: Annotated[str, typer.Option(help="Name of the stream.")],
    kafka: Annotated[str | None, typer.Option(help="host:port of Kafka.", show_default=False)] = None,
    end: Annotated[bool, typer.Option(help="Whether the stream ends with the file.")] = True,
    output: Annotated[
        Literal["one", "numbered"],
        typer.Option(help="Results in one file, or in numbered ones of as much as a batch's input may have."),
    ] = "one",
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    data: DataFolder = None,
) -> None:
    """Send a file straight to Kafka, as a stream that becomes a batch; prints the batch's id."""
    from tidemill import terminal
    from tidemill.client import batches as command
    from tidemill.client.production import produce as work

    talk = terminal.talk()
    if not file.is_file():
        talk.print(f"tidemill: there is no file {file}", style="red")
        raise typer.Exit(2)
    target = command.found(talk, base_url=base_url, api_key=api_key, data=data, environ=os.environ)
    where = _kafka(kafka, data)
    if where is None:
        talk.print("tidemill: no Kafka is known: give --kafka, or TIDEMILL_KAFKA", style="red")
        raise typer.Exit(2)
    raise typer.Exit(command.ended(talk, work(talk, target, where, file, stream, ends=end, output=output)))


def _kafka(named: str | None, data: Path | None) -> "Cluster | None":
    """What the command line names, else the settings, else the broker of the local service."""
    from tidemill import terminal
    from tidemill.configuration import settings
    from tidemill.configuration.security import Cluster
    from tidemill.runtime import run_file
    from tidemill.schemas.log.acls import PRODUCERS

    try:
        loaded = settings.load()
    except settings.SettingsError as error:
        terminal.say(f"tidemill: {error}", err=True)
        raise typer.Exit(2) from error
    if named is not None:
        return Cluster(servers=named, security=loaded.kafka_security)
    if loaded.kafka is not None and data is None:
        return loaded.cluster
    return run_file.cluster(data or loaded.data, PRODUCERS, loaded.kafka_security)
