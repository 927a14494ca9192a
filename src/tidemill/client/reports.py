"""The commands `usage`, `audit` and `top`: tokens and cost, who changed what, and the present load."""

import datetime as dt
from collections.abc import Iterable
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.text import Text

from tidemill.client import batches, catalog, listing
from tidemill.client.errors import Exit, OtherService, Refused, UsageError
from tidemill.client.http.client import Client
from tidemill.client.progress import duration
from tidemill.terminal import local_time, tabulated, words

GROUPS = {"project": "project", "model": "model", "day": "day", "batch": "batch_id"}
"""Values of `--by`, and their fields in the answer."""
NUMBERS = (
    "batches", "lines", "copies", "input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "images",
    "audio_seconds",
)  # fmt: skip
COSTS = ("input", "output", "units", "total")
PROJECT = "project"
AUDIT_COLUMNS = ("time", PROJECT, "key", "action", "target", words("from"), words("detail"))
"""Ids are to be copied, so they do not wrap."""
QUEUE_COLUMNS = ("stage", words("model"), "batches", "lines", "per second", "left")
SERVER_COLUMNS = (
    words("server"),
    "calls",
    "waiting",
    "queued",
    "refused",
    "lines/s",
    "tokens/s",
    "p50",
    "p99",
    words("state"),
)
MODEL_COLUMNS = (words("model"), "calls", "waiting", "lines/s", words("servers"), "state")
WIDE: Final = 96
"""Columns of a terminal that shows all columns of servers; a narrower one leaves some out."""
NARROW_COLUMNS: Final = (0, 1, 2, 4, 5, 9)
TOP_MAX: Final = 10
"""Rows of each table of `top`."""
DETAILS_HIDDEN = {"digest", "fields"}
"""Details of audit entries that only machines read."""


async def show_usage(client: Client, params: dict[str, str], *, as_csv: bool, as_json: bool) -> Exit:
    """Print usage on stdout, as a table, CSV or JSON lines; for `params` see `query`."""
    by = [name for name in params.get("group_by", "").split(",") if name]
    columns = [*by, *NUMBERS, *(f"cost_{part}" for part in COSTS)]

    def row(found: dict[str, Any]) -> list[str]:
        groups = [found.get(GROUPS[name]) or "" for name in by]
        numbers = (str(found[name]) if as_csv else f"{found[name]:,}" for name in NUMBERS)
        return [*groups, *numbers, *(found["cost"][part] for part in COSTS)]

    def is_idle(column: str, cells: set[str]) -> bool:
        return column not in by and all(not float(cell.replace(",", "")) for cell in cells)

    return await listing.show(
        client, "/usage", params, columns, row, as_csv=as_csv, as_json=as_json, is_idle=is_idle
    )


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


async def show_audit(client: Client, params: dict[str, str], *, limit: int, as_json: bool) -> Exit:
    """Print entries of the audit log on stdout, the newest first, filtered by project, actor, action or target."""
    return await listing.show(
        client,
        "/admin/audit",
        params,
        AUDIT_COLUMNS,
        _audit_row,
        limit=limit,
        as_json=as_json,
        is_idle=lambda column, cells: column == PROJECT and len(cells) == 1,
    )


def _audit_row(found: dict[str, Any]) -> list[str]:
    detail = found["detail"] if isinstance(found["detail"], dict) else {}
    words = " ".join(f"{name}={text}" for name, text in detail.items() if name not in DETAILS_HIDDEN)
    fields = (str(found[name]) for name in ("project", "actor", "action", "target", "address"))
    return [local_time(found["at"]), *fields, words]


async def top(client: Client) -> Exit:
    """Follow servers, models and the newest batches on the terminal."""
    return await listing.follow(lambda width: _overview(client, width))


async def _overview(client: Client, width: int) -> RenderableType:
    """Tables of servers, models and batches; a key that is not an operator's gets queues, not the first two."""
    found = await client.send_retrying("GET", "/queues")
    arrived, done = (f"{found[f'lines_per_second_{side}']:,.1f}" for side in ("in", "out"))
    rates = f"{arrived} lines/s in, {done} out (mean of 5 minutes)"
    tables: list[RenderableType]
    try:
        servers = [each async for each in client.pages("/admin/servers", {}, limit=TOP_MAX)]
        models = [_model_row(each) async for each in client.pages("/admin/models", {}, limit=TOP_MAX)]
    except (Refused, OtherService) as error:
        queues = tabulated(QUEUE_COLUMNS, [_queue_row(each) for each in found.objects("data")[:TOP_MAX]], width)
        tables = [Text(f"servers: {error}", "yellow"), "", queues]
    else:
        tables = [servers_table(servers, width), "", tabulated(MODEL_COLUMNS, models, width)]
    newest = await batches.newest(client, TOP_MAX, width)
    return Group(Text(f"{rates}   (q ends)", "bold"), "", *tables, "", newest)


def servers_table(servers: Iterable[dict[str, Any]], width: int) -> RenderableType:
    """The load of servers, as a table for a terminal with `width` columns."""
    places = range(len(SERVER_COLUMNS)) if width >= WIDE else NARROW_COLUMNS
    rows = [[row[place] for place in places] for row in map(_server_row, servers)]
    return tabulated([SERVER_COLUMNS[place] for place in places], rows, width)


def _server_row(server: dict[str, Any]) -> list[str | Text]:
    """The cells under `SERVER_COLUMNS`."""
    load = server["load"]
    if load is None:
        return [server["id"], *[""] * 8, server["fault"] or ("not reported" if server["used_by"] else "unused")]
    wrong = server["fault"] or catalog.stall(server)
    state = Text(wrong, "red") if wrong else "at work" if load["in_flight"] else "ready"
    times = (load["duration_seconds"][name] for name in ("p50", "p99"))
    queued = load["queued"]
    return [
        server["id"],
        f"{load['in_flight']:,}/{load['limit']:,}",
        f"{load['lines_waiting']:,}",
        "" if queued is None else f"{queued:,}",
        f"{load['refused']:,}",
        f"{load['lines_per_second']:,.1f}",
        f"{load['tokens_per_second']:,.0f}",
        *("" if seconds is None else f"{seconds:.2f} s" for seconds in times),
        state,
    ]


def _model_row(model: dict[str, Any]) -> list[str]:
    """The cells of a model's load, under `MODEL_COLUMNS`."""
    load = model["load"] or {"in_flight": 0, "lines_waiting": 0, "lines_per_second": 0.0}
    state = model["fault"] or ("paused" if model["settings"].get("paused") else "")
    numbers = (f"{load[name]:,}" for name in ("in_flight", "lines_waiting"))
    return [model["id"], *numbers, f"{load['lines_per_second']:,.1f}", ", ".join(model["used_by"]), state]


def _queue_row(queue: dict[str, Any]) -> list[str]:
    left = queue["lag_seconds"]
    numbers = (f"{queue[name]:,}" for name in ("batches", "lines"))
    rate = queue["lines_per_second"]
    pace = "" if rate is None else f"{rate:,.1f}"
    return [queue["stage"], queue["model"] or "", *numbers, pace, "" if left is None else duration(left)]
