"""The commands of keys that ask a service: an admin's `create`, `list` and `revoke`, and a writer's `token`."""

import re
import sys
import time

import orjson
from rich.table import Table
from rich.text import Text

from tidemill.client.exit_codes import Exit
from tidemill.client.http import Client
from tidemill.client.runs.paths import InputFault
from tidemill.client.target import Target
from tidemill.schemas.resources.access import ApiKey
from tidemill.terminal import Console, show_table

PATH = "/admin/keys"
TOKENS = "/intake/tokens"
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


async def create(
    talk: Console, target: Target, *, name: str, project: str | None, role: str, life_seconds: int | None
) -> Exit:
    """Make a key; its secret goes to stdout, all else to stderr, so that a script can keep it."""
    wish = {"name": name, "project": project, "role": role, "expires_in_seconds": life_seconds}
    async with Client(target.base_url, target.api_key) as client:
        answer = await client.post(PATH, {field: value for field, value in wish.items() if value is not None})
    key = ApiKey.model_validate(answer)
    talk.print(f"{key.id}: a key of the project {key.project} with the role {key.role}.")
    talk.print("This is its secret. It is shown once; keep it now:")
    sys.stdout.write(f"{answer['secret']}\n")
    return Exit.OK


async def show(target: Target, *, project: str | None, as_json: bool) -> Exit:
    """Print the keys on stdout, as a table or as one JSON object a line."""
    table = Table("key", "name", "project", "role", "secret", "created", "state", box=None)
    async with Client(target.base_url, target.api_key) as client:
        async for found in client.pages(PATH, {"project": project} if project else {}):
            if as_json:
                sys.stdout.buffer.write(orjson.dumps(found) + b"\n")
                continue
            key = ApiKey.model_validate(found)
            words = (
                key.id,
                key.name,
                key.project,
                key.role,
                key.hint,
                _day(key.created_at),
                state(key, time.time()),
            )
            table.add_row(*(Text(word) for word in words))
    if not as_json:
        show_table(table)
    return Exit.OK


async def revoke(talk: Console, target: Target, key_id: str) -> Exit:
    """Revoke a key; doing it twice does no harm."""
    async with Client(target.base_url, target.api_key) as client:
        await client.delete(f"{PATH}/{key_id}")
    talk.print(f"{key_id} is revoked: within seconds it opens nothing any more.")
    return Exit.OK


async def token(talk: Console, target: Target, *, stream: str, life_seconds: int) -> Exit:
    """Make a producer's token; it goes to stdout, all else to stderr."""
    async with Client(target.base_url, target.api_key) as client:
        made = await client.post(TOKENS, {"stream": stream, "expires_in_seconds": life_seconds})
    until = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(made["expires_at"]))
    talk.print(f"A token for the stream {stream} of {made['project']}, good until {until}.")
    sys.stdout.write(f"{made['token']}\n")
    return Exit.OK


def seconds_of(text: str) -> int:
    """The seconds of a length like `90s`, `30m`, `1h` or `1d`.

    Raises:
        InputFault: It is none.
    """
    found = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if found is None:
        raise InputFault(f"'{text}' is no length of time: 30m, 1h, 24h")
    return int(found[1]) * UNITS[found[2]]


def state(key: ApiKey, now: float) -> str:
    """What has become of a key, in a word and a day."""
    if key.revoked_at is not None:
        return f"revoked {_day(key.revoked_at)}"
    if key.expires_at is not None:
        return f"{'expired' if key.expires_at <= now else 'until'} {_day(key.expires_at)}"
    return "good"


def _day(at: int) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(at))
