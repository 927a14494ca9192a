"""Joins the rows of a part with their results, which lie in the order of the rows, and writes them as a piece.

Memory holds a batch of rows and a line of each file.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import pyarrow as pa
from pyarrow import ipc

from tidemill.schemas.bounds import LARGE_BYTES_MAX
from tidemill.tables import RowError, TableError
from tidemill.tables.columns import FACTS, Reader, named
from tidemill.tables.replies import failure_of, number_of, result_of
from tidemill.tables.requests import Chats

FAULT: Final = "\0fault"
"""The last column of the rows of a part: why a row was not asked."""
INVALID: Final = "invalid_output"
"""The code of the service for an answer that does not fit its schema."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """The files of one batch of a part; a file without lines may be missing."""

    requests: Path
    output: Path
    errors: Path
    prices: tuple[float, float] | None
    """Cost of an input and of an output token; None if it is not known."""


@dataclass(frozen=True, kw_only=True)
class Balance:
    """How the first batch of a part differs from what it was asked.

    Attributes:
        missing: Rows without a result.
        foreign: Results whose row does not exist or already has a result.
    """

    missing: int
    foreign: int


class Lines:
    """Looks up lines of a file by row number; both are in ascending order.

    Attributes:
        skipped: Lines that no row asked for.
    """

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            TableError: The first line is not the result of a row.
        """
        self.skipped = 0
        self._file: BinaryIO | None = path.open("rb") if path.exists() else None
        self._path = path
        self._line = b""
        self._number = 0
        try:
            self._next()
        except TableError:
            self.close()
            raise

    def take(self, number: int) -> bytes | None:
        """The line of a row, once; rows are asked for in ascending order."""
        while self._line and self._number < number:
            self.skipped += 1
            self._next()
        if not self._line or self._number != number:
            return None
        line = self._line
        self._next()
        return line

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        while self._line:
            yield self._number, self._line
            self._next()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _next(self) -> None:
        self._line = self._file.readline(LARGE_BYTES_MAX) if self._file else b""
        if self._line:
            before, self._number = self._number, number_of(self._line)
            if self._number <= before:
                raise TableError(f"{self._path}: row {self._number} comes after row {before}")


class _Results:
    """The results of a part."""

    def __init__(self, rounds: Sequence[Round], reader: Reader, opened: ExitStack) -> None:
        self._reader = reader
        self._missing = 0
        self._rounds = [
            (
                each.prices,
                opened.enter_context(closing(Lines(each.output))),
                opened.enter_context(closing(Lines(each.errors))),
            )
            for each in rounds
        ]

    def row(self, number: int, fault: str | None) -> list[Any]:
        """The values of a row, in the order of the reader's fields and of `FACTS`."""
        values: list[Any] = [None] * len(self._reader.fields)
        error: str | None = None
        if fault is not None:
            return [*values, fault, 0, 0, 0, 0.0]
        attempts = read = written = 0
        cost: float | None = 0.0
        for prices, output, errors in self._rounds:
            if (line := output.take(number)) is not None:
                # Apart from the answer, whose form may be odd: the line costs as much all the same.
                extras = failure_of(line).tidemill
                attempts += extras.attempts or 1
                tokens = extras.tokens
                read, written = read + tokens[0], written + tokens[1]
                more = None if prices is None else tokens[0] * prices[0] + tokens[1] * prices[1]
                cost = None if cost is None or more is None else cost + more
                try:
                    values, error = self._reader.read(result_of(line))
                except RowError as unreadable:
                    error = str(unreadable)
            elif (line := errors.take(number)) is not None:
                failure = failure_of(line)
                attempts, error = attempts + failure.attempts, failure.why
        if not attempts and error is None:
            self._missing += 1
            error = "the service returned no result"
        return [*values, error, attempts, read, written, cost]

    def finish(self) -> Balance:
        """Read the files to their ends.

        Raises:
            TableError: They are out of order.
        """
        for _, output, errors in self._rounds:
            output.take(sys.maxsize)
            errors.take(sys.maxsize)
        foreign = sum(output.skipped + errors.skipped for _, output, errors in self._rounds[:1])
        return Balance(missing=self._missing, foreign=foreign)


def schema_of(kept: pa.Schema, reader: Reader) -> pa.Schema:
    """The columns of a piece."""
    return pa.schema([*kept, *added(kept.names, reader)])


def added(kept: Sequence[str], reader: Reader) -> list[pa.Field]:
    """The columns after the kept ones: those of the answer, then `FACTS`, whose names come first."""
    facts = named(FACTS, kept)
    return [*named(reader.fields, [*kept, *(field.name for field in facts)]), *facts]


def write(target: BinaryIO, rows: Path, first: int, rounds: Sequence[Round], reader: Reader) -> Balance:
    """Write the piece of a part, whose first row has this number; `rows` has its kept columns and `FAULT`.

    Raises:
        TableError: The results are out of order.
        OSError: The disk is full.
    """
    with ExitStack() as opened:
        source = opened.enter_context(ipc.open_stream(opened.enter_context(rows.open("rb"))))
        kept = source.schema.remove(source.schema.get_field_index(FAULT))
        schema = schema_of(kept, reader)
        results = _Results(rounds, reader, opened)
        sink = opened.enter_context(ipc.new_stream(target, schema))
        # Also a table without rows has columns, and a sink learns them from a batch.
        sink.write_batch(pa.RecordBatch.from_pylist([], schema=schema))
        for batch in source:
            faults = batch.column(batch.num_columns - 1).to_pylist()
            found = [results.row(first + at, fault) for at, fault in enumerate(faults)]
            first += len(faults)
            added = [
                pa.array(column, field.type)
                for column, field in zip(zip(*found, strict=True), list(schema)[len(kept) :], strict=True)
            ]
            sink.write_batch(pa.RecordBatch.from_arrays([*batch.columns[:-1], *added], schema=schema))
        return results.finish()


def repairs(round_: Round, chats: Chats, reader: Reader) -> Iterator[bytes]:
    """The requests to ask again: for each answer that does not fit the schema."""
    with ExitStack() as opened:
        requests, output, errors = (
            opened.enter_context(closing(Lines(path))) for path in (round_.requests, round_.output, round_.errors)
        )
        for number, request in requests:
            answer, fault = None, None
            if (line := output.take(number)) is not None:
                answer, fault = _fault(line, reader)
            elif (line := errors.take(number)) is not None:
                failure = failure_of(line)
                if failure.error is not None and failure.error.code == INVALID:
                    answer, fault = failure.answer, failure.error.text
            if fault is not None:
                yield chats.repair(request, answer or "", fault)


def _fault(line: bytes, reader: Reader) -> tuple[str | None, str | None]:
    """The text of an answer and what is wrong with it; an unreadable reply is not asked again."""
    try:
        values, fault = reader.read(result_of(line))
    except RowError:
        return None, None
    return values[0], None if fault is None else fault.removeprefix(f"{INVALID}: ")


def batches(pieces: Iterable[Path]) -> Iterator[pa.RecordBatch]:
    """The batches of pieces, in order."""
    for piece in pieces:
        with piece.open("rb") as file, ipc.open_stream(file) as reader:
            yield from reader
