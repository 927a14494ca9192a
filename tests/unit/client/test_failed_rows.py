"""`--retry-failed`: any rows may have failed, and each keeps its place."""

import os
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from support.service import KEY, Batches

from tidemill.client.errors import Exit
from tidemill.client.http.client import Client
from tidemill.client.maps import output
from tidemill.client.maps.failed_rows import FinishedTable
from tidemill.client.maps.job import MapOptions, run
from tidemill.client.maps.output import Totals
from tidemill.client.maps.task import ChatOptions, Task, chats, embeddings, identity
from tidemill.tables import TableError, pieces
from tidemill.tables.sources.opening import opened
from tidemill.terminal import Console

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


@pytest.fixture
async def service() -> AsyncIterator[Batches]:
    """A service in an outage, which answers no row as the schema demands."""
    async with Batches() as service:
        service.answer = lambda _: "an outage"
        yield service


def mended(line: dict[str, Any]) -> str:
    """An answer after the outage: the first six rows have none for ever."""
    return "no" if int(line["custom_id"]) <= 6 else '{"stars": 5}'


async def failed_run(service: Batches, console: Console, folder: Path, **options: Any) -> Exit:
    """Ask all of 16 rows, and after the outage those that failed."""
    path = folder / "in.csv"
    path.write_text("text\n" + "".join(f"row {number}\n" for number in range(16)))
    schema = {"type": "object", "properties": {"stars": {"type": "integer"}}, "required": ["stars"]}
    asked = ChatOptions(model="m", prompt="{{ text }}", schema=schema, repairs=0)
    task = chats(opened(str(path), {}), "in.csv", (), asked, {})
    target = str(folder / "out.parquet")
    async with Client(service.url, KEY) as client:
        assert await run(console, client, task, MapOptions(output=target, tries=0)) is Exit.SOME_FAILED
        service.answer = mended
        return await run(console, client, task, MapOptions(output=target, retry_failed=True, **options))


def stars(folder: Path) -> list[int | None]:
    """The answers in the table."""
    return list(parquet.read_table(folder / "out.parquet")["stars"].to_pylist())


async def test_rows_without_hope_stop_no_others(service: Batches, console: Console, tmp_path: Path) -> None:
    """The first failed rows are no sample of the others, unless the user asks for one."""
    assert await failed_run(service, console, tmp_path) is Exit.SOME_FAILED
    assert stars(tmp_path) == [None] * 6 + [5] * 10
    assert [len(lines) for lines in service.inputs] == [16, 16]
    assert "No row of the sample" not in console.export_text()


async def test_a_sample_of_failed_rows_is_asked_on_demand(
    service: Batches, console: Console, tmp_path: Path
) -> None:
    """Then it ends the run as that of any other."""
    assert await failed_run(service, console, tmp_path, tries=5) is Exit.SOME_FAILED
    assert stars(tmp_path) == [None] * 16
    assert [len(lines) for lines in service.inputs] == [16, 5]
    assert "No row of the sample" in console.export_text()


async def test_a_dry_run_of_failed_rows_shows_some(service: Batches, console: Console, tmp_path: Path) -> None:
    """Their answers were paid for: the run goes on with the others."""
    assert await failed_run(service, console, tmp_path, is_dry=True) is Exit.OK
    assert [len(lines) for lines in service.inputs] == [16, 5]
    said = console.export_text()
    assert "goes on with the other rows" in said
    assert "No row of the sample" not in said
