"""The parts of a table: together they have each row once, each fits a batch, and a resumed run goes on."""

import gzip
import json
import tempfile
from pathlib import Path
from threading import Event

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import ipc

from tidemill.client.http.client import Bounds
from tidemill.client.maps.parts import PartMaker, Stopped, folder_of
from tidemill.client.maps.task import embeddings
from tidemill.tables import TableError
from tidemill.tables.sources.opening import opened

LINE_BYTES_MAX = 400


def made(folder, texts, bounds, rows_max=50_000, stop=None):
    """The parts of a table with these texts."""
    path = folder / "in.jsonl"
    if not path.exists():
        path.write_text("".join(json.dumps({"text": text, "id": at}) + "\n" for at, text in enumerate(texts)))
    task = embeddings(opened(str(path), {}), "in", ["id"], model="m", column="text", prompt=None, more={})
    maker = PartMaker(folder, task, bounds, stop or Event())
    return list(iter(lambda: maker.next(rows_max), None))


def rows_of(folder, part):
    """The ids of a part's rows with their faults, and the numbers and sizes of its requests."""
    with ipc.open_stream((folder_of(folder, part.number).rows).read_bytes()) as reader:
        rows = reader.read_all().to_pylist()
    lines = folder_of(folder, part.number).requests(0).read_bytes().splitlines(keepends=True)
    return [tuple(row.values()) for row in rows], [
        (int(json.loads(line)["custom_id"]), len(line)) for line in lines
    ]


texts = st.lists(st.none() | st.text(st.characters(codec="ascii"), max_size=200), max_size=30)


@settings(max_examples=25)
@given(texts.filter(any), st.integers(1, 12), st.integers(LINE_BYTES_MAX, 2_000))
def test_each_row_is_in_one_part(found, rows_max, bytes_max):
    """A row that cannot be asked has its fault there, and the others a request with their number."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bounds = Bounds(lines_max=10, bytes_max=bytes_max, line_bytes_max=LINE_BYTES_MAX)
        parts = made(folder, found, bounds, rows_max)
        ids, asked = [], []
        for part in parts:
            rows, lines = rows_of(folder, part)
            assert (part.first, part.rows, part.lines) == (len(ids) + 1, len(rows), len(lines))
            assert part.rows <= min(rows_max, 10)
            assert sum(size for _, size in lines) <= bytes_max
            ids += rows
            asked += [number for number, _ in lines]
        assert [at for at, _ in ids] == list(range(len(found)))
        assert [at + 1 for at, fault in ids if fault is None] == asked
        assert {found[at] is None or found[at] == "" or len(found[at]) > 100 for at, fault in ids if fault} <= {
            True
        }
        assert [part.is_last for part in parts] == [False] * (len(parts) - 1) + [True]
        (folder_of(folder, parts[-1].number).path / "part.json").unlink()
        assert made(folder, found, bounds, rows_max) == parts


def test_a_stopped_part_is_not_there(tmp_path):
    """The next run makes it anew."""
    stop = Event()
    stop.set()
    with pytest.raises(Stopped):
        made(tmp_path, ["a"], Bounds(), stop=stop)
    assert folder_of(tmp_path, 0).part() is None
    assert [part.rows for part in made(tmp_path, ["a"], Bounds())] == [1]
    assert pa.ipc.open_stream(folder_of(tmp_path, 0).rows.read_bytes()).read_all().num_rows == 1


def test_a_request_that_no_batch_can_hold_is_a_fault_of_its_row(tmp_path):
    """Its part would have no rows, and so would all after it."""
    parts = made(tmp_path, ["a", "b" * 900, "c"], Bounds(bytes_max=500))
    rows = [row for part in parts for row in rows_of(tmp_path, part)[0]]
    assert [fault is None for _, fault in rows] == [True, False, True]
    assert "at most 500 are accepted" in rows[1][1]


def test_no_part_follows_one_that_failed(tmp_path):
    """It would have the rows after those of the failed one, and end the table."""
    rows = "".join(f"{number}\n" for number in range(50_000))
    (tmp_path / "in.csv.gz").write_bytes(gzip.compress(f"text\n{rows}".encode())[:-2_000])
    source = opened(str(tmp_path / "in.csv.gz"), {})
    task = embeddings(source, "in", (), model="m", column="text", prompt=None, more={})
    maker = PartMaker(tmp_path, task, Bounds(), Event())
    with pytest.raises(TableError, match=r"in\.csv\.gz"):
        maker.next()
    assert maker.next() is None
    assert folder_of(tmp_path, 0).part() is None
