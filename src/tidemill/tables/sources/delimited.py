"""CSV and TSV: every cell is text, exactly as it is written, since a guessed type loses `007` and `1.10`."""

import csv
import io
from collections.abc import Iterator
from typing import Final

import pyarrow as pa

from tidemill.tables import TableError
from tidemill.tables.sources.files import File, Files, failures, fingerprint
from tidemill.tables.sources.rows import BATCH_BYTES, ROWS_MAX, Rows, skipped

SUFFIXES: Final = frozenset({".csv", ".tsv", ".tab"})
CELL_CHARS_MAX: Final = 16 << 20
COLUMNS_MAX: Final = 10_000
SHOWN_CHARS: Final = 200


class DelimitedSource:
    """The rows of a file whose first row has the names of the columns."""

    rows: int | None = None
    images: tuple[str, ...] = ()

    def __init__(self, files: Files, file: File) -> None:
        """Read the names of the columns.

        Raises:
            TableError: They are missing or not unique.
        """
        self._files, self._file = files, file
        self._comma = "," if file.suffix == ".csv" else "\t"
        if self._comma == ",":
            with failures(file.name), self._text() as text:
                head = text.readline(CELL_CHARS_MAX)
            self._comma = ";" if "," not in head and ";" in head else ","
        names = next(self._cells(), (0, None))[1]
        if not names or len(names) > COLUMNS_MAX:
            raise TableError(f"{file.name}: the first row must have the names of 1 to {COLUMNS_MAX:,} columns")
        if double := sorted({name for name in names if names.count(name) > 1} | ({""} & set(names))):
            raise TableError(f"{file.name}: the first row must name each column once, but has {double}")
        if (fault := _fault(names, len(names))) is not None:
            raise TableError(f"{file.name}, line 1: {fault}")
        self.schema = pa.schema([pa.field(name, pa.string()) for name in names])
        self.kept = tuple(names)
        self.fingerprint = fingerprint([file])

    def read(self, start: int) -> Iterator[Rows]:
        """See `Source.read`."""
        return skipped(self._batches(), start)

    def _batches(self) -> Iterator[Rows]:
        width, size = len(self.kept), 0
        rows: list[list[str]] = []
        faults: dict[int, str] = {}
        cells = self._cells()
        next(cells)
        for line, row in cells:
            if (fault := _fault(row, width)) is not None:
                faults[len(rows)] = f"line {line}: {fault}"
            rows.append(row if fault is None else _printable([*row, *[""] * width][:width]))
            size += sum(map(len, row))
            if len(rows) == ROWS_MAX or size > BATCH_BYTES:
                yield self._batch(rows, faults)
                rows, faults, size = [], {}, 0
        if rows:
            yield self._batch(rows, faults)

    def _batch(self, rows: list[list[str]], faults: dict[int, str]) -> Rows:
        columns = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
        return Rows(pa.RecordBatch.from_arrays(columns, schema=self.schema), faults)

    def _cells(self) -> Iterator[tuple[int, list[str]]]:
        """The rows that are not blank, each with the number of its first line."""
        csv.field_size_limit(CELL_CHARS_MAX)
        with failures(self._file.name), self._text() as text:
            reader = csv.reader(text, delimiter=self._comma, strict=True)
            line = 1
            try:
                for row in reader:
                    if row:
                        yield line, row
                    line = reader.line_num + 1
            except csv.Error as error:
                raise TableError(
                    f"{self._file.name}, line {line}: {error}; a quote in a cell is written twice"
                ) from error

    def _text(self) -> io.TextIOWrapper:
        return io.TextIOWrapper(
            self._files.stream(self._file), encoding="utf-8-sig", errors="surrogateescape", newline=""
        )


def _printable(cells: list[str]) -> list[str]:
    return [cell.encode("utf-8", "replace").decode() for cell in cells]


def _fault(row: list[str], width: int) -> str | None:
    if len(row) != width:
        return f"it has {len(row)} cells instead of {width}: {str(row)[:SHOWN_CHARS]}"
    try:
        "".join(row).encode()
    except UnicodeEncodeError:
        return "it is not UTF-8; `iconv -f latin1 -t utf-8` converts such a file"
    return None
