"""The command `usage`: what was run and what it cost, as a table, as CSV or as JSON."""

import csv
import datetime as dt
import sys
from typing import Any

import orjson
from rich.table import Table
from rich.text import Text

from tidemill.client.exit_codes import Exit
from tidemill.client.http import Client
from tidemill.client.runs.paths import InputFault
from tidemill.client.target import Target
from tidemill.terminal import show_table

PATH = "/usage"
GROUPS = {"project": "project", "model": "model", "day": "day", "batch": "batch_id"}
"""What `--by` may name, and the field that holds it."""
NUMBERS = ("batches", "lines", "input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")
COSTS = ("input", "output", "total")
FORMULAS = ("=", "+", "-", "@", "\t", "\r")
"""What makes a spreadsheet take a cell for a formula."""


async def show(target: Target, params: dict[str, str], *, as_csv: bool, as_json: bool) -> Exit:
    """Print usage on stdout.

    Args:
        target: The service.
        params: The query; see `query`.
        as_csv: With a line of names first.
        as_json: One JSON object a line.
    """
    by = [name for name in params.get("group_by", "").split(",") if name]
    names = [*by, *NUMBERS, *(f"cost_{part}" for part in COSTS)]
    table = Table(*names, box=None)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if as_csv:
        writer.writerow(names)
    async with Client(target.base_url, target.api_key) as client:
        async for found in client.pages(PATH, params):
            if as_json:
                sys.stdout.buffer.write(orjson.dumps(found) + b"\n")
            elif as_csv:
                writer.writerow(map(cell, _cells(found, by)))
            else:
                table.add_row(*(Text(text) for text in _cells(found, by)))
    if not as_csv and not as_json:
        show_table(table)
    return Exit.OK


def query(*, since: str | None, until: str | None, by: str | None, project: str | None) -> dict[str, str]:
    """The query of what the command line asks for.

    Args:
        since: The first day, `2026-11-23`, in UTC.
        until: The first day that is left out.
        by: Keys of `GROUPS`, with commas between them.
        project: Another project than the key's, or `*`.

    Raises:
        InputFault: A day or a group is none.
    """
    params = {"start_time": _midnight(since), "end_time": _midnight(until), "group_by": by, "project": project}
    if unknown := [name for name in (by or "").split(",") if name and name not in GROUPS]:
        raise InputFault(f"--by takes {', '.join(GROUPS)}; not {', '.join(unknown)}")
    return {name: value for name, value in params.items() if value}


def cell(text: str) -> str:
    """A cell of CSV that no spreadsheet takes for a formula: names of models and projects are not ours."""
    return f"'{text}" if text.startswith(FORMULAS) else text


def _cells(found: dict[str, Any], by: list[str]) -> list[str]:
    groups = [found.get(GROUPS[name]) or "" for name in by]
    return [*groups, *(str(found[name]) for name in NUMBERS), *(found["cost"][part] for part in COSTS)]


def _midnight(day: str | None) -> str | None:
    if not day:
        return None
    try:
        date = dt.datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=dt.UTC)
    except ValueError as error:
        raise InputFault(f"a day is written like 2026-11-23; not {day}") from error
    return str(int(date.timestamp()))
