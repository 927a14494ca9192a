"""The command `produce`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tidemill.cli.invocation import Work, client_command, find_kafka, load_settings, silence_kafka

if TYPE_CHECKING:
    from tidemill.configuration.security import Kafka


@client_command
def produce(
    file: Annotated[Path, typer.Argument(help="JSONL with one request per line.")],
    *,
    stream: Annotated[str, typer.Option(help="Name of the stream.")],
    kafka: Annotated[str | None, typer.Option(help="Kafka as HOST:PORT; by default the configured one.")] = None,
    end: Annotated[bool, typer.Option(help="End the stream after the file.")] = True,
    output: Annotated[
        Literal["one", "numbered"],
        typer.Option(help="Results in one file, or in numbered files that each fit into a batch."),
    ] = "one",
) -> Work:
    """Produce a file to Kafka as a stream; prints the batch id."""
    from tidemill.client.production import produce as work

    silence_kafka()
    return lambda console, target: work(
        console, target, _kafka(kafka, target.data), file, stream, ends=end, output=output
    )


def _kafka(named: str | None, data: Path | None) -> "Kafka":
    from tidemill.client.errors import UsageError
    from tidemill.configuration.security import Cluster
    from tidemill.schemas.log.acls import PRODUCERS

    settings = load_settings(None)
    if named is not None:
        return Cluster(servers=named, security=settings.kafka_security)
    if (found := find_kafka(settings, data, PRODUCERS)) is None:
        raise UsageError("no Kafka is configured: pass --kafka or set TIDEMILL_KAFKA")
    return found
