"""The parts of a table on disk, each with the requests of one batch, in the folder of the run's journal.

| file of a part | holds |
|---|---|
| `rows.arrow` | the columns to keep, and why rows are not asked |
| `0.jsonl`, `1.jsonl`, … | its requests, and those of each repair |
| `0/`, `1/`, … | the journals of their batches, with the results |
| `part.json` | the rows of the part; it exists once the files above are complete |
| `piece.arrow` | its rows with their results; then it replaces all the others |
| `results.json` | the results of its batches |

A part is made once: a resumed run makes only those that do not exist yet.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, Final

import msgspec
import pyarrow as pa
from pyarrow import ipc

from tidemill.client.http.client import Bounds
from tidemill.client.maps.task import Task
from tidemill.client.runs.journal import Journal
from tidemill.client.runs.outcome import BatchResult
from tidemill.storage.atomic_file import replacing
from tidemill.tables import RowError
from tidemill.tables.pieces import FAULT
from tidemill.tables.sources.rows import Rows

PART_ROWS_MAX: Final = 50_000
PART_BYTES_MAX: Final = 192 << 20
"""Bytes of the requests of a part, which are on disk while the part is at work."""


class Stopped(Exception):
    """The command ends, so the part is left unfinished."""


class Part(msgspec.Struct, frozen=True):
    """Some consecutive rows."""

    number: int
    first: int
    """Number of its first row, from 1."""
    rows: int
    lines: int
    """Rows that are asked."""
    is_last: bool


_parts: Final = msgspec.json.Decoder(Part)
_results: Final = msgspec.json.Decoder(list[BatchResult])


@dataclass(frozen=True)
class PartFolder:
    """The paths of the files of a part."""

    path: Path

    @property
    def rows(self) -> Path:
        """Its rows."""
        return self.path / "rows.arrow"

    @property
    def piece(self) -> Path:
        """Its rows with their results; it exists once the part is done."""
        return self.path / "piece.arrow"

    def requests(self, attempt: int) -> Path:
        """Its requests, or those of a repair."""
        return self.path / f"{attempt}.jsonl"

    def journal(self, attempt: int) -> Path:
        """The journal of their batch."""
        return self.path / str(attempt)

    def part(self) -> Part | None:
        """The saved part; None before the folder is complete."""
        try:
            return _parts.decode((self.path / "part.json").read_bytes())
        except FileNotFoundError:
            return None

    def is_asked(self) -> bool:
        """Whether the part is done, or the service has a batch of it or may have one."""
        if self.piece.exists():
            return True
        with Journal(self.journal(0)) as journal:
            return journal.has_batches

    def save(self, part: Part) -> None:
        """Note that the part is whole."""
        with replacing(self.path / "part.json") as file:
            file.write(msgspec.json.encode(part))

    def results(self) -> list[BatchResult]:
        """The results of a part that is done."""
        return _results.decode((self.path / "results.json").read_bytes())

    def save_results(self, found: Sequence[BatchResult]) -> None:
        """Save them, before the piece."""
        with replacing(self.path / "results.json") as file:
            file.write(msgspec.json.encode(list(found)))

    def clear(self) -> None:
        """Remove the files that a finished part no longer needs."""
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.suffix == ".jsonl" or path == self.rows:
                path.unlink()


def folder_of(run: Path, number: int) -> PartFolder:
    """The folder of a part in that of its run."""
    return PartFolder(run / f"{number:06}")


def request_bytes_max(bounds: Bounds) -> int:
    """The most bytes of a request: it has to fit a part by itself."""
    return min(bounds.line_bytes_max, bounds.bytes_max, PART_BYTES_MAX)


class PartMaker:
    """Makes the parts of a table one after the other; used by one thread at a time."""

    def __init__(self, run: Path, task: Task, bounds: Bounds, stop: Event) -> None:
        """Continue after the parts that exist; set `stop` to end a part that is being made."""
        self._run, self._source, self._requests, self._stop = run, task.source, task.requests, stop
        self._bounds = bounds
        schema = task.source.schema
        self._kept = [schema.get_field_index(name) for name in task.kept]
        self._names = list(task.requests.columns(schema.names))
        self._schema = pa.schema([*(schema.field(at) for at in self._kept), pa.field(FAULT, pa.string())])
        self._number, self._first, self._is_over = 0, 1, False
        self._rows: Iterator[Rows] | None = None
        self._left: Rows | None = None

    def next(self, rows_max: int = PART_ROWS_MAX) -> Part | None:
        """The next part: one that exists, or a new one of at most `rows_max` rows; None after the last one.

        After an error there is no further part.

        Raises:
            TableError: The source cannot be read.
            Stopped: The command ends.
            OSError: The disk is full.
        """
        if self._is_over:
            return None
        folder = folder_of(self._run, self._number)
        # The rows of a part that fails are gone: a further part would lack them.
        self._is_over = True
        part = folder.part() or self._made(folder, min(rows_max, self._bounds.lines_max, self._bounds.inputs_max))
        self._number, self._first, self._is_over = part.number + 1, part.first + part.rows, part.is_last
        return part

    def _made(self, folder: PartFolder, rows_max: int) -> Part:
        folder.path.mkdir(exist_ok=True)
        bytes_max = min(PART_BYTES_MAX, self._bounds.bytes_max)
        count = lines = size = 0
        is_last = False
        with (
            replacing(folder.rows) as kept,
            replacing(folder.requests(0)) as asked,
            ipc.new_stream(kept, self._schema) as sink,
        ):
            while count < rows_max:
                if (rows := self._next_rows()) is None:
                    is_last = True
                    break
                made, faults = self._lines(rows, self._first + count, rows_max - count, bytes_max - size)
                if not faults:
                    self._left = rows
                    break
                if len(faults) < rows.batch.num_rows:
                    self._left = rows.after(len(faults))
                asked.write(b"".join(made))
                sink.write_batch(self._kept_of(rows, faults))
                count, lines, size = count + len(faults), lines + len(made), size + sum(map(len, made))
        part = Part(number=self._number, first=self._first, rows=count, lines=lines, is_last=is_last)
        folder.save(part)
        return part

    def _next_rows(self) -> Rows | None:
        if self._left is not None:
            rows, self._left = self._left, None
            return rows
        if self._rows is None:
            self._rows = self._source.read(self._first - 1)
        return next(self._rows, None)

    def _lines(
        self, rows: Rows, number: int, rows_max: int, bytes_max: int
    ) -> tuple[list[bytes], list[str | None]]:
        """The requests of the first rows that fit, and each row's fault, None if it has a request."""
        lines: list[bytes] = []
        faults: list[str | None] = []
        for at, row in enumerate(rows.values(self._names)):
            if at >= rows_max:
                break
            if self._stop.is_set():
                raise Stopped
            line, fault = self._line(number + at, row, rows.faults.get(at))
            bytes_max -= len(line)
            # A part gets at least one row: a request too long for any part has a fault instead of a line.
            if bytes_max < 0:
                break
            faults.append(fault)
            lines += [line] if line else []
        return lines, faults

    def _line(self, number: int, row: dict[str, Any], fault: str | None) -> tuple[bytes, str | None]:
        if fault is not None:
            return b"", fault
        try:
            line = self._requests.line(number, row)
        except RowError as error:
            return b"", str(error)
        if len(line) > (most := request_bytes_max(self._bounds)):
            return b"", f"its request has {len(line):,} bytes; at most {most:,} are accepted"
        return line, None

    def _kept_of(self, rows: Rows, faults: list[str | None]) -> pa.RecordBatch:
        batch = rows.batch.slice(0, len(faults))
        columns = [*(batch.column(at) for at in self._kept), pa.array(faults, pa.string())]
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)
