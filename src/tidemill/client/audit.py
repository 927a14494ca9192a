"""The command `audit`: who changed which keys, batches, files and settings."""

from typing import Any

from tidemill.client import listing
from tidemill.client.errors import Exit
from tidemill.client.target import Target
from tidemill.terminal import local_time

COLUMNS = ("time", "project", "key", "action", "target", "from", "detail")
HIDDEN = {"digest", "fields"}
"""Details that only machines read."""


async def show(target: Target, params: dict[str, str], *, limit: int, as_json: bool) -> Exit:
    """Print entries of the audit log on stdout, the newest first.

    Args:
        target: The service.
        params: Filters: `project`, `actor`, `action`, `target`.
        limit: Number of entries.
        as_json: Print JSON lines instead of a table.
    """
    return await listing.show(target, "/admin/audit", params, COLUMNS, _row, limit=limit, as_json=as_json)


def _row(found: dict[str, Any]) -> list[str]:
    detail = found["detail"] if isinstance(found["detail"], dict) else {}
    words = " ".join(f"{name}={text}" for name, text in detail.items() if name not in HIDDEN)
    fields = (str(found[name]) for name in ("project", "actor", "action", "target", "address"))
    return [local_time(found["at"]), *fields, words]
