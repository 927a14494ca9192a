"""Wraps the commands: shared options, settings, the service to talk to, exit codes.

A parameter of a command whose annotation is a dataclass stands for a group of options: its fields.
"""

import dataclasses
import functools
import inspect
import logging
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import typer

from tidemill.cli.options import OperatorOptions, TargetOptions
from tidemill.client.errors import Exit

if TYPE_CHECKING:
    from tidemill.client.http.client import Client
    from tidemill.client.target import Target
    from tidemill.configuration.security import Kafka
    from tidemill.configuration.settings import Settings
    from tidemill.terminal import Console

T = TypeVar("T")

Work = Callable[["Console", "Client"], Coroutine[Any, Any, Exit]]
"""The work of a command at the service; returns the exit code."""
OperatorWork = Callable[["Settings", "Kafka"], Coroutine[Any, Any, object]]
"""The work of an operator's command; False means the exit code 1."""


def client_command(command: Callable[..., Work]) -> Callable[..., None]:
    """Make a Typer command of a function that takes the command's own options and returns its `Work`.

    Errors end it with a message and an exit code (`tidemill.client.errors.run`).
    """

    def run(begin: Callable[[], Work], options: TargetOptions) -> None:
        from tidemill.client.errors import run
        from tidemill.client.http.client import Client
        from tidemill.client.target import find
        from tidemill.terminal import stderr_console

        console = stderr_console()

        async def connected(work: Work, target: "Target") -> Exit:
            async with Client(target.base_url, target.api_key) as client:
                return await work(console, client)

        raise typer.Exit(run(console, lambda: connected(begin(), find(**vars(options), environ=os.environ))))

    return _with_groups(command, TargetOptions, run)


def operator_command(command: Callable[..., OperatorWork]) -> Callable[..., None]:
    """Make a Typer command of a function that takes the command's own options and returns its `OperatorWork`.

    Without a Kafka the command ends with a message.
    """

    def run(begin: Callable[[], OperatorWork], options: OperatorOptions) -> None:
        from tidemill.schemas.log.acls import OPERATOR

        work = begin()
        loaded = operator_settings(options)
        if (kafka := find_kafka(loaded, options.data, OPERATOR)) is None:
            refuse(
                f"no Kafka is configured (TIDEMILL_KAFKA), and no `tidemill up` is running in {loaded.data}; "
                "--data names another folder"
            )
        raise typer.Exit(Exit.INEXACT if operate(work(loaded, kafka)) is False else Exit.OK)

    return _with_groups(command, OperatorOptions, run)


def _with_groups(
    command: Callable[..., T], added: type[Any], run: Callable[[Callable[[], T], Any], None]
) -> Callable[..., None]:
    """Make a Typer command that has an option for each field of a group.

    `run` runs the command, given a call of it and the values of the group `added`, which the command may take too.
    """
    own = inspect.signature(command).parameters.values()
    groups: dict[str, Any] = {
        each.name: each.annotation for each in own if dataclasses.is_dataclass(each.annotation)
    }

    @functools.wraps(command)
    def wrapped(**options: Any) -> None:
        def values(group: Any) -> Any:
            return group(**{field.name: options.pop(field.name) for field in dataclasses.fields(group)})

        found = {name: values(group) for name, group in groups.items()}
        common = next((each for each in found.values() if type(each) is added), None) or values(added)
        run(lambda: command(**options, **found), common)

    parameters = [each for one in own for each in (_fields(one.annotation) if one.name in groups else [one])]
    parameters += [] if added in groups.values() else _fields(added)
    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
    # Typer reads the options from these two attributes.
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {each.name: each.annotation for each in parameters}
    return wrapped


def _fields(group: type[Any]) -> list[inspect.Parameter]:
    return [
        inspect.Parameter(
            each.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if each.default is dataclasses.MISSING else each.default,
            annotation=each.type,
        )
        for each in dataclasses.fields(group)
    ]


def refuse(text: str) -> NoReturn:
    """End the command with an error message and the exit code of a usage error."""
    from tidemill.terminal import say

    say(f"tidemill: {text}", err=True)
    raise typer.Exit(Exit.USAGE)


def load_settings(config: Path | None, **overrides: object) -> "Settings":
    """The settings, with the options that are not None; ends the command if they are invalid."""
    from tidemill.configuration import settings

    try:
        loaded = settings.load(config)
    except settings.SettingsError as error:
        refuse(str(error))
    return loaded.model_copy(update={name: value for name, value in overrides.items() if value is not None})


def operator_settings(options: OperatorOptions) -> "Settings":
    """The settings of an operator's command."""
    return load_settings(options.config, data=options.data)


def find_kafka(settings: "Settings", data: Path | None, role: str) -> "Kafka | None":
    """The configured Kafka, else that of a local service, which `--data` chooses; None if there is neither.

    It connects to a local service with this role.
    """
    from tidemill.runtime import run_file

    if settings.kafka is not None and data is None:
        return settings.cluster
    return run_file.cluster(data or settings.data, role, settings.kafka_security)


def silence_kafka() -> None:
    """Hide the log of the Kafka client: the command's own message says what failed."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


def operate(work: "Coroutine[Any, Any, T]") -> T:
    """Run the work of an operator's command; expected errors end it with a message and an exit code."""
    import asyncio

    from tidemill.configuration.settings import SettingsError
    from tidemill.kafka.admin import TopicError
    from tidemill.kafka.connection import LogUnavailable
    from tidemill.ops import OperatorError
    from tidemill.terminal import say

    silence_kafka()
    try:
        return asyncio.run(work)
    except LogUnavailable as error:
        say(f"tidemill: Kafka does not answer: {error}; `tidemill doctor` finds the cause", err=True)
        raise typer.Exit(Exit.UNREACHABLE) from error
    except (OperatorError, TopicError, SettingsError, OSError) as error:
        refuse(str(error))
