"""The interface of all sources: rows in batches of bounded size."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

import pyarrow as pa

from tidemill.tables.json_types import FieldNames
from tidemill.tables.values import values_of

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
    own: Sequence[Mapping[str, Any]] | None = None
    """The values of each row as it has them, where the batch has them in types that all rows share."""
    fields: FieldNames = field(default_factory=FieldNames)
    """The names by which `values` completes the objects of `own`: all of a batch at once could take any memory."""

    def after(self, count: int) -> "Rows":
        """The rows after the first ones."""
        faults = {at - count: fault for at, fault in self.faults.items() if at >= count}
        own = None if self.own is None else self.own[count:]
        return replace(self, batch=self.batch.slice(count), faults=faults, own=own)

    def at(self, places: Sequence[int]) -> "Rows":
        """The rows at these places."""
        faults = {at: self.faults[place] for at, place in enumerate(places) if place in self.faults}
        own = None if self.own is None else [self.own[place] for place in places]
        return replace(self, batch=self.batch.take(pa.array(places, pa.int64())), faults=faults, own=own)

    def values(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The values of each row, by the names of columns."""
        if self.own is not None:
            yield from (self.fields.columns(row, names) for row in self.own)
            return
        columns = [values_of(self.batch.column(name)) for name in names]
        rows = zip(*columns, strict=True) if columns else iter([()] * self.batch.num_rows)
        yield from (dict(zip(names, row, strict=True)) for row in rows)


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


def repeated(names: Iterable[str]) -> list[str]:
    """The names that occur more than once, in order; in time that grows with their number only."""
    return sorted(name for name, times in Counter(names).items() if times > 1)


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
    for at, row in enumerate(rows.values(rows.batch.schema.names)):
        yield at, row, rows.faults.get(at)
