"""The commands `upgrade`, `doctor`, `rebuild`, `purge` and `acls`."""

from typing import Annotated

import typer

from tidemill.cli.invocation import (
    OperatorWork,
    find_kafka,
    load_settings,
    operate,
    operator_command,
    operator_settings,
    refuse,
)
from tidemill.cli.options import Config, DataFolder, OperatorOptions
from tidemill.client.errors import Exit


def upgrade(
    *,
    check: Annotated[
        bool, typer.Option("--check", help="Only say whether this version can read the data.")
    ] = False,
    config: Config = None,
    data: DataFolder = None,
) -> None:
    """Upgrade a data folder to the format of this version; so far there is one format.

    Exit codes: 0 this version can read it, 1 it cannot.

    Example: `tidemill upgrade --check --data /var/lib/tidemill`
    """
    from tidemill import __version__
    from tidemill.local.data_folder import FORMAT, FolderError, written
    from tidemill.terminal import say

    folder = operator_settings(OperatorOptions(config=config, data=data)).data
    del check  # Both say the same until there is a second format.
    try:
        found = written(folder)
    except FolderError as error:
        say(f"tidemill: {error}", err=True)
        raise typer.Exit(Exit.INEXACT) from error
    if found is None:
        say(f"{folder} has no data yet; Tidemill {__version__} will write format {FORMAT}.")
        return
    say(f"{folder} has format {found.format}, last used by Tidemill {found.version}; {__version__} reads it.")


def doctor(config: Config = None, data: DataFolder = None) -> None:
    """Check settings, Kafka, store, backends and batches.

    Every finding says how to fix it. Exit codes: 0 healthy, possibly with warnings; 1 something fails.

    Example: `tidemill doctor --config tidemill.toml`
    """
    from tidemill.ops import doctor as work
    from tidemill.schemas.log.acls import OPERATOR
    from tidemill.terminal import say

    loaded = operator_settings(OperatorOptions(config=config, data=data))
    is_healthy = operate(work.examine(loaded, find_kafka(loaded, data, OPERATOR), say))
    raise typer.Exit(Exit.OK if is_healthy else Exit.INEXACT)


@operator_command
def rebuild(
    batches: Annotated[list[str], typer.Argument(metavar="BATCH", help="Ids of finished batches.")],
    *,
    write: Annotated[bool, typer.Option("--write", help="Replace missing or damaged files.")] = False,
) -> OperatorWork:
    """Rebuild result files from the log and compare them.

    No line is run again. Exit codes: 0 the files are those of the receipt, 1 they are not.

    Example: `tidemill rebuild batch_019c --write`
    """
    from tidemill.ops import rebuild as work
    from tidemill.terminal import say

    if len(batches) > work.BATCHES_MAX:
        refuse(f"{len(batches)} batches are too many: one command takes at most {work.BATCHES_MAX}")
    return lambda settings, kafka: work.rebuild(settings, kafka, batches, say, write=write)


@operator_command
def purge(
    batch: Annotated[str | None, typer.Argument(metavar="BATCH", help="Id of a deleted batch.")] = None,
    project: Annotated[str | None, typer.Option(help="All deleted batches of this project.")] = None,
) -> OperatorWork:
    """Verify that nothing of a deleted batch is readable.

    Searches the log and the store. Exit codes: 0 nothing is readable, 1 something still is.

    Example: `tidemill purge batch_019c`
    """
    from tidemill.ops import purge as work
    from tidemill.terminal import say

    if bool(batch) == bool(project):
        refuse("pass the id of a batch, or --project")
    return lambda settings, kafka: work.purge(settings, kafka, say, batch_id=batch or "", project=project or "")


def acls(
    *,
    apply: Annotated[
        bool, typer.Option("--apply", help="Create the topics and set the ACLs, as an administrator.")
    ] = False,
    user: Annotated[
        list[str] | None,
        typer.Option("--user", help="User of a role as ROLE=NAME; by default tidemill-ROLE."),
    ] = None,
    config: Config = None,
) -> None:
    """Show or set the Kafka ACLs that each stage needs.

    Example: `tidemill acls --apply --user api=CN=api`
    """
    from tidemill.ops import acls
    from tidemill.schemas.log.acls import ROLES
    from tidemill.terminal import say

    users = {role: name for role, _, name in (found.partition("=") for found in user or ())}
    if wrong := [role for role, name in users.items() if role not in ROLES or not name]:
        refuse(f"--user {wrong[0]}: expected ROLE=NAME with one of the roles {', '.join(ROLES)}")
    if not apply:
        acls.show(say, users)
        return
    operate(acls.apply(load_settings(config), say, users))
