"""The interface of all sources: rows in batches of bounded size."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import pyarrow as pa

from tidemill.tables.values import rows_of

ROWS_MAX: Final = 1_000
"""Rows of a batch."""
BATCH_BYTES: Final = 8 << 20
"""Bytes of a batch, about."""


@dataclass(frozen=True)
class Rows:
    """Some rows of a source."""

    batch: pa.RecordBatch
    faults: Mapping[int, str] = field(default_factory=dict)
    """Why rows cannot be asked, by their place in the batch."""

    def after(self, count: int) -> "Rows":
        """The rows after the first ones."""
        faults = {at - count: fault for at, fault in self.faults.items() if at >= count}
        return Rows(self.batch.slice(count), faults)


class Source(Protocol):
    """Rows in a fixed order, of one schema."""

    schema: pa.Schema
    kept: tuple[str, ...]
    """The columns that the output has by default."""
    images: tuple[str, ...]
    """The columns with pictures."""
    rows: int | None
    """Number of rows; None if it is not known."""
    fingerprint: str
    """Changes with the content."""

    def read(self, start: int) -> Iterator[Rows]:
        """The rows from the one with this number, counting from 0."""


def skipped(batches: Iterator[Rows], start: int) -> Iterator[Rows]:
    """Leave out the first rows."""
    for rows in batches:
        count = rows.batch.num_rows
        if start >= count:
            start -= count
            continue
        yield rows.after(start)
        start = 0


def values(rows: Rows) -> Iterator[tuple[int, dict[str, Any], str | None]]:
    """The place, the values by column and the fault of each row."""
    for at, row in enumerate(rows_of(rows.batch)):
        yield at, row, rows.faults.get(at)
