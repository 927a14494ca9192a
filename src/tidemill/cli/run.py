"""The command `run`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tidemill.cli.invocation import Work, client_command
from tidemill.cli.options import NewBatchOptions


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
