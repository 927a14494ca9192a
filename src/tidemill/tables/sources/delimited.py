"""CSV and TSV: every cell is text, exactly as it is written, since a guessed type loses `007` and `1.10`."""

import codecs
import csv
import io
import re
from collections import deque
from collections.abc import Iterator
from itertools import islice, tee
from typing import Final, TextIO

import pyarrow as pa

from tidemill.tables import TableError
from tidemill.tables.sources.files import File, Files, failures, fingerprint
from tidemill.tables.sources.rows import BATCH_BYTES, ROWS_MAX, Rows, repeated, skipped

SUFFIXES: Final = frozenset({".csv", ".tsv", ".tab"})
CELL_CHARS_MAX: Final = 16 << 20
COLUMNS_MAX: Final = 10_000
SHOWN_CHARS: Final = 200
REREAD_CHARS_MAX: Final = 256 << 20
"""Characters that are read again after rows whose quotes are wrong, in a whole file."""
SAMPLE_ROWS: Final = 20
SAMPLE_CHARS: Final = 1 << 20
"""The beginning of a file that shows its delimiter."""
_COMMAS: Final = ",;\t"
"""The delimiters of a CSV; of those that fit equally well the first one is taken."""
_COMMA_LINE: Final = re.compile(r'"?sep=([,;\t|])"?\r?\n?\Z')
"""A first line by which a file tells Excel its delimiter."""
_DAMAGE: Final = "\udc80"
"""Stands for bytes that are not UTF-16; UTF-8 cannot have it either."""
codecs.register_error("tidemill-damage", lambda error: (_DAMAGE, getattr(error, "end", 0)))

Cells = tuple[int, list[str], str | None]
"""The number of a row's first line, its cells, and what is wrong with its quotes."""


class DelimitedSource:
    """The rows of a file whose first row has the names of the columns."""

    rows: int | None = None
    images: tuple[str, ...] = ()

    def __init__(self, files: Files, file: File) -> None:
        """Find encoding and delimiter, and read the names of the columns.

        Raises:
            TableError: They are missing or not unique.
        """
        self._files, self._file = files, file
        with failures(file.name), files.stream(file) as stream:
            is_wide = stream.read(len(codecs.BOM_UTF16)) in {codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE}
        self._encoding, self._errors = (
            ("utf-16", "tidemill-damage") if is_wide else ("utf-8-sig", "surrogateescape")
        )
        self._comma, self._skipped = "\t", 0
        if file.suffix == ".csv":
            with failures(file.name), self._text() as text:
                self._comma, self._skipped = _delimiter(text)
        _, names, fault = next(self._cells(), (0, [], None))
        if not any(names) or len(names) > COLUMNS_MAX:
            raise TableError(f"{file.name}: the first row must have the names of 1 to {COLUMNS_MAX:,} columns")
        if (fault := fault or self._fault(names, len(names))) is not None:
            raise TableError(f"{file.name}, line {self._skipped + 1}: {fault}")
        if double := repeated(filter(None, names)):
            raise TableError(f"{file.name}: the first row must name each column once, but has {double} twice")
        self.kept = _named(names)
        self.schema = pa.schema([pa.field(name, pa.string()) for name in self.kept])
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
        for line, row, wrong in cells:
            if (fault := wrong or self._fault(row, width)) is not None:
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

    def _cells(self) -> Iterator[Cells]:
        """The rows that are not blank."""
        with failures(self._file.name), self._text() as text:
            lines = _Lines(text)
            for _ in range(self._skipped):
                next(lines)
            yield from _records(lines, self._comma)

    def _text(self) -> io.TextIOWrapper:
        return io.TextIOWrapper(
            self._files.stream(self._file), encoding=self._encoding, errors=self._errors, newline=""
        )

    def _fault(self, row: list[str], width: int) -> str | None:
        if len(row) != width:
            return f"it has {len(row)} cells instead of {width}: {str(row)[:SHOWN_CHARS]}"
        try:
            "".join(row).encode()
        except UnicodeEncodeError:
            if self._encoding == "utf-16":
                return "it is not UTF-16, as the beginning of the file says"
            return "it is not UTF-8; `iconv -f latin1 -t utf-8` converts such a file"
        return None


