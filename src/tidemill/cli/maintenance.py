"""The commands `doctor`, `rebuild`, `purge` and `acls`."""

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


def doctor(config: Config = None, data: DataFolder = None) -> None:
    """Check settings, Kafka, store, backends and batches.

    Every finding says how to fix it. Exit codes: 0 healthy, possibly with warnings; 1 something fails.
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
    """Show or set the Kafka ACLs that each stage needs."""
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
