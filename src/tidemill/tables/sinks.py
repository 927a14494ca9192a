"""Writes tables batch by batch: Parquet, Arrow, CSV, TSV or JSONL, by the suffix of the path."""

import csv
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Final, Protocol

import orjson
import pyarrow as pa
from pyarrow import ipc, parquet

from tidemill.tables import TableError
from tidemill.tables.values import rows_of

GROUP_BYTES: Final = 8 << 20
"""Bytes of a row group of Parquet before compression, about; writing one takes five times as much memory."""
COMPRESSION: Final = "zstd"


class Sink(Protocol):
    """A table that is being written."""

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows."""

    def close(self) -> None:
        """Write what is left; the file stays open."""


class ParquetSink:
    """Writes row groups of `GROUP_BYTES`; see `Sink`."""

    def __init__(self, file: BinaryIO, schema: pa.Schema) -> None:
        """Begin a file, which need not be able to seek."""
        texts = [each.name for each in schema if pa.types.is_string(each.type)]
        # A dictionary of vectors or of long texts would be as large as they are.
        self._writer = parquet.ParquetWriter(file, schema, compression=COMPRESSION, use_dictionary=texts)
        self._waiting: list[pa.RecordBatch] = []
        self._bytes = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """See `Sink.write`."""
        self._waiting.append(batch)
        self._bytes += batch.nbytes
        if self._bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.Table.from_batches(self._waiting))
            self._waiting, self._bytes = [], 0

    def close(self) -> None:
        """See `Sink.close`."""
        self._flush()
        self._writer.close()


def _arrow(file: BinaryIO, schema: pa.Schema) -> Any:
    return ipc.new_file(file, schema, options=ipc.IpcWriteOptions(compression=COMPRESSION))


class _Objects:
    def __init__(self, file: BinaryIO, schema: pa.Schema) -> None:
        del schema
        self._file = file

    def write(self, batch: pa.RecordBatch) -> None:
        self._file.write(b"".join(_json(row) + b"\n" for row in rows_of(batch)))

    def close(self) -> None:
        pass


class _Delimited:
    def __init__(self, file: BinaryIO, schema: pa.Schema, comma: str) -> None:
        self._text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        self._writer = csv.writer(self._text, delimiter=comma)
        self._writer.writerow(schema.names)

    def write(self, batch: pa.RecordBatch) -> None:
        self._writer.writerows([_cell(value) for value in row.values()] for row in rows_of(batch))

    def close(self) -> None:
        self._text.detach()


_SINKS: Final[dict[str, Callable[[BinaryIO, pa.Schema], Sink]]] = {
    ".parquet": ParquetSink,
    ".arrow": _arrow,
    ".feather": _arrow,
    ".jsonl": _Objects,
    ".ndjson": _Objects,
    ".csv": lambda file, schema: _Delimited(file, schema, ","),
    ".tsv": lambda file, schema: _Delimited(file, schema, "\t"),
}
SUFFIXES: Final = tuple(_SINKS)


def suffix_of(path: str) -> str:
    """The format of an output.

    Raises:
        TableError: It is unknown.
    """
    suffix = PurePosixPath(path.lower()).suffix
    if suffix not in _SINKS:
        raise TableError(f"-o {path}: the end of the name is the format, one of {', '.join(SUFFIXES)}")
    return suffix


@contextmanager
def writing(file: BinaryIO, suffix: str, schema: pa.Schema) -> Iterator[Sink]:
    """A table in an open file; it is whole after the block."""
    sink = _SINKS[suffix](file, schema)
    yield sink
    sink.close()


def _json(value: Any) -> bytes:
    return orjson.dumps(value, default=_plain, option=orjson.OPT_NON_STR_KEYS)


def _plain(value: Any) -> Any:
    """A value that JSON does not have: bytes in hex, decimals and the like as text."""
    return value.hex() if isinstance(value, bytes) else str(value)


def _cell(value: Any) -> Any:
    """A cell: nothing for null, JSON for lists and objects."""
    if isinstance(value, list | dict):
        return _json(value).decode()
    if isinstance(value, bytes):
        return value.hex()
    return "true" if value is True else "false" if value is False else value
