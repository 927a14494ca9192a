"""The commands `keys create`, `keys list`, `keys revoke` (for admins) and `keys token` (for writers)."""

import sys
import time

from tidemill.client import listing
from tidemill.client.errors import Exit, UsageError
from tidemill.client.http.answer import Answer
from tidemill.client.http.client import Client
from tidemill.schemas.resources.access import ApiKey
from tidemill.schemas.resources.batch import window_seconds
from tidemill.terminal import Console, local_time, words

PATH = "/admin/keys"
TOKENS = "/intake/tokens"


async def create(
    console: Console, client: Client, *, name: str, project: str | None, role: str, life_seconds: int | None
) -> Exit:
    """Create a key; prints the secret on stdout and everything else on stderr."""
    fields = {"name": name, "project": project, "role": role, "expires_in_seconds": life_seconds}
    body = {field: value for field, value in fields.items() if value is not None}
    answer = await client.send("POST", PATH, json=body)
    key = answer.read(ApiKey)
    console.print(f"Created {key.id} for project {key.project} with role {key.role}.")
    console.print("Save the secret now, it is not shown again:")
    sys.stdout.write(f"{answer['secret']}\n")
    return Exit.OK


async def show(client: Client, *, project: str | None, as_json: bool) -> Exit:
    """Print the keys on stdout, as a table or as JSON lines."""
    columns = ("key", words("name"), words("project"), "role", "secret", "created", words("state"))
    return await listing.show(
        client, PATH, {"project": project} if project else {}, columns, _row, as_json=as_json
    )


def _row(found: Answer) -> list[str]:
    key = found.read(ApiKey)
    state_now = state(key, time.time())
    return [key.id, key.name, key.project, key.role, key.hint, _day(key.created_at), state_now]


async def revoke(console: Console, client: Client, key_id: str) -> Exit:
    """Revoke a key."""
    await client.send_retrying("DELETE", f"{PATH}/{key_id}")
    console.print(f"Revoked {key_id}. It takes effect within seconds.")
    return Exit.OK


async def token(console: Console, client: Client, *, stream: str, life_seconds: int) -> Exit:
    """Create a producer's token; prints it on stdout and everything else on stderr."""
    issued = await client.send("POST", TOKENS, json={"stream": stream, "expires_in_seconds": life_seconds})
    until = local_time(issued["expires_at"])
    console.print(f"Token for stream {stream} of project {issued['project']}, valid until {until}.")
    sys.stdout.write(f"{issued['token']}\n")
    return Exit.OK


def seconds_of(text: str) -> int:
    """The seconds of a duration like `90s`, `30m`, `1h` or `1d`.

    Raises:
        UsageError: The text is not a duration.
    """
    try:
        return window_seconds(text)
    except ValueError as error:
        raise UsageError(f"'{text}' is not a duration like 30m, 1h or 24h") from error


def state(key: ApiKey, now: float) -> str:
    """The state of a key in a word, with its day."""
    if key.revoked_at is not None:
        return f"revoked {_day(key.revoked_at)}"
    if key.expires_at is not None:
        return f"{'expired' if key.expires_at <= now else 'until'} {_day(key.expires_at)}"
    return "active"


def _day(at: int) -> str:
    return local_time(at).split()[0]
