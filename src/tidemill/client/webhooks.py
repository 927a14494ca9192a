"""The commands below `webhooks`. A secret goes to stdout, everything else to stderr."""

import sys
from collections.abc import Sequence
from typing import Any, Final

from tidemill.client import listing
from tidemill.client.errors import Exit
from tidemill.client.http.client import Client
from tidemill.terminal import Console, local_time, show_fields, show_json, words

PATH: Final = "/webhook_endpoints"
TYPES: Final = ("batch.completed", "batch.failed", "batch.expired", "batch.cancelled")


async def create(console: Console, client: Client, *, url: str, name: str, types: Sequence[str]) -> Exit:
    """Create an endpoint, by default for all types of events; prints its secret."""
    body = {"url": url, "name": name, "event_types": list(types) or list(TYPES)}
    found = await client.send("POST", PATH, json=body)
    console.print(f"Created {found['id']} for {', '.join(found['event_types'])}.")
    return _secret(console, found)


async def show_all(client: Client, *, as_json: bool) -> Exit:
    """Print the endpoints on stdout, as a table or as JSON lines."""
    columns = ("endpoint", words("name"), "url", words("events"), words("state"))
    return await listing.show(client, PATH, {}, columns, _row, as_json=as_json)


def _row(found: dict[str, Any]) -> list[str]:
    events = ", ".join(each.removeprefix("batch.") for each in found["event_types"])
    return [found["id"], found["name"], found["url"], events, state(found["tidemill"])]


def state(extras: dict[str, Any]) -> str:
    """The state of an endpoint in words."""
    if not extras["enabled"]:
        return f"disabled {local_time(extras['disabled_at'])}"
    since = extras["failing_since"]
    return "ok" if since is None else f"failing since {local_time(since)}"


async def show(client: Client, endpoint_id: str, *, as_json: bool) -> Exit:
    """Print an endpoint on stdout, its fields as lines or as JSON."""
    found = await client.send_retrying("GET", f"{PATH}/{endpoint_id}")
    if as_json:
        show_json(found)
    else:
        show_fields(dict(zip(("endpoint", "name", "url", "events", "state"), _row(found), strict=True)))
    return Exit.OK


async def update(
    console: Console,
    client: Client,
    endpoint_id: str,
    *,
    url: str | None,
    name: str | None,
    types: Sequence[str],
) -> Exit:
    """Change an endpoint, and enable it."""
    fields = {"url": url, "name": name, "event_types": list(types) or None}
    body = {field: value for field, value in fields.items() if value is not None}
    found = await client.send_retrying("POST", f"{PATH}/{endpoint_id}", json=body)
    console.print(f"{found['id']} is enabled, for {', '.join(found['event_types'])} at {found['url']}")
    return Exit.OK


async def rotate(console: Console, client: Client, endpoint_id: str, *, keeps_old: bool) -> Exit:
    """Replace the secret of an endpoint; prints the new one."""
    body = {"keep_old_secret_active_for_24_hours": keeps_old}
    found = await client.send("POST", f"{PATH}/{endpoint_id}/rotate_secret", json=body)
    console.print("The old secret is valid for 24 hours more." if keeps_old else "The old secret is void.")
    return _secret(console, found)


async def test(console: Console, client: Client, endpoint_id: str, kind: str) -> Exit:
    """Send a sample event; a reply that is not 2xx is a failure."""
    found = await client.send("POST", f"{PATH}/{endpoint_id}/test", json={"event_type": kind})
    status = found["status_code"]
    is_good = 200 <= status < 300  # noqa: PLR2004  the class of success
    console.print(f"The receiver answered {status}.", style=None if is_good else "red")
    return Exit.OK if is_good else Exit.INEXACT


async def deliveries(client: Client, endpoint_id: str, *, only: str | None, limit: int, as_json: bool) -> Exit:
    """Print the deliveries of an endpoint on stdout, as a table or as JSON lines."""
    columns = ("delivery", "event", "batch", "state", "attempts", words("last"), "next")
    params = {} if only is None else {"state": only}
    path = f"{PATH}/{endpoint_id}/deliveries"
    return await listing.show(client, path, params, columns, _delivery, limit=limit, as_json=as_json)


def _delivery(found: dict[str, Any]) -> list[str]:
    last, next_at = found["last_attempt"] or {}, found["next_attempt_at"]
    said = str(last.get("status_code") or last.get("error") or "")
    return [
        found["id"], found["event_type"], found["batch_id"], found["state"], str(found["attempts"]), said,
        "" if next_at is None else local_time(next_at),
    ]  # fmt: skip


async def resend(console: Console, client: Client, endpoint_id: str, delivery_id: str) -> Exit:
    """Send an ended delivery again."""
    await client.send("POST", f"{PATH}/{endpoint_id}/deliveries/{delivery_id}/resend", json={})
    console.print(f"Sending {delivery_id} again: `tidemill webhooks deliveries {endpoint_id}` shows the result.")
    return Exit.OK


async def delete(console: Console, client: Client, endpoint_id: str) -> Exit:
    """Delete an endpoint."""
    await client.send_retrying("DELETE", f"{PATH}/{endpoint_id}")
    console.print(f"Deleted {endpoint_id}.")
    return Exit.OK


def _secret(console: Console, found: dict[str, Any]) -> Exit:
    console.print("Save the secret now, it is not shown again:")
    sys.stdout.write(f"{found['signing_secret']}\n")
    return Exit.OK
