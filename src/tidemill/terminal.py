"""Output: tables on a terminal, JSON in a pipe; the terminal gets no control characters of foreign text."""

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import orjson
import typer
from rich.cells import cell_len
from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, Group, RenderableType
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

NAME: Final = "tidemill"
UV_CACHE: Final = "archive-v"
"""The names of folders begin like this in which uv keeps the environments of `uvx`."""
WRAPPED_CELLS_MIN: Final = 8
"""A column of words is never narrower than this or its widest cell."""


def program() -> str:
    """The name by which the user called this program, for commands in hints."""
    if "UV" in os.environ and Path(sys.prefix).parent.name.startswith(UV_CACHE):
        return f"uvx {NAME}"
    called = Path(sys.argv[0])
    if called.name == "__main__.py" and called.parent.name == NAME:
        return f"{_near(Path(sys.executable))} -m tidemill"
    if called.name != NAME or ((found := shutil.which(NAME)) and Path(found).absolute() == called.absolute()):
        return NAME
    return _near(called)


def _near(path: Path) -> str:
    """The path, relative to the current folder if it lies below."""
    whole, here = path.absolute(), Path.cwd()
    return shlex.quote(str(whole.relative_to(here) if whole.is_relative_to(here) else whole))


def hinted(text: str) -> str:
    """The text, with commands in backquotes as the user can type them: "`tidemill list`"."""
    return text.replace(f"`{NAME} ", f"`{program()} ")


def printable(text: str | bytes) -> str:
    """The text with every unprintable character escaped as in a Python string."""
    whole = text.decode("utf-8", "backslashreplace") if isinstance(text, bytes) else text
    if whole.isprintable():
        return whole
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in whole)


class Console(RichConsole):
    """A console that escapes control characters in what it prints; its own control codes pass.

    With `NO_COLOR` it prints no styles at all (<https://no-color.org>); Rich sees to `TERM=dumb` and to pipes.
    """

    def __init__(self, **options: Any) -> None:
        if os.environ.get("NO_COLOR"):
            options["color_system"] = None
        super().__init__(**{"markup": False, "highlight": False, **options})

    def print(self, *objects: Any, **options: Any) -> None:
        """See `rich.console.Console.print`; a string is one line."""
        super().print(*(printable(hinted(item)) if isinstance(item, str) else item for item in objects), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """See `rich.console.Console.render`."""
        return map(_harmless, super().render(renderable, options))


def shortened(text: str, chars_max: int) -> str:
    """The text, or its end if it is too long, since names differ at the end."""
    return text if len(text) <= chars_max else f"…{text[1 - chars_max :]}"


def local_time(at: float) -> str:
    """A time of day with its date, in the zone of this machine; `at` is in Unix seconds."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def say(text: str, *, err: bool = False) -> None:
    """Print lines on stdout, or on stderr."""
    typer.echo("\n".join(map(printable, hinted(text).split("\n"))), err=err)


def stderr_console(**options: Any) -> Console:
    """The console for everything but results: stderr, without line wrapping."""
    return Console(stderr=True, soft_wrap=True, **options)


def for_people() -> bool:
    """Whether stdout is a terminal; a program that reads it gets JSON."""
    return sys.stdout.isatty()


def show_json(found: Mapping[str, Any]) -> None:
    """Print an object as one line of JSON on stdout; for a terminal, in ASCII."""
    line = json.dumps(found).encode() if for_people() else orjson.dumps(found)
    sys.stdout.flush()
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


def words(header: str) -> Column:
    """A column of a table whose cells may take several lines."""
    return Column(header, overflow="fold")


def tabulated(columns: Sequence[str | Column], rows: Iterable[Iterable[str | Text]], width: int) -> Table | Group:
    """The rows as a table of at most `width` cells, or, if none is that narrow, as lines of a name and a value.

    Only columns made by `words` wrap: a truncated or wrapped id or number is useless.
    """
    whole = [Column(each, no_wrap=True) if isinstance(each, str) else each.copy() for each in columns]
    cells = [list(map(_cell, row)) for row in rows]
    headers = [str(column.header) for column in whole]
    widths = [max(cell_len(str(cell)) for cell in column) for column in zip(headers, *cells, strict=True)]
    needed = sum(
        width if column.no_wrap else min(width, WRAPPED_CELLS_MIN)
        for column, width in zip(whole, widths, strict=True)
    )
    if needed + len(whole) - 1 > width:
        return Group(*_lines(headers, cells))
    table = Table(*whole, box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for row in cells:
        table.add_row(*row)
    return table


def show_table(columns: Sequence[str | Column], rows: Iterable[Iterable[str | Text]]) -> None:
    """Print rows on stdout; see `tabulated`."""
    console = Console()
    found = tabulated(columns, rows, console.width)
    console.print(found, soft_wrap=isinstance(found, Group))


def show_fields(fields: Mapping[str, str]) -> None:
    """Print the fields of one object on stdout, one a line, without the empty ones."""
    console = Console()
    for line in _lines(list(fields), [map(_cell, fields.values())]):
        console.print(line, soft_wrap=True)


def _cell(found: str | Text) -> Text:
    return Text(printable(str(found)), found.style if isinstance(found, Text) else "")


def _lines(headers: Sequence[str], rows: Iterable[Iterable[Text]]) -> list[Text]:
    """A line for each cell that is not empty, and an empty one between two rows."""
    width = max(map(len, headers))
    found: list[Text] = []
    for row in rows:
        found += [Text()] if found else []
        found += [
            Text.assemble((name.ljust(width + 2), "bold"), cell)
            for name, cell in zip(headers, row, strict=True)
            if cell.plain
        ]
    return found


def _harmless(segment: Segment) -> Segment:
    if segment.control or segment.text.isprintable():
        return segment
    return Segment("\n".join(map(printable, segment.text.split("\n"))), segment.style)
