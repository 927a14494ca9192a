"""The commands `run` and `produce`, which send a file of lines."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tidemill.cli.invocation import Work, client_command, find_kafka, load_settings, silence_kafka
from tidemill.cli.options import NewBatchOptions

if TYPE_CHECKING:
    from tidemill.configuration.security import Kafka


@client_command
def run(
    file: Annotated[Path, typer.Argument(help="JSONL with one request per line; - reads stdin.")],
    *,
    results: NewBatchOptions,
    name: Annotated[str | None, typer.Option(help="Name of the batch; by default the file name.")] = None,
    metadata: Annotated[list[str] | None, typer.Option(help="Metadata as KEY=VALUE; repeatable.")] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="Endpoint of the batch; by default the url of the first line.")
    ] = None,
    window: Annotated[
        str | None, typer.Option(help="Completion window; by default the service's usual one.")
    ] = None,
    dedupe: Annotated[
        Literal["none", "batch", "all"] | None,
        typer.Option(
            help="Equal lines to ask once: none, batch (if their answer is deterministic) or all; by default, the "
            "model decides."
        ),
    ] = None,
    parallel: Annotated[
        int, typer.Option(min=1, max=64, help="Concurrent batches, if the file exceeds one batch.")
    ] = 4,
) -> Work:
    """Run a file: upload, follow, download and check the results.

    Ctrl-C leaves the batch running; the same command resumes. A file of any size works: one that exceeds a batch
    is split into several, with one output.

    Exit codes:

    * 0: all lines succeeded
    * 1: the results differ from the receipt
    * 2: wrong usage
    * 3: some lines failed
    * 4: the input was rejected
    * 5: the batch expired
    * 6: the batch was cancelled
    * 7: the service is unreachable
    * 130: Ctrl-C
    """
    from tidemill.client.runs.job import RunOptions
    from tidemill.client.runs.job import run as work
    from tidemill.client.runs.paths import metadata_of

    options = RunOptions(
        endpoint=endpoint,
        window=window,
        dedupe=dedupe,
        metadata=metadata_of(metadata or []) | ({"name": name} if name else {}),
        parallel=parallel,
        again=results.again,
        show_all=results.show_all,
    )
    return lambda console, target: work(console, target, file, results.sink(), options)


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