class _Lines:
    """The lines of a text; those of a row whose quotes are wrong come again, except for its first one."""

    def __init__(self, text: Iterator[str]) -> None:
        self._text = text
        self._again: deque[str] = deque()
        self._row: list[str] = []
        self._left = REREAD_CHARS_MAX
        self._number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._text)
        self._row.append(line)
        self._number += 1
        return line

    def begin(self) -> int:
        """Begin a row; returns the number of its first line."""
        self._row = []
        return self._number + 1

    def go_back(self) -> tuple[str, int]:
        """Return the first line of the row and have the others read again; also the number of those that are not.

        To read them again after every row could take the square of the file's length.
        """
        first, *others = self._row
        self._left -= sum(map(len, others))
        if self._left < 0:
            return first, len(others)
        self._again.extendleft(reversed(others))
        self._number -= len(others)
        return first, 0


def _records(lines: _Lines, comma: str) -> Iterator[Cells]:
    """The rows that are not blank.

    A quote that does not end its cell may have begun one that has no end. So only the line with which such a row
    begins is faulty, and the reader goes on with the next line.
    """
    csv.field_size_limit(CELL_CHARS_MAX)
    reader = csv.reader(lines, delimiter=comma, strict=True)
    while True:
        line, fault = lines.begin(), None
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            fault = f"{error}; a quote in a cell is written twice"
            first, lost = lines.go_back()
            fault += f"; it takes {lost:,} more lines along" if lost else ""
            row = _leniently(first, comma)
            reader = csv.reader(lines, delimiter=comma, strict=True)
        if row:
            yield line, row, fault


def _leniently(line: str, comma: str) -> list[str]:
    try:
        return next(csv.reader([line.rstrip("\r\n")], delimiter=comma))
    except (csv.Error, StopIteration):
        return [line[:SHOWN_CHARS]]


def _delimiter(text: TextIO) -> tuple[str, int]:
    """The delimiter of a CSV, and how many lines precede its header.

    Without a line for Excel it is the one by which most of the first rows have as many cells as the header.
    """
    skipped = 0
    while (head := text.readline(CELL_CHARS_MAX)) and not head.strip("\r\n"):
        skipped += 1
    if (match := _COMMA_LINE.match(head)) is not None:
        return match[1], skipped + 1
    samples = tee(_sample(head, text), len(_COMMAS))
    fits = {comma: _fit(lines, comma) for comma, lines in zip(_COMMAS, samples, strict=True)}
    return max(_COMMAS, key=fits.__getitem__), skipped


def _sample(line: str, text: TextIO) -> Iterator[str]:
    left = SAMPLE_CHARS
    while line and left > 0:
        yield line[:left]
        left -= len(line)
        line = text.readline(max(left, 0))


def _fit(lines: Iterator[str], comma: str) -> tuple[int, int]:
    """How many of the first rows have as many cells as the header by this delimiter, and how it fits the header.

    A quote inside a name tells that a delimiter may have split a quoted name.
    """
    records = _records(_Lines(lines), comma)
    _, names, fault = next(records, (0, [], None))
    if len(names) < 2 or fault is not None:  # noqa: PLR2004
        return 0, 0
    found = islice(records, SAMPLE_ROWS)
    count = sum(len(row) == len(names) and fault is None for _, row, fault in found)
    return 1 + count, -sum('"' in name for name in names)


def _named(names: list[str]) -> tuple[str, ...]:
    """The names of the columns; one without a name, as pandas writes its index, is `column_1` by its place."""
    found: list[str] = []
    given = set(names)
    for at, name in enumerate(names, start=1):
        new = name or f"column_{at}"
        while not name and new in given:
            new += "_"
        found.append(new)
    return tuple(found)


def _printable(cells: list[str]) -> list[str]:
    return [cell.encode("utf-8", "replace").decode() for cell in cells]
