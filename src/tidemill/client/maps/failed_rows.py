"""`--retry-failed`: the rows of a finished table that have an error, and the table with their new answers.

The table names the run that wrote it in its metadata, so that answers to other requests are never joined to it.
"""

import hashlib
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import pyarrow as pa
from pyarrow import compute

from tidemill.client.maps.output import RUN
from tidemill.client.maps.task import Task, identity
from tidemill.tables import TableError, pieces, sinks
from tidemill.tables.columns import FACTS, VectorReader, unsized
from tidemill.tables.sources.columnar import SUFFIXES, ColumnarSource
from tidemill.tables.sources.files import Files
from tidemill.tables.sources.rows import Rows, Source, skipped


def keeps_types(output: str) -> bool:
    """Whether the format of a table keeps types and metadata, so that its failed rows can be asked again."""
    return sinks.suffix_of(output) in SUFFIXES


class FinishedTable:
    """A table that a run of the same task wrote.

    Attributes:
        failed: Numbers of the rows with an error, from 0; they ascend.
    """

    def __init__(self, output: str, task: Task, environ: Mapping[str, str]) -> None:
        """Open the table, and find the rows with an error.

        Raises:
            TableError: It does not exist, has another format, or another run wrote it.
        """
        if not keeps_types(output):
            raise TableError(f"-o {output}: only a table in Parquet or Arrow can ask its failed rows again")
        files = Files(output, environ)
        self._source = ColumnarSource(files, files.found)
        if (self._source.schema.metadata or {}).get(RUN) != identity(task).encode():
            raise TableError(
                f"{output} is the table of other requests: the source, the model or another option differs"
            )
        self._added = pieces.added(task.kept, task.reader)
        self._vector = self._added[0].name if isinstance(task.reader, VectorReader) else None
        self.failed = array("q")
        error, first = self._added[-len(FACTS)].name, 0
        for rows in self._source.read(0):
            is_failed = compute.is_valid(rows.batch.column(error))
            self.failed.extend(first + at for at in compute.indices_nonzero(is_failed).to_pylist())
            first += rows.batch.num_rows

    def task(self, task: Task) -> Task:
        """The task for the failed rows alone."""
        return replace(task, source=_Failed(task.source, self.failed))

    def with_answers(self, answers: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The whole table in the columns of a piece, with new answers to its failed rows, in their order.

        Calls, tokens and costs add up.

        Raises:
            TableError: There are fewer answers than failed rows.
        """
        waiting = _Waiting(answers)
        for first, batch in _numbered(self._source.read(0)):
            places = _places(self.failed, first, batch.num_rows)
            plain = batch if self._vector is None else _as_bytes(batch, self._vector)
            yield self._merged(plain, places, waiting.take(len(places))) if places else plain

    def _merged(self, batch: pa.RecordBatch, places: Sequence[int], answers: pa.Table) -> pa.RecordBatch:
        chosen = list(range(batch.num_rows))
        for at, place in enumerate(places):
            chosen[place] = batch.num_rows + at
        columns, counts = list(batch.columns), batch.num_columns - len(FACTS) + 1
        for at, field in enumerate(self._added, start=batch.num_columns - len(self._added)):
            before = columns[at]
            after = answers.column(field.name).combine_chunks().cast(before.type)
            if at >= counts:
                after = compute.add(after, before.take(pa.array(places)))
            columns[at] = pa.concat_arrays([before, after]).take(pa.array(chosen))
        return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


class _Waiting:
    """Hands out rows in order, across batches."""

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        self._batches = iter(batches)
        self._left: pa.RecordBatch | None = None

    def take(self, count: int) -> pa.Table:
        """The next rows."""
        found: list[pa.RecordBatch] = []
        while count:
            batch = self._left if self._left is not None else next(self._batches, None)
            if batch is None:
                raise TableError("there are fewer answers than rows with an error")
            found.append(batch.slice(0, count))
            self._left = batch.slice(count) if batch.num_rows > count else None
            count -= found[-1].num_rows
        return pa.Table.from_batches(found)


class _Failed:
    """The rows of a source with these numbers, which ascend."""

    def __init__(self, source: Source, numbers: "array[int]") -> None:
        self._source, self._numbers = source, numbers
        self.schema, self.kept, self.images = source.schema, source.kept, source.images
        self.rows: int | None = len(numbers)
        self.fingerprint = hashlib.sha256(source.fingerprint.encode() + numbers.tobytes()).hexdigest()

    def read(self, start: int) -> Iterator[Rows]:
        """See `Source.read`."""
        return skipped(self._read(), start)

    def _read(self) -> Iterator[Rows]:
        first = 0
        for rows in self._source.read(0):
            places = _places(self._numbers, first, rows.batch.num_rows)
            first += rows.batch.num_rows
            if places:
                yield rows.at(places)


def _numbered(found: Iterable[Rows]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Each batch with the number of its first row, from 0."""
    first = 0
    for rows in found:
        yield first, rows.batch
        first += rows.batch.num_rows


def _places(numbers: Sequence[int], first: int, count: int) -> list[int]:
    """The places in a batch of rows with these numbers."""
    begin, end = (bisect_left(numbers, each) for each in (first, first + count))
    return [number - first for number in numbers[begin:end]]


def _as_bytes(batch: pa.RecordBatch, vector: str) -> pa.RecordBatch:
    column = unsized(batch.column(vector))
    return batch.set_column(batch.schema.names.index(vector), pa.field(vector, column.type), column)
