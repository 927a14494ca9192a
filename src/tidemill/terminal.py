"""Terminal output, with control characters of foreign text escaped so that the terminal ignores them."""

import shlex
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import typer
from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table

NAME: Final = "tidemill"
_COLUMNS: Final = 10_000


def program() -> str:
    """The name by which the user called this program, for commands in hints."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
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
    """A console that escapes control characters in what it prints; its own control codes pass."""

    def print(self, *objects: Any, **options: Any) -> None:
        """See `rich.console.Console.print`; a string is one line."""
        super().print(*(printable(hinted(item)) if isinstance(item, str) else item for item in objects), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """See `rich.console.Console.render`."""
        return map(_harmless, super().render(renderable, options))


def counted(number: int, noun: str) -> str:
    """A number with its noun, in the plural where needed."""
    ending = "" if number == 1 else "es" if noun.endswith("ch") else "s"
    return f"{number:,} {noun}{ending}"


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
    """The console for everything but results: stderr, without markup, without line wrapping."""
    return Console(stderr=True, highlight=False, markup=False, soft_wrap=True, **options)


def show_table(table: Table) -> None:
    """Print a table on stdout at its full width: a truncated id or number is useless."""
    Console(width=_COLUMNS, soft_wrap=True, markup=False).print(table)


def _harmless(segment: Segment) -> Segment:
    if segment.control or segment.text.isprintable():
        return segment
    return Segment("\n".join(map(printable, segment.text.split("\n"))), segment.style)
