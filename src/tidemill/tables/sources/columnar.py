"""Parquet and Arrow files, also those of a Hugging Face data set."""

import re
from collections.abc import Iterator
from typing import Any, Final

import pyarrow as pa
from pyarrow import ipc, parquet, types

from tidemill.tables import TableError
from tidemill.tables.sources.files import File, Files, failures, fingerprint
from tidemill.tables.sources.frames import INDEX
from tidemill.tables.sources.rows import BATCH_BYTES, ROWS_MAX, Rows, repeated
from tidemill.tables.values import decoded, without_dictionaries

BUFFER_BYTES: Final = 1 << 20
PARQUET: Final = ".parquet"
ARROW: Final = frozenset({".arrow", ".feather", ".ipc"})
SUFFIXES: Final = ARROW | {PARQUET}
_MAGIC: Final = b"ARROW1"
_SHARD: Final = re.compile(r"^(?:.*/)?([^/]+?)-\d{5}-of-\d{5}(?:-\w+)?\.\w+\Z")
"""The name of a file of a data set: its split, its number, the number of files."""


class ColumnarSource:
    """The rows of some files with the same columns, in types that take the values of all files."""

    images: tuple[str, ...] = ()

    def __init__(self, files: Files, found: list[File]) -> None:
        """Read the schemas.

        Raises:
            TableError: A file is broken, or lacks a column of the others, or has it in a type that does not fit.
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
        opened = [self._head(file) for file in found]
        self.schema = _unified([(file.name, schema) for file, (schema, _) in zip(found, opened, strict=True)])
        counts = [count for _, count in opened]
        self.rows = None if None in counts else sum(count or 0 for count in counts)
        self.kept = tuple(name for name in self.schema.names if not name.startswith(INDEX))
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
                    left, start = batch.slice(start), 0
                    yield from (self._plain(left.slice(at, ROWS_MAX)) for at in range(0, left.num_rows, ROWS_MAX))

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

    def _head(self, file: File) -> tuple[pa.Schema, int | None]:
        """The columns of a file, and how many rows it has if its head says so."""
        with failures(file.name):
            if file.suffix == PARQUET:
                opened = self._opened(file)
                found, count = opened.schema_arrow, int(opened.metadata.num_rows)
            else:
                found, count = _reader(self._files.open(file)).schema, None
        if double := repeated(found.names):
            raise TableError(f"{file.name} has the column {', '.join(double)} twice")
        fields = [pa.field(each.name, without_dictionaries(each.type)) for each in found]
        return pa.schema(fields, metadata=found.metadata), count

    def _plain(self, batch: pa.RecordBatch) -> Rows:
        """The batch in the schema of all files; a value that the type of its column cannot hold is null."""
        faults: dict[int, str] = {}
        columns = []
        for each in self.schema:
            column = batch.column(each.name)
            column = decoded(column, without_dictionaries(column.type))
            columns.append(column if column.type == each.type else _cast(column, each, faults))
        return Rows(pa.RecordBatch.from_arrays(columns, schema=self.schema), faults)


def _unified(schemas: list[tuple[str, pa.Schema]]) -> pa.Schema:
    """The schema that takes the values of all files, in the order of the first one.

    The index of pandas is a column only if all files have it.
    """
    indexes = {name for _, schema in schemas for name in schema.names if name.startswith(INDEX)}
    dropped = {name for name in indexes if not all(name in schema.names for _, schema in schemas)}
    first, whole = schemas[0]
    fields = {each.name: each for each in whole if each.name not in dropped}
    before = whole
    for file, schema in schemas[1:]:
        # Mostly all files have one schema, and there may be thousands.
        if schema.equals(before):
            continue
        before, names = schema, set(schema.names) - dropped
        if odd := sorted(fields.keys() ^ names):
            raise TableError(f"the column {odd[0]} is in only one of {first} and {file}")
        for name, field in fields.items():
            fields[name] = _promoted(field, schema.field(name), f"{file}: the column {name}")
    return pa.schema(fields.values(), metadata=whole.metadata)


def _promoted(field: pa.Field, other: pa.Field, said: str) -> pa.Field:
    """The field in a type to which the values of both can be cast; never bytes in place of texts."""
    if field.type == other.type:
        return field
    try:
        found = pa.unify_schemas([pa.schema([field]), pa.schema([other])], promote_options="permissive").field(0)
        is_fit = all(_fits(each.type, found.type) for each in (field, other))
    except pa.ArrowException:
        is_fit = False
    if not is_fit:
        raise TableError(f"{said} is {other.type}, and {field.type} in the files before; write it in one type")
    return found


def _fits(kind: pa.DataType, wide: pa.DataType) -> bool:
    """Whether a type takes the values of another, at any depth.

    Raises:
        pa.ArrowException: It takes none of them.
    """
    # Arrow finds out about decimals with too few digits only at a value, which may be null.
    pa.nulls(1, kind).cast(wide)
    if types.is_null(kind):
        return True
    if types.is_struct(kind):
        return all(_fits(each.type, wide.field(each.name).type) for each in kind)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _fits(kind.value_type, wide.value_type)
    is_signed = types.is_uint64(kind) and types.is_signed_integer(wide)
    return not is_signed and (_is_binary(kind) or not _is_binary(wide))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind))


def _cast(column: pa.Array, field: pa.Field, faults: dict[int, str]) -> pa.Array:
    """The column in a wider type; a value that it cannot hold is a fault of its row."""
    try:
        return column.cast(field.type)
    except pa.ArrowException:
        found = []
    for at in range(len(column)):
        try:
            found.append(column.slice(at, 1).cast(field.type))
        except pa.ArrowException as error:
            faults.setdefault(at, f"the column {field.name}: {str(error).splitlines()[0][:300]}")
            found.append(pa.nulls(1, field.type))
    return pa.concat_arrays(found)


def _reader(file: Any) -> Any:
    """A reader of either Arrow format: the file format begins with its magic, the stream has none."""
    head = file.read(len(_MAGIC))
    file.seek(0)
    return ipc.open_file(file) if head == _MAGIC else ipc.open_stream(file)
