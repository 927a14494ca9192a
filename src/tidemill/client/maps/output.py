"""Writes the output table from its pieces, and counts its rows, tokens and cost."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

import pyarrow as pa
from pyarrow import compute, fs

from tidemill.storage.atomic_file import replacing
from tidemill.tables import TableError, sinks
from tidemill.tables.columns import sized
from tidemill.tables.replies import FLOAT_BYTES
from tidemill.tables.sources.files import JOURNAL, S3, failures, system_of

REASONS_MAX: Final = 1_000
"""Number of distinct reasons to count."""
REASON_CHARS: Final = 120
RUN: Final = b"tidemill.run"
"""Metadata key of a table for the hash of its run's requests."""

Batches = Callable[[], Iterator[pa.RecordBatch]]
"""Reads a table from its first row."""


@dataclass
class Totals:
    """Totals of an output table, and the names of its columns."""

    run: str
    """Hash of the requests."""
    error: str
    input_tokens: str
    output_tokens: str
    cost: str
    rows: int = 0
    failed: int = 0
    tokens: list[int] = field(default_factory=lambda: [0, 0])
    costs: float | None = 0.0
    """None if the cost of a row is not known."""
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, batch: pa.RecordBatch) -> None:
        """Count rows."""
        self.rows += batch.num_rows
        for side, name in enumerate((self.input_tokens, self.output_tokens)):
            self.tokens[side] += compute.sum(batch.column(name)).as_py() or 0
        costs = batch.column(self.cost)
        more = None if costs.null_count else compute.sum(costs).as_py() or 0.0
        self.costs = None if self.costs is None or more is None else self.costs + more
        errors = batch.column(self.error)
        if errors.null_count == len(errors):
            return
        for error in filter(None, errors.to_pylist()):
            self.failed += 1
            reason = error[:REASON_CHARS]
            self.reasons[reason if reason in self.reasons or len(self.reasons) < REASONS_MAX else "others"] += 1


def check_bucket(target: str, environ: Mapping[str, str], *, force: bool) -> None:
    """Check that an object can be written, by writing another beside it; with `force` it may exist.

    Raises:
        TableError: It cannot, or exists.
    """
    with failures(f"-o {target}"):
        system, path = system_of(target, environ)
        kind = system.get_file_info(path).type
        if kind == fs.FileType.Directory or (kind != fs.FileType.NotFound and not force):
            raise TableError(f"{target} already exists; --force overwrites an object")
        system.open_output_stream(path + JOURNAL).close()
        # The credentials may lack the right to delete; no run reads an object of this name.
        with suppress(OSError):
            system.delete_file(path + JOURNAL)


def write(
    target: str, folder: Path, batches: Batches, *, vector: str | None, totals: Totals, environ: Mapping[str, str]
) -> None:
    """Write the table of these batches; `vector` is the column with embeddings, if there is one.

    A table for a bucket is made in the folder first.

    Raises:
        TableError: The bucket cannot be written.
        OSError: The disk is full.
    """
    suffix = sinks.suffix_of(target)
    if target.startswith(S3):
        local = folder / f"output{suffix}"
        with replacing(local) as file:
            _write(file, suffix, batches, vector, totals)
        system, path = system_of(target, environ)
        with failures(f"-o {target}"), local.open("rb") as source, system.open_output_stream(path) as upload:
            shutil.copyfileobj(source, upload, 1 << 20)
        return
    with replacing(Path(target)) as file:
        _write(file, suffix, batches, vector, totals)


def _write(file: BinaryIO, suffix: str, batches: Batches, vector: str | None, totals: Totals) -> None:
    size = None if vector is None else _vector_bytes(batches(), vector)
    with ExitStack() as opened:
        sink: Any = None
        for batch in batches():
            final = batch if vector is None else _sized(batch, vector, size, totals.error)
            if sink is None:
                schema = final.schema.with_metadata({RUN: totals.run})
                sink = opened.enter_context(sinks.writing(file, suffix, schema))
            totals.add(final)
            sink.write(final)


def _vector_bytes(batches: Iterable[pa.RecordBatch], vector: str) -> int | None:
    """The bytes of the first embedding."""
    for batch in batches:
        column = batch.column(vector)
        if column.null_count < len(column):
            return len(compute.drop_null(column)[0].as_py())
    return None


def _sized(batch: pa.RecordBatch, vector: str, size: int | None, error: str) -> pa.RecordBatch:
    """The batch with lists of a fixed size; a row whose embedding has another size has an error."""
    names = batch.schema.names
    column, odd = sized(batch.column(vector), size or FLOAT_BYTES)
    batch = batch.set_column(names.index(vector), pa.field(vector, column.type), column)
    if odd:
        errors = batch.column(error).to_pylist()
        for at in odd:
            errors[at] = "invalid_output: the embedding has another length than the first one"
        batch = batch.set_column(names.index(error), pa.field(error, pa.string()), pa.array(errors, pa.string()))
    return batch
