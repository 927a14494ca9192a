"""`--retry-failed`: any rows may have failed, and each keeps its place."""

import os
import struct
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.client.maps import output
from tidemill.client.maps.failed_rows import FinishedTable
from tidemill.client.maps.output import Totals
from tidemill.client.maps.task import Task, embeddings, identity
from tidemill.tables import TableError, pieces
from tidemill.tables.sources.opening import opened

Piece = dict[int, bool]
"""The rows of a piece, and which of them have a vector."""


def batch_of(task: Task, rows: Piece, attempts: int) -> pa.RecordBatch:
    """Rows in the columns of a piece; the vector of a row has its number."""
    added = pieces.added(task.kept, task.reader)
    vectors = [struct.pack("<2f", number, attempts) if is_good else None for number, is_good in rows.items()]
    errors = [None if is_good else "e" for is_good in rows.values()]
    counts = [[each] * len(rows) for each in (attempts, 10 * attempts, 0, 0.5 * attempts)]
    columns = [
        pa.array(column, field.type) for column, field in zip((vectors, errors, *counts), added, strict=True)
    ]
    texts = pa.array([str(number) for number in rows])
    schema = pa.schema([pa.field("text", pa.string()), *added])
    return pa.RecordBatch.from_arrays([texts, *columns], schema=schema)


def written(folder: Path, task: Task, batches: list[pa.RecordBatch], suffix: str) -> str:
    """The path of a table."""
    path = str(folder / f"out{suffix}")
    totals = Totals(
        run=identity(task), error="error", input_tokens="input_tokens", output_tokens="output_tokens", cost="cost"
    )
    output.write(path, folder, lambda: iter(batches), vector="embedding", totals=totals, environ={})
    return path


@given(
    st.lists(st.booleans(), min_size=1, max_size=30), st.integers(1, 40), st.sampled_from([".parquet", ".arrow"])
)
def test_each_answer_joins_its_row(
    tmp_path_factory: pytest.TempPathFactory, is_good: list[bool], size: int, suffix: str
) -> None:
    """In batches of any size, on both sides, with vectors that are null."""
    folder = tmp_path_factory.mktemp("table")
    (folder / "in.csv").write_text("text\n" + "".join(f"{number}\n" for number in range(len(is_good))))
    task = embeddings(
        opened(str(folder / "in.csv"), os.environ), "in", (), model="m", column="text", prompt=None, more={}
    )
    rows = dict(enumerate(is_good))
    table = batch_of(task, rows, 1)
    path = written(folder, task, [table.slice(at, size) for at in range(0, len(rows), size)], suffix)
    finished = FinishedTable(path, task, {})
    failed = [number for number, good in rows.items() if not good]
    assert list(finished.failed) == failed
    found = finished.task(task).source
    assert [text for part in found.read(0) for text in part.batch.column("text").to_pylist()] == list(
        map(str, failed)
    )
    assert [text for part in found.read(1) for text in part.batch.column("text").to_pylist()] == list(
        map(str, failed[1:])
    )
    again = batch_of(task, dict.fromkeys(failed, True), 2)
    answers = [again.slice(at, 3) for at in range(0, len(failed), 3)]
    joined = pa.Table.from_batches(list(finished.with_answers(answers)))
    expected = [
        {
            "text": str(number), "embedding": struct.pack("<2f", number, 1 if good else 2), "error": None,
            "attempts": 1 if good else 3, "input_tokens": 10 if good else 30, "output_tokens": 0,
            "cost": 0.5 if good else 1.5,
        }
        for number, good in rows.items()
    ]  # fmt: skip
    assert joined.to_pylist() == expected
    if failed:
        with pytest.raises(TableError, match="fewer answers"):
            list(finished.with_answers(answers[:-1]))
