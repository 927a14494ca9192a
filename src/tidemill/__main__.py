"""The command line: registers the commands of `tidemill.cli`."""

import gc
import io
import os
import sys
from typing import Annotated

try:
    import typer

    from tidemill.cli import (
        batches,
        catalog,
        dead_letters,
        keys,
        maintenance,
        reports,
        run,
        services,
        tables,
        webhooks,
    )
    from tidemill.runtime.memory import YOUNG_EVERY
    from tidemill.terminal import NAME
except KeyboardInterrupt:
    # These imports take half a second, in which no command handles Ctrl-C yet.
    sys.exit(130)

app = typer.Typer(
    name=NAME,
    help="An OpenAI-compatible Batch API for your own inference servers.",
    epilog="To begin: `tidemill init`, `tidemill up`, then `tidemill run FILE -o out.jsonl` in another terminal.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

_PANELS = {
    "Batches": (
        run.run,
        tables.map_table,
        tables.embed,
        batches.watch,
        batches.list_batches,
        reports.top,
        batches.open_batch,
        batches.cancel,
        run.rerun,
        run.replay,
        batches.begin,
        batches.append,
        batches.seal,
        run.produce,
        batches.verify,
        batches.delete,
    ),
    "Keys and usage": (keys.app, webhooks.app, reports.usage, reports.audit),
    "Servers and models": (catalog.servers, catalog.models, catalog.apply),
    "Service": (
        services.init,
        services.up,
        maintenance.upgrade,
        maintenance.doctor,
        services.backend_demo,
        services.bench,
    ),
    "Stages of a cluster": (
        services.api,
        services.ingest,
        services.processors,
        services.results,
    ),
    "Operation": (dead_letters.app, maintenance.rebuild, maintenance.purge, maintenance.acls),
}
_NAMES = {
    tables.map_table: "map",
    batches.list_batches: "list",
    batches.open_batch: "open",
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


def _without_color(*, value: bool) -> None:
    if value:
        os.environ["NO_COLOR"] = "1"


@app.callback()
def _program(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=lambda value: _show_version(value=value), is_eager=True, help="Show the version."
        ),
    ] = False,
    no_color: Annotated[
        bool,
        typer.Option(
            "--no-color",
            callback=lambda value: _without_color(value=value),
            is_eager=True,
            help="No colours and no other styles, as with NO_COLOR=1.",
        ),
    ] = False,
) -> None:
    del version, no_color


def main() -> None:
    """Run the command that the arguments name."""
    # A stage imports a thousand modules; the usual collections find no garbage there, in 4 to 10 % of the time.
    gc.set_threshold(YOUNG_EVERY)
    # Characters that the encoding of the terminal lacks are escaped instead of ending the command.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app(prog_name=NAME)


if __name__ == "__main__":
    main()
