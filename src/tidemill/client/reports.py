"""The commands `usage` and `audit`: tokens and cost, and who changed what."""

import datetime as dt
from typing import Any

from tidemill.client import listing
from tidemill.client.errors import Exit, UsageError
from tidemill.client.target import Target
from tidemill.terminal import local_time

GROUPS = {"project": "project", "model": "model", "day": "day", "batch": "batch_id"}
"""Values of `--by`, and their fields in the answer."""
NUMBERS = (
    "batches", "lines", "copies", "input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "images",
    "audio_seconds",
)  # fmt: skip
COSTS = ("input", "output", "units", "total")
AUDIT_COLUMNS = ("time", "project", "key", "action", "target", "from", "detail")
DETAILS_HIDDEN = {"digest", "fields"}
"""Details of audit entries that only machines read."""


async def show_usage(target: Target, params: dict[str, str], *, as_csv: bool, as_json: bool) -> Exit:
    """Print usage on stdout, as a table, CSV or JSON lines; for `params` see `query`."""
    by = [name for name in params.get("group_by", "").split(",") if name]
    columns = [*by, *NUMBERS, *(f"cost_{part}" for part in COSTS)]

    def row(found: dict[str, Any]) -> list[str]:
        groups = [found.get(GROUPS[name]) or "" for name in by]
        return [*groups, *(str(found[name]) for name in NUMBERS), *(found["cost"][part] for part in COSTS)]

    return await listing.show(target, "/usage", params, columns, row, as_csv=as_csv, as_json=as_json)


def query(*, since: str | None, until: str | None, by: str | None, project: str | None) -> dict[str, str]:
    """The query parameters for the options of the command.

    Days are like `2026-11-23`, in UTC, the last one exclusive. `by` has keys of `GROUPS`, comma-separated; the
    project `*` stands for all.

    Raises:
        UsageError: A day or a group is invalid.
    """
    params = {"start_time": _midnight(since), "end_time": _midnight(until), "group_by": by, "project": project}
    if unknown := [name for name in (by or "").split(",") if name and name not in GROUPS]:
        raise UsageError(f"--by: {', '.join(unknown)} is not one of {', '.join(GROUPS)}")
    return {name: value for name, value in params.items() if value}


def _midnight(day: str | None) -> str | None:
    if not day:
        return None
    try:
        date = dt.datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=dt.UTC)
    except ValueError as error:
        raise UsageError(f"{day} is not a day like 2026-11-23") from error
    return str(int(date.timestamp()))


async def show_audit(target: Target, params: dict[str, str], *, limit: int, as_json: bool) -> Exit:
    """Print entries of the audit log on stdout, the newest first, filtered by project, actor, action or target."""
    return await listing.show(
        target, "/admin/audit", params, AUDIT_COLUMNS, _audit_row, limit=limit, as_json=as_json
    )


def _audit_row(found: dict[str, Any]) -> list[str]:
    detail = found["detail"] if isinstance(found["detail"], dict) else {}
    words = " ".join(f"{name}={text}" for name, text in detail.items() if name not in DETAILS_HIDDEN)
    fields = (str(found[name]) for name in ("project", "actor", "action", "target", "address"))
    return [local_time(found["at"]), *fields, words]
