"""The commands `map` and `embed`: a table in, a table out."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tidemill.cli.invocation import Work, client_command

if TYPE_CHECKING:
    from tidemill.client.maps.task import Task
    from tidemill.tables.sources.rows import Source

TableIn = Annotated[
    str,
    typer.Argument(
        metavar="TABLE",
        help="CSV, TSV, JSONL, Parquet or Arrow; a folder of documents, pictures or a data set of Hugging Face; "
        "also s3://BUCKET/PATH.",
    ),
]
Model = Annotated[str, typer.Option("--model", help="Model to ask.")]
Fields = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Another field of each request; repeatable."),
]


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """Where the table goes, and how it runs."""

    output: Annotated[
        str, typer.Option("-o", "--output", help="Table to write; the suffix is the format, as for the input.")
    ]
    keep: Annotated[
        list[str] | None,
        typer.Option(help="Column of the source that the output keeps; repeatable; by default, all."),
    ] = None
    tries: Annotated[
        int | None,
        typer.Option(
            "--try",
            min=0,
            max=1_000,
            help="Rows of the sample that runs first; by default 5, and none with --retry-failed.",
        ),
    ] = None
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Run the sample, show it with an estimate for all rows, and end.")
    ] = False
    name: Annotated[str | None, typer.Option(help="Name of the batches; by default the file name.")] = None
    window: Annotated[str | None, typer.Option(help="Completion window; by default the service's usual one.")] = (
        None
    )
    dedupe: Annotated[
        Literal["none", "batch", "all"] | None,
        typer.Option(help="Equal rows to ask once, as for `tidemill run`."),
    ] = None
    parallel: Annotated[int, typer.Option(min=1, max=16, help="Concurrent batches.")] = 4
    again: Annotated[bool, typer.Option("--again", help="Start over instead of resuming.")] = False
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing output.")] = False
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed", help="Ask the rows of the output again that have an error; the others stay."
        ),
    ] = False


@client_command
def map_table(
    table: TableIn,
    *,
    model: Model,
    prompt: Annotated[
        Path | None, typer.Option(help="File with the question, a Jinja template over the columns of a row.")
    ] = None,
    system: Annotated[
        Path | None, typer.Option(help="File with the system prompt, the same for all rows.")
    ] = None,
    examples: Annotated[
        str | None, typer.Option(help="Table of examples: the columns of the question, and `answer`.")
    ] = None,
    schema: Annotated[
        str | None,
        typer.Option(help="JSON Schema of the answer: a file, or module:Class of a Pydantic model."),
    ] = None,
    repairs: Annotated[
        int, typer.Option(min=0, max=10, help="Times to ask again if an answer does not fit the schema.")
    ] = 2,
    image: Annotated[list[str] | None, typer.Option(help="Column with pictures; repeatable.")] = None,
    images: Annotated[bool, typer.Option("--images", help="Send the pages of PDFs as pictures.")] = False,
    pixels: Annotated[int, typer.Option(min=16, max=8_192, help="Bound of the longer side of a picture.")] = 1_024,
    fields: Fields = None,
    options: TableOptions,
) -> Work:
    """Ask a model about each row of a table, and write a table with the answers.

    A sample runs first, with an estimate of tokens and cost. Ctrl-C leaves the batches running; the same command
    goes on. The exit codes are those of `run`; 3 means that some rows have a text in the column `error`.

    Example: `tidemill map reviews.parquet --model qwen3-8b --prompt prompt.md --schema review.json -o out.parquet`
    """

    def task(source: "Source", name: str) -> "Task":
        import os

        from tidemill.client.catalog import parsed
        from tidemill.client.maps.task import ChatOptions, chats

        chosen = ChatOptions(
            model=model,
            prompt=prompt,
            system=system,
            examples=examples,
            schema=schema,
            repairs=repairs,
            images=tuple(image or ()),
            side=pixels,
            more=parsed(fields or []),
        )
        return chats(source, name, options.keep or (), chosen, os.environ)

    return _work(table, options, task, as_images=images)


@client_command
def embed(
    table: TableIn,
    *,
    model: Model,
    column: Annotated[str | None, typer.Option(help="Column with the text to embed.")] = None,
    prompt: Annotated[
        Path | None, typer.Option(help="File with the text to embed, a Jinja template over the columns of a row.")
    ] = None,
    fields: Fields = None,
    options: TableOptions,
) -> Work:
    """Embed a column of a table, and write a table with the vectors as lists of float32.

    It resumes as `map` does.

    Example: `tidemill embed passages.parquet --model bge-m3 --column text -o vectors.parquet`
    """

    def task(source: "Source", name: str) -> "Task":
        from tidemill.client.catalog import parsed
        from tidemill.client.maps.task import embeddings

        return embeddings(
            source, name, options.keep or (), model=model, column=column, prompt=prompt, more=parsed(fields or [])
        )

    return _work(table, options, task, as_images=False)


def _work(table: str, options: TableOptions, task_of: "Callable[[Source, str], Task]", *, as_images: bool) -> Work:
    """The work of both commands."""
    import os

    from tidemill.client.errors import UsageError
    from tidemill.schemas.json_schema import SchemaError
    from tidemill.tables import TableError
    from tidemill.tables.libraries import check_libraries

    name = PurePosixPath(table.rstrip("/")).name
    try:
        check_libraries()
        from tidemill.client.maps.job import MapOptions
        from tidemill.client.maps.job import run as work
        from tidemill.tables.sinks import suffix_of
        from tidemill.tables.sources.opening import opened

        suffix_of(options.output)
        found = task_of(opened(table, os.environ, as_images=as_images, output=options.output), name)
    except (TableError, SchemaError) as error:
        raise UsageError(str(error)) from error
    chosen = MapOptions(
        output=options.output,
        window=options.window,
        dedupe=options.dedupe,
        metadata={"name": options.name or name},
        parallel=options.parallel,
        tries=options.tries,
        is_dry=options.dry_run,
        again=options.again,
        force=options.force,
        retry_failed=options.retry_failed,
    )
    return lambda console, client: work(console, client, found, chosen)
