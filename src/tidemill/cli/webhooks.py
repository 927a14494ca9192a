"""The commands below `webhooks`."""

from typing import Annotated, Literal

import typer

from tidemill.cli.invocation import Work, client_command
from tidemill.cli.options import AsJson, Config

app = typer.Typer(invoke_without_command=True)

EndpointId = Annotated[str, typer.Argument(metavar="ENDPOINT", help="Id of the endpoint.")]
Event = Literal["batch.completed", "batch.failed", "batch.expired", "batch.cancelled"]


@app.callback()
def stage(context: typer.Context, config: Config = None) -> None:
    """Manage webhooks, which the service calls when batches end; without a command below, run the stage.

    Example: `tidemill webhooks --config tidemill.toml`
    """
    from tidemill.cli.services import webhooks

    if context.invoked_subcommand is None:
        webhooks(config)


@app.command("create")
@client_command
def create(
    url: Annotated[str, typer.Argument(help="Where the events go, https://…")],
    *,
    name: Annotated[str, typer.Option(help="Label of the endpoint.")] = "webhook",
    event: Annotated[list[str] | None, typer.Option(help="Type of event; repeatable, by default all.")] = None,
) -> Work:
    """Create an endpoint; prints its signing secret once, on stdout.

    Example: `tidemill webhooks create https://example.org/hook --event batch.failed`
    """
    from tidemill.client import webhooks

    return lambda console, client: webhooks.create(console, client, url=url, name=name, types=event or ())


@app.command("list")
@client_command
def list_endpoints(*, as_json: AsJson = False) -> Work:
    """List the endpoints, and which of them fail.

    Example: `tidemill webhooks list`
    """
    from tidemill.client import webhooks

    return lambda _, client: webhooks.show_all(client, as_json=as_json)


@app.command("show")
@client_command
def show(endpoint: EndpointId, *, as_json: AsJson = False) -> Work:
    """Show an endpoint, without its secret.

    Example: `tidemill webhooks show we_019c`
    """
    from tidemill.client import webhooks

    return lambda _, client: webhooks.show(client, endpoint, as_json=as_json)


@app.command("update")
@client_command
def update(
    endpoint: EndpointId,
    *,
    url: Annotated[str | None, typer.Option(help="New URL.")] = None,
    name: Annotated[str | None, typer.Option(help="New label.")] = None,
    event: Annotated[list[str] | None, typer.Option(help="Type of event; repeatable.")] = None,
) -> Work:
    """Change an endpoint; one that was disabled is enabled, also without a change.

    Example: `tidemill webhooks update we_019c --name nightly`
    """
    from tidemill.client import webhooks

    return lambda console, client: webhooks.update(
        console, client, endpoint, url=url, name=name, types=event or ()
    )


@app.command("rotate")
@client_command
def rotate(
    endpoint: EndpointId,
    *,
    keep_old: Annotated[
        bool, typer.Option("--keep-old", help="Let the old secret stay valid for 24 hours.")
    ] = False,
) -> Work:
    """Replace the signing secret; prints the new one once, on stdout.

    Example: `tidemill webhooks rotate we_019c --keep-old`
    """
    from tidemill.client import webhooks

    return lambda console, client: webhooks.rotate(console, client, endpoint, keeps_old=keep_old)


@app.command("test")
@client_command
def send_test(
    endpoint: EndpointId, event: Annotated[Event, typer.Option(help="Type of the event.")] = "batch.completed"
) -> Work:
    """Send a sample event, and show the receiver's reply.

    Exit codes: 0 the reply is 2xx, 1 it is another.

    Example: `tidemill webhooks test we_019c --event batch.failed`
    """
    from tidemill.client import webhooks

    return lambda console, client: webhooks.test(console, client, endpoint, event)


@app.command("deliveries")
@client_command
def deliveries(
    endpoint: EndpointId,
    *,
    state: Annotated[
        Literal["pending", "succeeded", "failed"] | None, typer.Option(help="Only those in this state.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="Number of deliveries.")] = 50,
    as_json: AsJson = False,
) -> Work:
    """List the deliveries of an endpoint, the newest first.

    Example: `tidemill webhooks deliveries we_019c --state failed`
    """
    from tidemill.client import webhooks

    return lambda _, client: webhooks.deliveries(client, endpoint, only=state, limit=limit, as_json=as_json)


@app.command("resend")
@client_command
def resend(
    endpoint: EndpointId, delivery: Annotated[str, typer.Argument(metavar="DELIVERY", help="Id of the delivery.")]
) -> Work:
    """Send an ended delivery again, with the same id.

    Example: `tidemill webhooks resend we_019c whd_019c`
    """
    from tidemill.client import webhooks

    return lambda console, client: webhooks.resend(console, client, endpoint, delivery)


@app.command("delete")
@client_command
def delete(endpoint: EndpointId) -> Work:
    """Delete an endpoint; events that wait for it are not sent.

    Example: `tidemill webhooks delete we_019c`
    """
    from tidemill.client import webhooks

    return lambda console, client: webhooks.delete(console, client, endpoint)
