"""A table in memory: of pandas, polars, Arrow, or another library that hands tables over as Arrow streams."""

import hashlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Final

import pyarrow as pa

from tidemill.tables import TableError
from tidemill.tables.sources.rows import ROWS_MAX, Rows

INDEX: Final = "__index_level_"
"""How pandas names the columns of an index that has no name."""


class FrameSource:
    """The rows of a table in memory."""

    def __init__(self, frame: Any) -> None:
        """Take a table.

        Raises:
            TableError: It is not a table, or two columns have one name.
        """
        if not hasattr(frame, "__arrow_c_stream__"):
            raise TableError(f"a {type(frame).__name__} is not a table: pass one of pandas, polars or Arrow")
        try:
            table = pa.table(frame)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise TableError(f"the table cannot be read: {str(error).splitlines()[0][:300]}") from error
        self._table = _plain(table.drop_columns([name for name in table.column_names if name.startswith(INDEX)]))
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
    match type(frame).__module__.partition(".")[0]:
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


def _plain(table: pa.Table) -> pa.Table:
    """The table without dictionaries, and with texts as the other sources have them."""
    if len(set(table.column_names)) < table.num_columns:
        raise TableError("two columns have one name")
    fields = [pa.field(each.name, _plain_type(each.type)) for each in table.schema]
    return table.cast(pa.schema(fields)).combine_chunks()


def _plain_type(found: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(found):
        return _plain_type(found.value_type)
    is_text = pa.types.is_large_string(found) or pa.types.is_string_view(found)
    return pa.string() if is_text else found


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
