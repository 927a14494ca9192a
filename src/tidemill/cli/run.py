"""The commands that run lines: `run` and `produce` those of a file, `rerun` and `replay` those that ran before."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tidemill.cli.invocation import Work, client_command, find_kafka, load_settings, refuse, silence_kafka
from tidemill.cli.options import AnyProject, BatchId, NewBatchOptions, RerunOptions, TargetOptions

if TYPE_CHECKING:
    from tidemill.configuration.security import Kafka, Security


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
    callback: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Call this URL when the batch ends; `tidemill webhooks rotate callback` makes the secret first.",
        ),
    ] = None,
    output_uri: Annotated[
        str | None,
        typer.Option(
            metavar="s3://BUCKET/FOLDER", help="Have the service copy the results of each batch there, too."
        ),
    ] = None,
    output_format: Annotated[
        Literal["jsonl", "parquet"] | None, typer.Option(help="Format of these copies; by default jsonl.")
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

    Example: `tidemill run in.jsonl -o out.jsonl`
    """
    from tidemill.client.runs.job import RunOptions
    from tidemill.client.runs.job import run as work
    from tidemill.client.runs.paths import metadata_of

    options = RunOptions(
        endpoint=endpoint,
        window=window,
        dedupe=dedupe,
        callback=callback,
        output_uri=output_uri,
        output_format=output_format,
        metadata=metadata_of(metadata or []) | ({"name": name} if name else {}),
        parallel=parallel,
        again=results.again,
        show_all=results.show_all,
    )
    return lambda console, client: work(console, client, file, results.sink(), options)


@client_command
def produce(
    file: Annotated[Path, typer.Argument(help="JSONL with one request per line; - reads stdin.")],
    *,
    stream: Annotated[str, typer.Option(help="Name of the stream.")],
    kafka: Annotated[str | None, typer.Option(help="Kafka as HOST:PORT; by default the configured one.")] = None,
    end: Annotated[bool, typer.Option(help="End the stream after the file.")] = True,
    output: Annotated[
        Literal["one", "numbered"],
        typer.Option(help="Results in one file, or in numbered files that each fit into a batch."),
    ] = "one",
    service: TargetOptions,
) -> Work:
    """Produce a file to Kafka as a stream; prints the batch id. After a failure the same command goes on.

    Exit codes: 0 the service shows the batch, 2 a line is too long, so that none was sent, 7 Kafka or the service
    does not answer, or it shows no batch yet.

    Example: `tidemill produce in.jsonl --stream crawl`
    """
    from tidemill.client.production import produce as work

    silence_kafka()
    return lambda console, client: work(
        console, client, _kafka(kafka, service.data), file, stream, ends=end, output=output
    )


def _kafka(named: str | None, data: Path | None) -> "Kafka":
    from tidemill.client.errors import UsageError
    from tidemill.configuration.security import Cluster
    from tidemill.schemas.log.acls import PRODUCERS

    if named is not None:
        return Cluster(servers=named, security=_security())
    settings = load_settings(None)
    if (found := find_kafka(settings, data, PRODUCERS)) is None:
        raise UsageError("no Kafka is configured: pass --kafka or set TIDEMILL_KAFKA")
    return found


def _security() -> "Security":
    """TLS and SASL of a Kafka that the user named: of the environment alone if the file found is not trusted."""
    from tidemill.configuration.settings import SettingsError, load
    from tidemill.ownership import Untrusted
    from tidemill.terminal import say

    try:
        return load().kafka_security
    except SettingsError as error:
        if not isinstance(error.__cause__, Untrusted):
            refuse(str(error))
        say(f"tidemill: ignoring {error}", err=True)
        return load_settings(Path(os.devnull)).kafka_security


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
    """Run the unfinished lines of a batch again, as a new batch.

    Example: `tidemill rerun 1a2b3c4d --only code=429 -o again.jsonl`
    """
    from tidemill.client import reruns

    body = reruns.rerun_body(only=only, of_model=of_model, model=changes.model, window=changes.window)
    return _rerun(batch, body, changes, results, again=results.again)


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
    """Run a range of a model's request log again, as a new batch.

    Example: `tidemill replay my-model --from -2h --dry-run`
    """
    from tidemill.client import reruns

    source = {"model": of, "from": start, "to": end, "project": project, "endpoint": endpoint}
    given = {name: value for name, value in source.items() if value is not None}
    body = reruns.replay_body(given, model=changes.model, window=changes.window)
    return _rerun(None, body, changes, results, again=results.again or not reruns.is_fixed(given))


def _rerun(
    batch: str | None, body: dict[str, object], changes: RerunOptions, results: NewBatchOptions, *, again: bool
) -> Work:
    from tidemill.client.reruns import create

    return lambda console, client: create(
        console,
        client,
        batch,
        body,
        results.sink(),
        again=again,
        dry_run=changes.dry_run,
        show_all=results.show_all,
    )
