"""The commands below `dead`."""

from typing import Annotated

import typer

from tidemill.cli.invocation import OperatorWork, operator_command, refuse
from tidemill.cli.options import AsJson

app = typer.Typer(
    help="Inspect and requeue dead letters: records that a stage could not read.", no_args_is_help=True
)


@app.command("list")
@operator_command
def list_letters(
    *,
    show_all: Annotated[bool, typer.Option("--all", help="Include requeued letters.")] = False,
    as_json: AsJson = False,
) -> OperatorWork:
    """List the records that a stage could not read.

    Example: `tidemill dead list --all`
    """
    from tidemill.ops import dead_letters
    from tidemill.terminal import say

    return lambda _, kafka: dead_letters.show_all(kafka, say, requeued_too=show_all, as_json=as_json)


@app.command("show")
@operator_command
def show(
    letter: Annotated[str, typer.Argument(metavar="ID", help="Its id, as shown by `tidemill dead list`.")],
    value_bytes: Annotated[int, typer.Option("--bytes", min=0, help="Bytes of the value to show.")] = 2_000,
    *,
    as_json: AsJson = False,
) -> OperatorWork:
    """Show one dead letter with its headers and value.

    Example: `tidemill dead show tidemill.outcomes/2/17`
    """
    from tidemill.ops import dead_letters
    from tidemill.terminal import say

    return lambda _, kafka: dead_letters.show(kafka, letter, say, value_bytes=value_bytes, as_json=as_json)


@app.command("requeue")
@operator_command
def requeue(
    chosen: Annotated[
        list[str] | None,
        typer.Argument(metavar="ID", help="Ids, as shown by `tidemill dead list`."),
    ] = None,
    *,
    all_waiting: Annotated[bool, typer.Option("--all", help="Requeue every letter not requeued yet.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Include letters requeued before.")] = False,
) -> OperatorWork:
    """Send dead letters to their topics again, after a fix.

    Example: `tidemill dead requeue tidemill.outcomes/2/17`
    """
    from tidemill.ops import dead_letters
    from tidemill.terminal import say

    if bool(chosen) == all_waiting:
        refuse("pass the ids of dead letters, or --all")
    return lambda _, kafka: dead_letters.requeue(kafka, None if all_waiting else chosen, say, again=again)
