"""JSONL: one object a line. A first pass over the file finds the type of each column, so that no value is lost.

A type is merged over all rows; a prompt has the row's own value, which no other row changes.
"""

from collections.abc import Iterator
from typing import Any, Final

import orjson
import pyarrow as pa

from tidemill.schemas.jsonl import malformed
from tidemill.schemas.jsonl.lines import Line, Splitter
from tidemill.tables import TableError
from tidemill.tables.json_types import JSON, NULL, FieldNames, Kind, fitted, kind_of, merged, schema_of
from tidemill.tables.sources.files import File, Files, failures, fingerprint
from tidemill.tables.sources.rows import BATCH_BYTES, ROWS_MAX, Rows, skipped

SUFFIXES: Final = frozenset({".jsonl", ".ndjson"})
CHUNK_BYTES: Final = 1 << 20
LINE_BYTES_MAX: Final = 64 << 20


class ObjectSource:
    """The rows of a file with an object in each line."""

    images: tuple[str, ...] = ()

    def __init__(self, files: Files, file: File) -> None:
        """Read the file once for the types.

        Raises:
            TableError: No line has an object.
        """
        self._files, self._file = files, file
        self._kinds: dict[str, Kind] = {}
        self._names = FieldNames()
        self.rows: int | None
        count = 0
        for line in self._lines():
            count += 1
            row, _ = _parsed(line)
            self._names.add(row)
            found = merged(self._kinds, {name: kind_of(value) for name, value in row.items()})
            if not isinstance(found, dict):
                raise TableError(f"{file.name}, line {line.number}: the objects have too many different names")
            self._kinds = found
        if not self._kinds:
            raise TableError(f'{file.name} has no line with an object, like {{"text": "…"}}')
        self.rows = count
        self._kinds = {name: JSON if kind == NULL else kind for name, kind in self._kinds.items()}
        self.schema = schema_of(self._kinds)
        self.kept = tuple(self._kinds)
        self.fingerprint = fingerprint([file])

    def read(self, start: int) -> Iterator[Rows]:
        """See `Source.read`."""
        return skipped(self._batches(), start)

    def _batches(self) -> Iterator[Rows]:
        rows: list[dict[str, Any]] = []
        own: list[dict[str, Any]] = []
        faults: dict[int, str] = {}
        size = 0
        for line in self._lines():
            row, fault = _parsed(line)
            if fault is not None:
                faults[len(rows)] = f"line {line.number}: {fault}"
            rows.append({name: fitted(row.get(name), kind) for name, kind in self._kinds.items()})
            own.append(row)
            size += len(line.data or b"")
            if len(rows) == ROWS_MAX or size > BATCH_BYTES:
                yield Rows(pa.RecordBatch.from_pylist(rows, schema=self.schema), faults, own, self._names)
                rows, own, faults, size = [], [], {}, 0
        if rows:
            yield Rows(pa.RecordBatch.from_pylist(rows, schema=self.schema), faults, own, self._names)

    def _lines(self) -> Iterator[Line]:
        splitter = Splitter(LINE_BYTES_MAX)
        with failures(self._file.name), self._files.stream(self._file) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield from splitter.feed(chunk)
        yield from splitter.finish()


def _parsed(line: Line) -> tuple[dict[str, Any], str | None]:
    """The object of a line, and what is wrong with it."""
    if line.data is None:
        return {}, f"it is longer than {LINE_BYTES_MAX:,} bytes"
    try:
        found = orjson.loads(line.data)
    except orjson.JSONDecodeError:
        return {}, malformed.reason(line.data)
    return (found, None) if isinstance(found, dict) else ({}, "it is not an object")
