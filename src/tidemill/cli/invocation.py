"""Wraps the commands: settings, the service to talk to, exit codes."""

import functools
import inspect
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import typer

from tidemill.cli.options import ApiKey, BaseUrl, DataFolder

if TYPE_CHECKING:
    from tidemill.client.errors import Exit
    from tidemill.client.target import Target
    from tidemill.configuration.security import Kafka
    from tidemill.configuration.settings import Settings
    from tidemill.terminal import Console

# ruff: noqa: PLC0415 - a command imports what it needs when it runs, so that every command starts fast

T = TypeVar("T")

TARGET = {"base_url": BaseUrl, "api_key": ApiKey, "data": DataFolder}
"""The options that choose the service."""
USAGE = 2
UNREACHABLE = 7

Work = Callable[["Console", "Target"], Coroutine[Any, Any, "Exit"]]
"""What a command does with the service; returns the exit code."""


def client_command(command: Callable[..., Work]) -> Callable[..., None]:
    """Make a Typer command of a function that takes the command's own options and returns its `Work`.

    The command also gets the options of `TARGET`. Errors end it with a message and an exit code
    (`tidemill.client.command.run`).
    """

    @functools.wraps(command)
    def wrapped(**options: Any) -> None:
        from tidemill.client.command import run
        from tidemill.client.target import find
        from tidemill.terminal import stderr_console

        console = stderr_console()
        target = {name: options.pop(name) for name in TARGET}
        raise typer.Exit(run(console, lambda: command(**options)(console, find(**target, environ=os.environ))))

    own = inspect.signature(command)
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)
        for name, option in TARGET.items()
    ]
    # Typer reads the options from these two attributes.
    wrapped.__signature__ = own.replace(  # type: ignore[attr-defined]
        parameters=[*own.parameters.values(), *added], return_annotation=None
    )
    wrapped.__annotations__ = {**command.__annotations__, **TARGET, "return": None}
    return wrapped


def refuse(text: str) -> NoReturn:
    """End the command with an error message and the exit code of a usage error."""
    from tidemill.terminal import say

    say(f"tidemill: {text}", err=True)
    raise typer.Exit(USAGE)


def load_settings(config: Path | None, **overrides: object) -> "Settings":
    """The settings, with the options that are not None; ends the command if they are invalid."""
    from tidemill.configuration import settings

    try:
        loaded = settings.load(config)
    except settings.SettingsError as error:
        refuse(str(error))
    return loaded.model_copy(update={name: value for name, value in overrides.items() if value is not None})


def operator_settings(config: Path | None, data: Path | None) -> "Settings":
    """The settings of an operator's command; without models of their own, those of a running demo."""
    from tidemill.configuration.settings import Settings
    from tidemill.runtime import run_file

    loaded = load_settings(config, data=data)
    if not loaded.models and (running := run_file.read(loaded.data)) is not None:
        loaded = loaded.model_copy(update={"models": Settings(models=running.models).models})
    return loaded


def find_kafka(settings: "Settings", data: Path | None, role: str) -> "Kafka | None":
    """The configured Kafka, else that of a local service; None if there is neither.

    Args:
        settings: The settings.
        data: The option `--data`, which chooses a local service.
        role: The role to connect with.
    """
    from tidemill.runtime import run_file

    if settings.kafka is not None and data is None:
        return settings.cluster
    return run_file.cluster(data or settings.data, role, settings.kafka_security)


def settings_and_kafka(config: Path | None, data: Path | None) -> "tuple[Settings, Kafka]":
    """The settings and the Kafka of an operator's command; ends the command without a Kafka."""
    from tidemill.schemas.log.acls import OPERATOR

    loaded = operator_settings(config, data)
    if (kafka := find_kafka(loaded, data, OPERATOR)) is None:
        refuse(f"no Kafka is configured (TIDEMILL_KAFKA), and no `tidemill up` is running in {loaded.data}")
    return loaded, kafka


def operate(work: "Coroutine[Any, Any, T]") -> T:
    """Run the work of an operator's command; expected errors end it with a message and an exit code."""
    import asyncio

    from tidemill.configuration.settings import SettingsError
    from tidemill.kafka.admin import TopicError
    from tidemill.kafka.connection import LogUnavailable
    from tidemill.ops import OperatorError
    from tidemill.terminal import say

    try:
        return asyncio.run(work)
    except LogUnavailable as error:
        say(f"tidemill: Kafka does not answer: {error}", err=True)
        raise typer.Exit(UNREACHABLE) from error
    except (OperatorError, TopicError, SettingsError) as error:
        refuse(str(error))
