"""Prints a list of the service on stdout: as a table, as JSON lines, or as CSV, or follows it on the terminal."""

import asyncio
import csv
import os
import sys
import termios
import tty
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from rich.console import RenderableType
from rich.live import Live
from rich.table import Column
from rich.text import Text

from tidemill.client.errors import Exit, Unreachable, UsageError
from tidemill.client.http.answer import Answer
from tidemill.client.http.client import Client
from tidemill.terminal import Console, show_json, show_table

FORMULAS: Final = ("=", "+", "-", "@", "\t", "\r")
"""First characters of a cell that a spreadsheet reads as a formula."""

FOLLOW_SECONDS: Final = 2.0
"""Interval between two looks at the service."""


async def show(
    client: Client,
    path: str,
    params: Mapping[str, str],
    columns: Sequence[str | Column],
    row: Callable[[Answer], Iterable[str | Text]],
    *,
    limit: int = sys.maxsize,
    as_json: bool = False,
    as_csv: bool = False,
    is_idle: Callable[[str, set[str]], bool] = lambda *_: False,
) -> Exit:
    """Print a list as a table, as JSON lines, or as CSV with a header; `row` returns an object's cells.

    A table leaves out columns that are idle, by the name and the different cells of each.
    """
    rows: list[Sequence[str | Text]] = []
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if as_csv:
        writer.writerow(columns)
    async for found in client.pages(path, params, limit=limit):
        if as_csv:
            writer.writerow(map(cell, map(str, row(found))))
        elif as_json:
            show_json(found)
        else:
            rows.append(list(row(found)))
    if not as_json and not as_csv:
        names = [column if isinstance(column, str) else str(column.header) for column in columns]
        kept = [
            place
            for place, name in enumerate(names)
            if not rows or not is_idle(name, {str(cells[place]) for cells in rows})
        ]
        show_table([columns[place] for place in kept], [[cells[place] for place in kept] for cells in rows])
    return Exit.OK


def cell(text: str) -> str:
    """A CSV cell, quoted if a spreadsheet would read it as a formula: names of models come from users."""
    return f"'{text}" if text.startswith(FORMULAS) else text


async def follow(render: Callable[[int], Awaitable[RenderableType]]) -> Exit:
    """Show on the terminal what `render` returns for its width, anew every two seconds, until q or Ctrl-C.

    Raises:
        UsageError: stdout is not a terminal, or one that cannot move its cursor.
    """
    console = Console()
    if not console.is_terminal or console.is_dumb_terminal:
        raise UsageError("--watch and `tidemill top` need a terminal; in a pipe, `tidemill list` prints JSON")
    with (
        Live(console=console, screen=True, auto_refresh=False) as live,
        _quitting() as ended,
        suppress(asyncio.CancelledError),
    ):
        while not ended.is_set():
            try:
                live.update(await render(console.width), refresh=True)
            except Unreachable as error:
                live.update(Text(f"{error}; trying again", "red"), refresh=True)
            with suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), FOLLOW_SECONDS)
    return Exit.OK


@contextmanager
def _quitting() -> Iterator[asyncio.Event]:
    """An event that the key q sets; meanwhile the terminal does not show what is typed."""
    ended = asyncio.Event()
    if not sys.stdin.isatty():
        yield ended
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    loop = asyncio.get_running_loop()

    def read() -> None:
        if os.read(sys.stdin.fileno(), 1) in {b"q", b""}:
            ended.set()

    loop.add_reader(sys.stdin, read)
    try:
        yield ended
    finally:
        loop.remove_reader(sys.stdin)
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
