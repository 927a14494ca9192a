"""A table in memory: of pandas, polars, Arrow, or another library that hands tables over as Arrow streams."""

import hashlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Final

import pyarrow as pa
from pyarrow import types

from tidemill.tables import TableError
from tidemill.tables.sources.rows import ROWS_MAX, Rows
from tidemill.tables.values import decoded, mapped, without_dictionaries

INDEX: Final = "__index_level_"
"""How pandas names the columns of an index that has no name."""
_FAULTS: Final = (pa.ArrowException, TypeError, ValueError, OverflowError, OSError)
"""What a column raises that Arrow cannot represent."""


def whole(frame: Any) -> Any:
    """A table that gives the same rows each time it is read: one of pandas or polars as it is, any other in Arrow.

    A stream, like a query of DuckDB, may end after its first reading, or have other rows at the next.

    Raises:
        TableError: It is not a table, or cannot be read; the text names the column.
    """
    return frame if _library(frame) in {"pandas", "polars"} else _arrow(frame)


class FrameSource:
    """The rows of a table in memory."""

    def __init__(self, frame: Any) -> None:
        """Take a table.

        Raises:
            TableError: It is not a table, two columns have one name, or a column is unreadable; the text names it.
        """
        table = _arrow(frame)
        if len(set(table.column_names)) < table.num_columns:
            raise TableError("two columns have one name")
        table = table.drop_columns([name for name in table.column_names if name.startswith(INDEX)])
        columns = [_plain(table.column(name), name) for name in table.column_names]
        self._table = pa.table(columns, names=table.column_names).combine_chunks()
        self.schema = self._table.schema
        self.kept = tuple(self.schema.names)
        self.images: tuple[str, ...] = ()
        self.rows: int | None = self._table.num_rows
        self.fingerprint = _digest(self._table)

    def read(self, start: int) -> Iterator[Rows]:
        """The rows from this one on."""
        for batch in self._table.slice(start).to_batches(max_chunksize=ROWS_MAX):
            yield Rows(batch)


def like(frame: Any, table: pa.Table, kept: Sequence[str]) -> Any:
    """The kept columns of a frame as they are, index and types too, with the other columns of the table."""
    added = table.drop_columns(list(kept))
    match _library(frame):
        case "pandas":
            found = frame[[name for name in frame.columns if str(name) in kept]].copy()
            for name in added.column_names:
                # By position: the index of the frame may have gaps, or one label twice.
                found[name] = added.column(name).to_pandas().array
            return found
        case "polars":
            return frame.select(kept).hstack(sys.modules["polars"].from_arrow(added))
    found = pa.table(frame).select(kept)
    for name in added.column_names:
        found = found.append_column(added.field(name), added.column(name))
    return found


def _library(frame: Any) -> str:
    return type(frame).__module__.partition(".")[0] if type(frame).__name__ == "DataFrame" else ""


def _arrow(frame: Any) -> pa.Table:
    if not hasattr(frame, "__arrow_c_stream__"):
        raise TableError(f"a {type(frame).__name__} is not a table: pass one of pandas, polars or Arrow")
    try:
        return _read(frame)
    except _FAULTS as error:
        raise TableError(f"the table{_place(frame)} cannot be read: {_reason(error)}") from error


def _read(frame: Any) -> pa.Table:
    match _library(frame):
        case "pandas":
            frame = _without_spans(_with_named_levels(frame))
            # With None an index of evenly spaced numbers is no column.
            return pa.Table.from_pandas(frame, preserve_index=any(name is not None for name in frame.index.names))
        case "polars":
            if any(kind == sys.modules["polars"].Object for kind in frame.dtypes):
                raise TypeError("a Python object is not data")
    return pa.table(frame)


def _with_named_levels(frame: Any) -> Any:
    """A frame of pandas without the levels of its index that have no name, which are no columns."""
    unnamed = [at for at, name in enumerate(frame.index.names) if name is None]
    if not unnamed:
        return frame
    frame = frame.copy(deep=False)
    if len(unnamed) < frame.index.nlevels:
        frame.index = frame.index.droplevel(unnamed)
    else:
        frame.index = sys.modules["pandas"].RangeIndex(len(frame))
    return frame


def _without_spans(frame: Any) -> Any:
    """A frame of pandas with texts in place of intervals and periods."""
    frame = frame.copy(deep=False)
    for name in [name for name, kind in frame.dtypes.items() if _is_span(kind)]:
        frame[name] = frame[name].astype("string")
    if _is_span(frame.index.dtype):
        frame.index = frame.index.astype("string")
    return frame


def _is_span(kind: Any) -> bool:
    """Whether values of pandas are intervals or periods, also as categories; Arrow has their numbers only."""
    categories = getattr(kind, "categories", None)
    return str(kind if categories is None else categories.dtype).startswith(("interval[", "period["))


def _place(frame: Any) -> str:
    """The index or the first column of a frame that cannot be read."""
    if _library(frame) == "pandas":
        try:
            _read(frame[[]])
        except _FAULTS:
            return f", index {', '.join(str(name) for name in frame.index.names if name is not None)},"
    for name in frame.columns if _library(frame) else ():
        try:
            _read(frame[[name]])
        except _FAULTS:
            return f", column {name},"
    return ""


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__


def _plain(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """The column without dictionaries, and with texts and bytes of any length.

    Raises:
        TableError: There is no such column.
    """
    kind = _plain_type(column.type)
    try:
        plain = pa.chunked_array([decoded(chunk, kind) for chunk in column.chunks], kind)
        plain.validate()
    except _FAULTS as error:
        raise TableError(f"the column {name} is {column.type}, which cannot be read: {_reason(error)}") from error
    return plain


def _plain_type(found: pa.DataType) -> pa.DataType:
    return mapped(without_dictionaries(found), _long)


def _long(kind: pa.DataType) -> pa.DataType:
    if types.is_string(kind) or types.is_string_view(kind):
        return pa.large_string()
    return pa.large_binary() if types.is_binary(kind) or types.is_binary_view(kind) else kind


def _digest(table: pa.Table) -> str:
    """A hash of the content, the same for equal tables."""
    digest = hashlib.sha256(str(table.schema).encode())
    with pa.ipc.new_stream(_Digest(digest), table.schema) as stream:
        stream.write_table(table, max_chunksize=ROWS_MAX)
    return digest.hexdigest()


class _Digest:
    """A file that keeps only the hash of its content."""

    closed = False

    def __init__(self, digest: Any) -> None:
        self._digest = digest

    def write(self, content: Any) -> int:
        self._digest.update(content)
        return len(memoryview(content))

    def flush(self) -> None:
        """All of it is in the hash."""

    def close(self) -> None:
        """It has no end of its own."""
