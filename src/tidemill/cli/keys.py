"""The commands below `keys`."""

from typing import Annotated, Literal

import typer

from tidemill.cli.invocation import Work, client_command
from tidemill.cli.options import AsJson

app = typer.Typer(help="Manage API keys and producers' tokens.", no_args_is_help=True)


@app.command("create")
@client_command
def create(
    *,
    name: Annotated[str, typer.Option(help="Purpose of the key.")],
    project: Annotated[str | None, typer.Option(help="Its project; by default the project of your key.")] = None,
    role: Annotated[
        Literal["read", "write", "admin", "operator"], typer.Option(help="Rights of the key.")
    ] = "write",
    life_seconds: Annotated[
        int | None,
        typer.Option("--expires-in", help="Lifetime in seconds; by default unlimited."),
    ] = None,
) -> Work:
    """Create a key; prints its secret once, on stdout.

    Example: `tidemill keys create --name nightly --project crawl`
    """
    from tidemill.client import keys

    return lambda console, client: keys.create(
        console, client, name=name, project=project, role=role, life_seconds=life_seconds
    )


@app.command("list")
@client_command
def list_keys(
    project: Annotated[str | None, typer.Option(help="Only keys of this project.")] = None,
    *,
    as_json: AsJson = False,
) -> Work:
    """List the keys, without secrets.

    Example: `tidemill keys list --project crawl`
    """
    from tidemill.client import keys

    return lambda _, client: keys.show(client, project=project, as_json=as_json)


@app.command("revoke")
@client_command
def revoke(key: Annotated[str, typer.Argument(metavar="KEY", help="Id of the key.")]) -> Work:
    """Revoke a key; it takes effect within seconds.

    Example: `tidemill keys revoke key_019c`
    """
    from tidemill.client import keys

    return lambda console, client: keys.revoke(console, client, key)


@app.command("token")
@client_command
def create_token(
    *,
    stream: Annotated[str, typer.Option(help="Stream to which the token may send lines.")],
    life: Annotated[str, typer.Option("--for", help="Lifetime, like 30m, 1h or 24h.")] = "1h",
) -> Work:
    """Create a producer's token for one stream; prints it on stdout.

    Example: `tidemill keys token --stream crawl --for 24h`
    """
    from tidemill.client import keys

    life_seconds = keys.seconds_of(life)
    return lambda console, client: keys.token(console, client, stream=stream, life_seconds=life_seconds)


@app.command("make")
def make() -> None:
    """Generate a secret for TIDEMILL_API_KEY, offline.

    Example: `tidemill keys make`
    """
    from tidemill.schemas.resources import access

    secret = access.new_secret()
    typer.echo(secret)
    typer.echo(f"The service may get its hash instead: TIDEMILL_API_KEY_SHA256={access.digest(secret)}", err=True)


@app.command("init")
def init() -> None:
    """Generate a signing key pair as environment variables, offline.

    Example: `tidemill keys init`
    """
    from tidemill.schemas.log.signing import Signer

    signer = Signer.made()
    typer.echo(f"TIDEMILL_SIGNING_KEY={signer.text}")
    typer.echo(f"TIDEMILL_VERIFY_KEYS={signer.public}")
    typer.echo("The first is a secret, for the api only. The second is public, for ingest.", err=True)
