"""The commands that run one stage: `api`, `ingest`, `processors` and `results`."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from tidemill.cli.invocation import load_settings, refuse
from tidemill.cli.options import Config

if TYPE_CHECKING:
    from tidemill.configuration.settings import Settings


def api(config: Config = None) -> None:
    """Run the REST API."""
    from tidemill.api.app import main

    _run(main, load_settings(config))


def ingest(config: Config = None) -> None:
    """Run ingest: validates inputs and publishes their lines."""
    from tidemill.ingest.app import main

    _run(main, load_settings(config))


def processors(
    config: Config = None,
    models: Annotated[str | None, typer.Option(help="Only these models; comma-separated.")] = None,
) -> None:
    """Run processors: calls the backends."""
    import functools

    from tidemill.processors.app import main

    names = None if models is None else [name.strip() for name in models.split(",")]
    _run(functools.partial(main, models=names), load_settings(config))


def results(config: Config = None) -> None:
    """Run results: keeps the state of batches and writes their files."""
    from tidemill.results.app import main

    _run(main, load_settings(config))


def _run(stage: "Callable[[Settings], None]", settings: "Settings") -> None:
    """Run a stage; a missing or invalid setting ends the command with a message."""
    from tidemill.configuration.settings import SettingsError

    try:
        stage(settings)
    except SettingsError as error:
        refuse(str(error))
