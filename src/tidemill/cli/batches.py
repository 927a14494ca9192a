"""The commands of a client on the command line; each imports what it needs when it is called."""

from pathlib import Path
from typing import Annotated

import typer

from tidemill.cli.invocation import Work, of_service
from tidemill.cli.options import Again, BatchId, ErrorsFile, Everything, Force, OutputFile, ReceiptFile

# ruff: noqa: PLC0415 - what one command needs, the others need not wait for

keys_app = typer.Typer(help="Keys to the API, and producers' tokens.", no_args_is_help=True)


@of_service
def run(
    file: Annotated[Path, typer.Argument(help="JSONL, one request a line; - is stdin.")],
    *,
    output: OutputFile = None,
    errors: ErrorsFile = None,
    receipt: ReceiptFile = None,
    name: Annotated[str | None, typer.Option(help="What the batch is called; else as the file.")] = None,
    metadata: Annotated[list[str] | None, typer.Option(help="KEY=VALUE, kept with the batch; repeatable.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="By default the url of the first line.")] = None,
    window: Annotated[str, typer.Option(help="How long the batch may take.")] = "24h",
    parallel: Annotated[
        int, typer.Option(min=1, max=64, help="Batches at one time, where the file is more than one holds.")
    ] = 4,
    again: Again = False,
    force: Force = False,
    everything: Everything = False,
) -> Work:
    """Run a file of any size: upload, follow, download, check.

    Ctrl-C leaves it running; the same command goes on with it.
    """
    from tidemill.client.runs.job import Order
    from tidemill.client.runs.job import run as work
    from tidemill.client.runs.paths import Sink, pairs

    sink = Sink(output=output, errors=errors, receipt=receipt)
    order = Order(
        endpoint=endpoint,
        window=window,
        metadata=pairs(metadata or []) | ({"name": name} if name else {}),
        parallel=parallel,
        again=again,
        force=force,
        everything=everything,
    )
    return lambda talk, target: work(talk, target, file, sink, order)


@of_service
def watch(
    batch: BatchId,
    *,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where results go; else they are not fetched.")
    ] = None,
    errors: ErrorsFile = None,
    receipt: ReceiptFile = None,
    source: Annotated[Path | None, typer.Option("--input", help="The batch's input, to check against.")] = None,
    force: Force = False,
    everything: Everything = False,
) -> Work:
    """Follow a batch to its end; with -o, fetch and check its results."""
    from tidemill.client.batches import watch as work
    from tidemill.client.runs.paths import Sink

    sink = Sink(output=output, errors=errors, receipt=receipt)
    return lambda talk, target: work(talk, target, batch, sink, source, force=force, everything=everything)


@of_service
def list_batches(
    limit: Annotated[int, typer.Option(min=1, max=100_000)] = 20,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> Work:
    """Show the newest batches."""
    from tidemill.client.batches import show

    return lambda _, target: show(target, limit=limit, as_json=as_json)


@of_service
def cancel(batch: BatchId) -> Work:
    """Cancel a batch; what it has done by then is kept."""
    from tidemill.client.batches import cancel as work

    return lambda talk, target: work(talk, target, batch)


@of_service
def delete(batch: BatchId) -> Work:
    """Delete a batch and its results: nothing of its content can be had or run again."""
    from tidemill.client.batches import delete as work

    return lambda talk, target: work(talk, target, batch)


@of_service
def usage(
    since: Annotated[
        str | None, typer.Option(help="The first day, like 2026-11-23, in UTC; else 30 days.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="The first day that is left out.")] = None,
    by: Annotated[str | None, typer.Option(help="Of project, model, day, batch, with commas between.")] = "model",
    project: Annotated[
        str | None, typer.Option(help="Another project, or * for all; with an operator's key.")
    ] = None,
    *,
    as_csv: Annotated[bool, typer.Option("--csv", help="For a spreadsheet.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> Work:
    """Show tokens and cost of the batches that are over."""
    from tidemill.client import usage as report

    query = report.query(since=since, until=until, by=by, project=project)
    return lambda _, target: report.show(target, query, as_csv=as_csv, as_json=as_json)


@of_service
def audit(
    project: Annotated[str | None, typer.Option(help="Only what was done to this project.")] = None,
    action: Annotated[str | None, typer.Option(help="Only this, like key.create or batch.delete.")] = None,
    about: Annotated[str | None, typer.Option("--target", help="Only what was done to this object.")] = None,
    actor: Annotated[str | None, typer.Option("--key", help="Only what this key asked for.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000)] = 50,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> Work:
    """Show who did what: keys, cancels, deletions, runs of old lines, settings. It takes an admin's key."""
    from tidemill.client import audit as trail

    given = {"project": project, "action": action, "target": about, "actor": actor}
    params = {name: value for name, value in given.items() if value}
    return lambda _, target: trail.show(target, params, limit=limit, as_json=as_json)


@keys_app.command("create")
@of_service
def create_key(
    *,
    name: Annotated[str, typer.Option(help="What it is for.")],
    project: Annotated[str | None, typer.Option(help="Whose it is; by default the asking key's project.")] = None,
    role: Annotated[str, typer.Option(help="read, write, admin or operator.")] = "write",
    life_seconds: Annotated[int | None, typer.Option("--expires-in", help="Seconds; else until revoked.")] = None,
) -> Work:
    """Make a key; its secret is printed on stdout, once."""
    from tidemill.client import keys

    return lambda talk, target: keys.create(
        talk, target, name=name, project=project, role=role, life_seconds=life_seconds
    )


@keys_app.command("list")
@of_service
def list_keys(
    project: Annotated[str | None, typer.Option(help="Only its keys.")] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> Work:
    """Show the keys, without their secrets."""
    from tidemill.client import keys

    return lambda _, target: keys.show(target, project=project, as_json=as_json)


@keys_app.command("revoke")
@of_service
def revoke_key(key: Annotated[str, typer.Argument(help="Id of the key.")]) -> Work:
    """Revoke a key: within seconds it opens nothing any more."""
    from tidemill.client import keys

    return lambda talk, target: keys.revoke(talk, target, key)


@keys_app.command("token")
@of_service
def make_token(
    *,
    stream: Annotated[str, typer.Option(help="The stream that it lets lines into.")],
    life: Annotated[str, typer.Option("--for", help="How long it is good, like 30m, 1h or 24h.")] = "1h",
) -> Work:
    """Make a direct producer's token for one stream; it is printed on stdout."""
    from tidemill.client import keys

    life_seconds = keys.seconds_of(life)
    return lambda talk, target: keys.token(talk, target, stream=stream, life_seconds=life_seconds)


@keys_app.command("make")
def make_key() -> None:
    """Print a good key for TIDEMILL_API_KEY; asks no service."""
    from tidemill.schemas.resources import access

    secret = access.new_secret()
    typer.echo(secret)
    typer.echo(f"What may stand in its place: TIDEMILL_API_KEY_SHA256={access.digest(secret)}", err=True)


@keys_app.command("init")
def make_signing_key() -> None:
    """Print a new pair of keys for signatures, as variables; asks no service."""
    from tidemill.schemas.signing import Signer

    made = Signer.made()
    typer.echo(f"TIDEMILL_SIGNING_KEY={made.text}")
    typer.echo(f"TIDEMILL_VERIFY_KEYS={made.public}")
    typer.echo("The first is a secret of the api alone. Ingest needs the second, which is none.", err=True)


def verify(
    file: Annotated[Path, typer.Argument(help="The batch's input.")],
    output: Annotated[Path | None, typer.Argument(help="Its output file.")] = None,
    errors: Annotated[Path | None, typer.Argument(help="Its error file.")] = None,
) -> None:
    """Check files, without a service: each input line has exactly one result line."""
    from tidemill.client import batches as command
    from tidemill.terminal import talk

    raise typer.Exit(command.verify(talk(), file, output, errors))
