"""The commands below `servers` and `models`, and `apply`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tidemill.cli.invocation import Work, client_command
from tidemill.cli.options import AsJson

if TYPE_CHECKING:
    from tidemill.client.catalog import Kind

Name = Annotated[str, typer.Argument(metavar="NAME", help="Its name.")]
Words = Annotated[
    list[str],
    typer.Argument(metavar="SETTING=VALUE", help="Settings as in tidemill.toml; without a value, the default."),
]

_SAMPLES = {"servers": "gpu-1", "models": "my-model"}
"""Names for the examples of the help."""
_TEST_CODES = "\n\nExit codes: 0 each call succeeded, 1 one failed, or could not be made."

servers = typer.Typer(help="Show and change inference servers while everything runs.", no_args_is_help=True)
models = typer.Typer(help="Show and change models while everything runs.", no_args_is_help=True)


@servers.command("list")
@client_command
def list_servers(*, as_json: AsJson = False) -> Work:
    """List the servers; it needs an operator's key, like all of these but `models list`.

    Example: `tidemill servers list`
    """
    from tidemill.client import catalog

    return lambda _, client: catalog.list_servers(client, as_json=as_json)


@models.command("list")
@client_command
def list_models(*, as_json: AsJson = False) -> Work:
    """List the models that batches may name.

    Example: `tidemill models list`
    """
    from tidemill.client import catalog

    return lambda _, client: catalog.list_models(client, as_json=as_json)


def _commands(app: typer.Typer, kind: "Kind", noun: str) -> None:
    """Add the commands that servers and models share."""

    def show(name: Name, *, as_json: AsJson = False) -> Work:
        from tidemill.client import catalog

        return lambda _, client: catalog.show(client, kind, name, as_json=as_json)

    def add(name: Name, settings: Words) -> Work:
        from tidemill.client import catalog

        return lambda console, client: catalog.add(console, client, kind, name, settings)

    def change(name: Name, settings: Words) -> Work:
        from tidemill.client import catalog

        values = catalog.parsed(settings)
        return lambda console, client: catalog.change(console, client, kind, name, values, done=f"Changed {name}.")

    def remove(name: Name) -> Work:
        from tidemill.client import catalog

        return lambda console, client: catalog.remove(console, client, kind, name)

    def test(name: Name) -> Work:
        from tidemill.client import catalog

        return lambda console, client: catalog.test(console, client, kind, name)

    setting = {"servers": "max_in_flight=8", "models": "paused=true"}[kind]
    new = {"servers": "url=http://127.0.0.1:8000/v1", "models": "'servers=[\"gpu-1\"]'"}[kind]
    for word, command, settings, help_text in (
        ("show", show, "", f"Show the settings of a {noun}, who changed it last, and when."),
        ("add", add, f" {new}", f"Add a {noun}."),
        ("set", change, f" {setting}", f"Change settings of a {noun}."),
        ("remove", remove, "", f"Remove a {noun}."),
        ("test", test, "", f"Make one small call to a {noun} from here, and show the answer.{_TEST_CODES}"),
    ):
        text = f"{help_text}\n\nExample: `tidemill {kind} {word} {_SAMPLES[kind]}{settings}`"
        app.command(word, help=text)(client_command(command))


def _switch(
    app: typer.Typer, kind: "Kind", word: str, setting: Mapping[str, bool | None], *, done: str, help_text: str
) -> None:
    """Add a command that changes one setting; at the end it prints the name and `done`."""

    def switch(name: Name) -> Work:
        from tidemill.client import catalog

        return lambda console, client: catalog.change(
            console, client, kind, name, dict(setting), done=f"{name} {done}."
        )

    text = f"{help_text}\n\nExample: `tidemill {kind} {word} {_SAMPLES[kind]}`"
    app.command(word, help=text)(client_command(switch))


_commands(servers, "servers", "server")
_commands(models, "models", "model")
_switch(
    servers, "servers", "drain", {"drain": True},
    done="gets no new calls", help_text="Make no new calls to a server; calls in flight finish.",
)  # fmt: skip
_switch(
    servers,
    "servers",
    "resume",
    {"drain": None},
    done="gets calls again",
    help_text="Call a drained server again.",
)
_switch(
    models, "models", "pause", {"paused": True},
    done="is paused", help_text="Make no new calls for a model; calls in flight finish, and its batches wait.",
)  # fmt: skip
_switch(
    models, "models", "resume", {"paused": None},
    done="goes on", help_text="Go on with the batches of a paused model.",
)  # fmt: skip


@client_command
def apply(
    file: Annotated[
        Path | None, typer.Option("-f", "--file", help="The settings file; by default ./tidemill.toml.")
    ] = None,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")] = False,
    allow_empty: Annotated[
        bool, typer.Option("--allow-empty", help="Accept a file without servers and models.")
    ] = False,
) -> Work:
    """Make servers and models as a settings file says, while everything runs.

    Servers and models that were added otherwise stay; those of an earlier file that this one lacks are removed.

    Example: `tidemill apply -f tidemill.toml --dry-run`
    """
    from tidemill.client import catalog

    return lambda console, client: catalog.apply(console, client, file, dry_run=dry_run, allow_empty=allow_empty)
