"""What a command of the command line becomes that asks the service for something."""

import functools
import inspect
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from tidemill.client.exit_codes import Exit
    from tidemill.client.target import Target
    from tidemill.terminal import Console

# ruff: noqa: PLC0415 - what one command needs, the others need not wait for

BaseUrl = Annotated[str | None, typer.Option(help="Address of the service, /v1 included.", show_default=False)]
ApiKey = Annotated[str | None, typer.Option(help="Key to the service.", show_default=False)]
DataFolder = Annotated[Path | None, typer.Option("--data", help="Folder of the local service.")]

WHERE = {"base_url": BaseUrl, "api_key": ApiKey, "data": DataFolder}
"""The options that say which service it is."""

Work = Callable[["Console", "Target"], Coroutine[Any, Any, "Exit"]]
"""What is to be done with the service, once it is known; says how it ended."""


def of_service(command: Callable[..., Work]) -> Callable[..., None]:
    """Make a command of a function that takes the command's own options and returns the work.

    The command has the options of `WHERE` too. It finds the service, does the work, and ends with its exit code.
    Where no service is known, or the options make no sense (`InputFault`), it says so, with the code of a usage
    error.
    """

    @functools.wraps(command)
    def whole(**options: Any) -> None:
        from tidemill import terminal
        from tidemill.client import batches
        from tidemill.client.runs.paths import InputFault

        talk = terminal.talk()
        where = {name: options.pop(name) for name in WHERE}
        try:
            work = command(**options)
            doing = work(talk, batches.found(talk, **where, environ=os.environ))
        except InputFault as error:
            refuse(str(error))
        raise typer.Exit(batches.ended(talk, doing))

    own = inspect.signature(command)
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)
        for name, option in WHERE.items()
    ]
    # Typer reads a command's options from these two.
    whole.__signature__ = own.replace(parameters=[*own.parameters.values(), *more], return_annotation=None)  # type: ignore[attr-defined]
    whole.__annotations__ = {**command.__annotations__, **WHERE, "return": None}
    return whole


def refuse(text: str) -> NoReturn:
    """End with a sentence, and the code of a usage error."""
    from tidemill.terminal import say

    say(f"tidemill: {text}", err=True)
    raise typer.Exit(2)
