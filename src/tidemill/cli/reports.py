"""The commands `usage`, `audit` and `top`."""

from typing import Annotated

import typer

from tidemill.cli.invocation import Work, client_command
from tidemill.cli.options import AnyProject, AsJson


@client_command
def usage(
    since: Annotated[
        str | None,
        typer.Option(help="First day, like 2026-11-23 (UTC); by default 30 days ago."),
    ] = None,
    until: Annotated[str | None, typer.Option(help="Day after the last one.")] = None,
    by: Annotated[
        str | None, typer.Option(help="Group by project, model, day, batch; comma-separated.")
    ] = "model",
    project: AnyProject = None,
    *,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: AsJson = False,
) -> Work:
    """Show tokens and cost of finished batches.

    Example: `tidemill usage --by model,day --since 2026-11-01`
    """
    from tidemill.client import reports

    query = reports.query(since=since, until=until, by=by, project=project)
    return lambda _, client: reports.show_usage(client, query, as_csv=as_csv, as_json=as_json)


@client_command
def audit(
    project: Annotated[str | None, typer.Option(help="Only this project.")] = None,
    action: Annotated[str | None, typer.Option(help="Only this action, like key.create or batch.delete.")] = None,
    about: Annotated[str | None, typer.Option("--target", help="Only actions on this object.")] = None,
    actor: Annotated[str | None, typer.Option("--key", help="Only actions by this key.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="Number of entries.")] = 50,
    *,
    as_json: AsJson = False,
) -> Work:
    """Show who changed what: keys, cancels, deletions, reruns, settings.

    It needs an admin key.

    Example: `tidemill audit --action key.create`
    """
    from tidemill.client import reports

    given = {"project": project, "action": action, "target": about, "actor": actor}
    params = {name: value for name, value in given.items() if value}
    return lambda _, client: reports.show_audit(client, params, limit=limit, as_json=as_json)


@client_command
def top() -> Work:
    """Follow servers, models and the newest batches on the terminal; q or Ctrl-C ends it.

    Servers and models need an operator's key; others see queues.

    Example: `tidemill top`
    """
    from tidemill.client import reports

    return lambda _, client: reports.top(client)
