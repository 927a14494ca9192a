"""The command line: registers the commands of `tidemill.cli`."""

import io
import sys
from typing import Annotated

import typer

from tidemill.cli import (
    batches,
    catalog,
    dead_letters,
    keys,
    maintenance,
    reports,
    reruns,
    run,
    services,
    webhooks,
)

app = typer.Typer(
    name="tidemill",
    help="An OpenAI-compatible Batch API for your own inference servers.",
    epilog="To begin: `tidemill up`, then `tidemill run FILE -o out.jsonl` in another terminal.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

_PANELS = {
    "Batches": (
        run.run,
        batches.watch,
        batches.list_batches,
        batches.cancel,
        reruns.rerun,
        reruns.replay,
        run.produce,
        batches.verify,
        batches.delete,
    ),
    "Keys and usage": (keys.app, webhooks.app, reports.usage, reports.audit),
    "Servers and models": (catalog.servers, catalog.models, catalog.apply),
    "Service": (services.up, maintenance.doctor, services.backend_demo, services.bench),
    "Stages of a cluster": (
        services.api,
        services.ingest,
        services.processors,
        services.results,
    ),
    "Operation": (dead_letters.app, maintenance.rebuild, maintenance.purge, maintenance.acls),
}
_NAMES = {
    batches.list_batches: "list",
    services.backend_demo: "backend-demo",
    keys.app: "keys",
    webhooks.app: "webhooks",
    catalog.servers: "servers",
    catalog.models: "models",
    dead_letters.app: "dead",
}

for _panel, _commands in _PANELS.items():
    for _command in _commands:
        if isinstance(_command, typer.Typer):
            app.add_typer(_command, name=_NAMES[_command], rich_help_panel=_panel)
        else:
            app.command(_NAMES.get(_command), rich_help_panel=_panel)(_command)


def _show_version(*, value: bool) -> None:
    if value:
        from importlib.metadata import version  # noqa: PLC0415 - only this option needs it

        typer.echo(f"tidemill {version('tidemill')}")
        raise typer.Exit


@app.callback()
def _program(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=lambda value: _show_version(value=value), is_eager=True, help="Show the version."
        ),
    ] = False,
) -> None:
    del version


def main() -> None:
    """Run the command that the arguments name."""
    # Characters that the encoding of the terminal lacks are escaped instead of ending the command.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app()


if __name__ == "__main__":
    main()
