"""Prints a list of the service on stdout: as a table, as JSON lines, or as CSV."""

import csv
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import orjson
from rich.table import Table
from rich.text import Text

from tidemill.client.errors import Exit
from tidemill.client.http.client import Client
from tidemill.client.target import Target
from tidemill.terminal import show_table

FORMULAS: Final = ("=", "+", "-", "@", "\t", "\r")
"""First characters of a cell that a spreadsheet reads as a formula."""


async def show(
    target: Target,
    path: str,
    params: Mapping[str, str],
    columns: Sequence[str],
    row: Callable[[dict[str, Any]], Iterable[str | Text]],
    *,
    limit: int = sys.maxsize,
    as_json: bool = False,
    as_csv: bool = False,
) -> Exit:
    """Print a list as a table, as JSON lines, or as CSV with a header; `row` returns an object's cells."""
    table = Table(*columns, box=None, padding=(0, 1, 0, 0))
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if as_csv and not as_json:
        writer.writerow(columns)
    async with Client(target.base_url, target.api_key) as client:
        async for found in client.pages(path, params, limit=limit):
            if as_json:
                sys.stdout.buffer.write(orjson.dumps(found) + b"\n")
            elif as_csv:
                writer.writerow(map(cell, map(str, row(found))))
            else:
                table.add_row(*(Text(each) if isinstance(each, str) else each for each in row(found)))
    if not as_json and not as_csv:
        show_table(table)
    return Exit.OK


def cell(text: str) -> str:
    """A CSV cell, quoted if a spreadsheet would read it as a formula: names of models come from users."""
    return f"'{text}" if text.startswith(FORMULAS) else text
