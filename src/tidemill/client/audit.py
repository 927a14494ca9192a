"""The command `audit`: who changed which keys, batches, files and settings."""

import sys
import time

import orjson
from rich.table import Table
from rich.text import Text

from tidemill.client.errors import Exit
from tidemill.client.http.client import Client
from tidemill.client.target import Target
from tidemill.terminal import show_table

PATH = "/admin/audit"


async def show(target: Target, params: dict[str, str], *, limit: int, as_json: bool) -> Exit:
    """Print entries of the audit log on stdout, the newest first.

    Args:
        target: The service.
        params: Filters: `project`, `actor`, `action`, `target`.
        limit: Number of entries.
        as_json: Print JSON lines instead of a table.
    """
    table = Table("time", "project", "key", "action", "target", "from", "detail", box=None)
    shown = 0
    async with Client(target.base_url, target.api_key) as client:
        async for found in client.pages(PATH, params):
            shown += 1
            if as_json:
                sys.stdout.buffer.write(orjson.dumps(found) + b"\n")
            else:
                table.add_row(*(Text(text) for text in _cells(found)))
            if shown >= limit:
                break
    if not as_json:
        show_table(table)
    return Exit.OK


def _cells(found: dict[str, object]) -> list[str]:
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(int(str(found["at"]))))
    detail = found["detail"] if isinstance(found["detail"], dict) else {}
    words = " ".join(f"{name}={text}" for name, text in detail.items() if name not in {"digest", "fields"})
    return [at, *(str(found[name]) for name in ("project", "actor", "action", "target", "address")), words]
