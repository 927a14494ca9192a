"""The operator's commands on the command line; each imports what it needs when it is called."""

from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

if TYPE_CHECKING:
    from tidemill.configuration.security import Kafka
    from tidemill.configuration.settings import Settings

# ruff: noqa: PLC0415 - what one command needs, the others need not wait for

T = TypeVar("T")

FAILED = 1
WRONG = 2
"""Exit code where a name or a setting is wrong."""
UNREACHABLE = 7

dead_app = typer.Typer(help="Records that a stage could not read.", no_args_is_help=True)

Config = Annotated[
    Path | None,
    typer.Option("--config", help="The file of settings; by default tidemill.toml, where there is one."),
]
DataFolder = Annotated[Path | None, typer.Option("--data", help="Folder of the local service.")]


@dead_app.command("list")
def list_dead(
    *,
    everything: Annotated[bool, typer.Option("--all", help="Also those that were sent again.")] = False,
    config: Config = None,
    data: DataFolder = None,
) -> None:
    """Show what nothing could read."""
    from tidemill.ops import dead_letters
    from tidemill.terminal import say

    run(dead_letters.show_all(place(config, data)[1], say, everything=everything))


@dead_app.command("show")
def show_dead(
    letter: Annotated[str, typer.Argument(help="Its id, as `list` shows it.")],
    *,
    value_bytes: Annotated[int, typer.Option("--bytes", min=0, help="How much of the value.")] = 2_000,
    config: Config = None,
    data: DataFolder = None,
) -> None:
    """Show one of them, with its headers and its value."""
    from tidemill.ops import dead_letters
    from tidemill.terminal import say

    run(dead_letters.show(place(config, data)[1], letter, say, value_bytes=value_bytes))


@dead_app.command("requeue")
def requeue_dead(
    chosen: Annotated[list[str] | None, typer.Argument(help="Ids, as `list` shows them.")] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="All that wait.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Also what was sent again already.")] = False,
    config: Config = None,
    data: DataFolder = None,
) -> None:
    """Send records to the topics they came from again, after what could not read them was mended."""
    from tidemill.ops import dead_letters
    from tidemill.terminal import say

    if bool(chosen) == everything:
        refuse("name letters, or say --all")
    run(dead_letters.requeue(place(config, data)[1], None if everything else chosen, say, again=again))


def rebuild(
    batches: Annotated[list[str], typer.Argument(help="Ids of batches that are over, or their last characters.")],
    *,
    write: Annotated[bool, typer.Option("--write", help="Replace files that are missing or damaged.")] = False,
    config: Config = None,
    data: DataFolder = None,
) -> None:
    """Make the files of batches again from the log, without a call, and compare them with their receipts."""
    from tidemill.ops import rebuild as work
    from tidemill.terminal import say

    if len(batches) > work.BATCHES_MAX:
        refuse(f"{len(batches)} batches are more than the {work.BATCHES_MAX} that one command takes")
    loaded, where = place(config, data)
    is_well = run(work.rebuild(loaded, where, batches, say, write=write))
    raise typer.Exit(0 if is_well else FAILED)


def acls(
    *,
    apply: Annotated[
        bool,
        typer.Option("--apply", help="Make the topics and set the lists, as the administrator of the settings."),
    ] = False,
    user: Annotated[
        list[str] | None, typer.Option("--user", help="ROLE=NAME: the user of a role; by default tidemill-ROLE.")
    ] = None,
    config: Config = None,
) -> None:
    """Show the access lists of Kafka that each stage needs, or set them."""
    from tidemill.configuration.settings import SettingsError
    from tidemill.kafka.admin import TopicError
    from tidemill.ops import acls
    from tidemill.schemas.log.acls import ROLES
    from tidemill.terminal import say

    users = {role: name for role, _, name in (found.partition("=") for found in user or ())}
    if wrong := [role for role, name in users.items() if role not in ROLES or not name]:
        refuse(f"--user {wrong[0]}: it has the form ROLE=NAME, and roles are {', '.join(ROLES)}")
    if not apply:
        acls.show(say, users)
        return
    loaded = _loaded(config, None)
    try:
        run(acls.apply(loaded, loaded.cluster, say, users))
    except (TopicError, SettingsError) as error:
        refuse(str(error))


def purge(
    batch: Annotated[str, typer.Argument(help="Id of a batch that is deleted, or its last characters.")] = "",
    *,
    project: Annotated[str, typer.Option(help="All deleted batches of this project instead.")] = "",
    config: Config = None,
    data: DataFolder = None,
) -> None:
    """Search the log and the store for what can still be read of deleted batches; exit code 0: nothing."""
    from tidemill.ops import purge as work
    from tidemill.terminal import say

    if bool(batch) == bool(project):
        refuse("give the id of a batch, or --project")
    loaded, where = place(config, data)
    try:
        is_gone = run(work.purge(loaded, where, say, batch_id=batch, project=project))
    except work.PurgeError as error:
        refuse(str(error))
    raise typer.Exit(0 if is_gone else FAILED)


def doctor(config: Config = None, data: DataFolder = None) -> None:
    """Look at all that Tidemill needs here, and say how to mend what is not as it should be."""
    from tidemill.ops import doctor as work
    from tidemill.terminal import say

    loaded = _loaded(config, data)
    raise typer.Exit(0 if run(work.examine(loaded, _kafka(loaded, data), say)) else FAILED)


def place(config: Path | None, data: Path | None) -> "tuple[Settings, Kafka]":
    """The settings, and the Kafka that a command speaks to: the one that is set, else that of a local service."""
    loaded = _loaded(config, data)
    if (where := _kafka(loaded, data)) is None:
        refuse(f"no Kafka is set (TIDEMILL_KAFKA), and no `tidemill up` runs on {loaded.data}")
    return loaded, where


def _kafka(loaded: "Settings", data: Path | None) -> "Kafka | None":
    from tidemill.runtime import run_file
    from tidemill.schemas.log.acls import OPERATOR

    if loaded.kafka is not None and data is None:
        return loaded.cluster
    return run_file.cluster(loaded.data, OPERATOR, loaded.kafka_security)


def _loaded(config: Path | None, data: Path | None) -> "Settings":
    from tidemill.configuration import settings
    from tidemill.runtime import run_file

    try:
        loaded = settings.load(config)
    except settings.SettingsError as error:
        refuse(str(error))
    if data is not None:
        loaded = loaded.model_copy(update={"data": data})
    if not loaded.models and (here := run_file.read(loaded.data)) is not None:
        # Those of the demo, which no file names.
        loaded = loaded.model_copy(update={"models": settings.Settings(models=here.models).models})
    return loaded


def run(work: "Coroutine[Any, Any, T]") -> T:
    """Do the work of a command; an error that is expected becomes a line on stderr and an exit code."""
    import asyncio

    from tidemill.kafka.connection import LogUnavailable
    from tidemill.ops.dead_letters import LetterError
    from tidemill.terminal import say

    try:
        return asyncio.run(work)
    except LogUnavailable as error:
        say(f"tidemill: Kafka does not answer: {error}", err=True)
        raise typer.Exit(UNREACHABLE) from error
    except LetterError as error:
        refuse(str(error))


def refuse(text: str) -> NoReturn:
    """End the command: something was asked for that is not there."""
    from tidemill.terminal import say

    say(f"tidemill: {text}", err=True)
    raise typer.Exit(WRONG)
