"""Parquet and Arrow files, also those of a Hugging Face data set."""

import re
from collections.abc import Iterator
from typing import Any, Final

import pyarrow as pa
from pyarrow import ipc, parquet

from tidemill.tables import TableError
from tidemill.tables.sources.files import File, Files, failures, fingerprint
from tidemill.tables.sources.rows import BATCH_BYTES, ROWS_MAX, Rows

BUFFER_BYTES: Final = 1 << 20
PARQUET: Final = ".parquet"
ARROW: Final = frozenset({".arrow", ".feather", ".ipc"})
SUFFIXES: Final = ARROW | {PARQUET}
_MAGIC: Final = b"ARROW1"
_SHARD: Final = re.compile(r"^(?:.*/)?([^/]+?)-\d{5}-of-\d{5}(?:-\w+)?\.\w+\Z")
"""The name of a file of a data set: its split, its number, the number of files."""


class ColumnarSource:
    """The rows of some files of one schema."""

    images: tuple[str, ...] = ()

    def __init__(self, files: Files, found: list[File]) -> None:
        """Read the schemas.

        Raises:
            TableError: A file is broken, or the schemas differ.
        """
        self._files, self._found = files, found
        splits = sorted({match[1] for file in found if (match := _SHARD.match(file.name))})
        folders = sorted({file.name.rpartition("/")[0] for file in found})
        if len(splits) > 1 and len(folders) == 1:
            raise TableError(
                f"{files.address} has the splits {', '.join(splits)}: name the files of one, "
                f"like '{files.address.rstrip('/')}/{folders[0] + '/' if folders[0] else ''}{splits[0]}-*'"
            )
        if len(folders) > 1:
            raise TableError(f"{files.address} has tables in {', '.join(folders[:10])}: name one of these folders")
        self.schema = self._schema(found[0])
        counts = [self._rows(file) for file in found]
        self.rows = None if None in counts else sum(count or 0 for count in counts)
        self.kept = tuple(self.schema.names)
        self.fingerprint = fingerprint(found)

    def read(self, start: int) -> Iterator[Rows]:
        """See `Source.read`; whole row groups before the start are not read."""
        for file in self._found:
            with failures(file.name):
                if file.suffix == PARQUET:
                    batches, start = self._parquet(file, start)
                else:
                    batches = self._arrow(file)
                for batch in batches:
                    if start >= batch.num_rows:
                        start -= batch.num_rows
                        continue
                    plain = self._plain(file, batch.slice(start))
                    start = 0
                    yield from (Rows(plain.slice(at, ROWS_MAX)) for at in range(0, plain.num_rows, ROWS_MAX))

    def _parquet(self, file: File, start: int) -> tuple[Iterator[pa.RecordBatch], int]:
        """The batches from the row group that has row `start`, and the place of that row in them."""
        opened = self._opened(file)
        groups: list[int] = []
        largest = 1.0
        for number in range(opened.metadata.num_row_groups):
            group = opened.metadata.row_group(number)
            if not groups and start >= group.num_rows:
                start -= group.num_rows
                continue
            groups.append(number)
            largest = max(largest, group.total_byte_size / max(1, group.num_rows))
        size = int(max(1, min(ROWS_MAX, BATCH_BYTES / largest)))
        if not groups:
            return iter(()), start
        # Threads would take memory for each column; making requests takes longer than reading.
        return opened.iter_batches(batch_size=size, row_groups=groups, use_threads=False), start

    def _opened(self, file: File) -> parquet.ParquetFile:
        # Without the buffer a column of a whole row group is read at once.
        return parquet.ParquetFile(self._files.open(file), buffer_size=BUFFER_BYTES, pre_buffer=False)

    def _arrow(self, file: File) -> Iterator[pa.RecordBatch]:
        reader = _reader(self._files.open(file))
        if isinstance(reader, ipc.RecordBatchFileReader):
            return (reader.get_batch(number) for number in range(reader.num_record_batches))
        return iter(reader)

    def _schema(self, file: File) -> pa.Schema:
        with failures(file.name):
            found = (
                self._opened(file).schema_arrow
                if file.suffix == PARQUET
                else _reader(self._files.open(file)).schema
            )
            if len(set(found.names)) < len(found.names):
                raise TableError(f"{file.name} has two columns of one name")
            fields = [pa.field(each.name, _plain_type(each.type)) for each in found]
            return pa.schema(fields, metadata=found.metadata)

    def _rows(self, file: File) -> int | None:
        if file.suffix != PARQUET:
            return None
        with failures(file.name):
            return int(self._opened(file).metadata.num_rows)

    def _plain(self, file: File, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch in the schema of the first file."""
        if batch.schema.names != self.schema.names:
            raise TableError(f"{file.name} has other columns than {self._found[0].name}")
        columns = [
            column if column.type == each.type else _decoded(column).cast(each.type)
            for column, each in zip(batch.columns, self.schema, strict=True)
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)


def _reader(file: Any) -> Any:
    """A reader of either Arrow format: the file format begins with its magic, the stream has none."""
    head = file.read(len(_MAGIC))
    file.seek(0)
    return ipc.open_file(file) if head == _MAGIC else ipc.open_stream(file)


def _plain_type(found: pa.DataType) -> pa.DataType:
    return found.value_type if pa.types.is_dictionary(found) else found


def _decoded(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
