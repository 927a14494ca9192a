"""Tables on stdout."""

from typing import Final

from rich.console import Console
from rich.table import Table

_COLUMNS: Final = 10_000


def show(table: Table) -> None:
    """Print a table as wide as it is: of an id or a number that is cut to fit, nobody has any use."""
    Console(width=_COLUMNS, soft_wrap=True).print(table)
