"""Sources of rows: every row comes once and in order, from any start, and a faulty one says why."""

import ast
import csv
import gzip
import io
import os
import re
import subprocess
import sys

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import ipc, parquet

from tidemill.tables import TableError, sinks, values
from tidemill.tables.json_types import fitted, kind_of, merged, type_of
from tidemill.tables.sources.opening import opened

cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)


def rows_of(path, start=0, **options):
    """The rows of a source, with their faults."""
    found = []
    for rows in opened(str(path), {}, **options).read(start):
        found += [(row, rows.faults.get(at)) for at, row in enumerate(values.rows_of(rows.batch))]
    return found


@given(st.lists(st.lists(cells, min_size=2, max_size=2), min_size=1), st.integers(0, 3))
def test_a_csv_keeps_each_cell(tmp_path_factory, rows, start):
    """Quotes, newlines and all other characters, as the standard writer writes them."""
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    text = io.StringIO()
    csv.writer(text).writerows([["a", "b"], *rows])
    path.write_bytes(text.getvalue().encode())
    found = [list(row.values()) for row, fault in rows_of(path, start) if fault is None]
    assert found == rows[start:]


def test_a_ragged_row_of_a_csv_has_a_fault(tmp_path):
    """It names the line of the file, and the other rows stay."""
    path = tmp_path / "a.csv"
    path.write_bytes(b'id;text\n1;"x\ny"\n2\n3;a;b\n\n007;\xff\n9;ok\n')
    found = rows_of(path)
    assert [row["id"] for row, _ in found] == ["1", "2", "3", "007", "9"]
    faults = [fault for _, fault in found]
    assert faults[0] is faults[4] is None
    assert [fault.split(":")[0] for fault in faults[1:4]] == ["line 4", "line 5", "line 7"]
    assert "1 cells instead of 2" in faults[1]
    assert "not UTF-8" in faults[3]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b'a,"b\n1,x\n', "line 1"),
        ("a.csv", b"a,a\n1,2\n", "each column once, but has ['a'] twice"),
        ("a.csv", b",,\n1,2,3\n", "names"),
        ("a.csv", b"", "names"),
        ("a.jsonl", b"[1]\n", "no line with an object"),
        ("a.parquet", b"PAR1", "a.parquet"),
        ("a.arrow", b"ARROW1", "a.arrow"),
        ("a.xlsx", b"PK", "not known"),
        ("a.txt.bak", b"", "not known"),
    ],
)
def test_a_broken_table_is_refused(tmp_path, name, content, said):
    """The message names the file or the line."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(TableError) as caught:
        rows_of(path)
    assert said in str(caught.value)


def test_a_missing_table_is_refused(tmp_path):
    """So is a folder without tables and documents."""
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(TableError):
            opened(str(path), {})


@pytest.mark.parametrize("name", ["data", "data/*.parquet", "data/a.parquet"])
def test_an_output_is_no_file_of_its_source(tmp_path, monkeypatch, name):
    """The next run, or a resumed one, would read it; nor does a run read the journal of another."""
    monkeypatch.chdir(tmp_path)
    for path in ("data/a.parquet", "data/out.parquet.tidemill/000000/rows.parquet", "b.parquet"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.table({"id": [1]}), path)
    (tmp_path / "link").symlink_to("data")
    output = "link/a.parquet" if name.endswith("a.parquet") else "link/out.parquet"
    for inner in (output, output.replace("link", f"{tmp_path}/data")):
        with pytest.raises(TableError, match=f"-o {inner}"):
            opened(name, {}, output=inner)
    assert [row for rows in opened(name, {}, output="out.parquet").read(0) for row in rows.batch.to_pylist()] == [
        {"id": 1}
    ]


NESTED = pa.table({
    "id": pa.array([1, 2, None, 4], pa.int64()),
    "who": pa.array([{"name": "a", "tags": ["x"]}, None, {"name": None, "tags": []}, {"name": "d", "tags": None}]),
    "kind": pa.array(["p", None, "q", "p"]).dictionary_encode(),
    "at": pa.array([1, 2, 3, None], pa.timestamp("us", "UTC")),
})  # fmt: skip


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "stream.arrow"])
def test_nested_types_and_nulls_stay(tmp_path, suffix):
    """In both formats of Arrow and in Parquet, from the middle of a row group too; a dictionary is unpacked."""
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        parquet.write_table(NESTED, path, row_group_size=2)
    else:
        new = ipc.new_file if suffix == "arrow" else ipc.new_stream
        with new(path, NESTED.schema) as sink:
            sink.write_table(NESTED, max_chunksize=2)
    for start in range(5):
        assert [row for row, _ in rows_of(path, start)] == NESTED.to_pylist()[start:]
    assert opened(str(path), {}).schema.field("kind").type == pa.string()


def test_a_data_set_has_one_split(tmp_path):
    """Several files are one table; the files of two splits are not."""
    (tmp_path / "data").mkdir()
    (tmp_path / "dataset_info.json").write_text("{}")
    for number in (0, 1):
        parquet.write_table(NESTED, tmp_path / "data" / f"train-0000{number}-of-00002.parquet")
    assert len(rows_of(tmp_path)) == 8
    assert opened(str(tmp_path), {}).rows == 8
    parquet.write_table(NESTED, tmp_path / "data" / "test-00000-of-00001.parquet")
    with pytest.raises(TableError, match=r"test, train.*data/test-\*"):
        opened(str(tmp_path), {})
    assert len(rows_of(tmp_path / "data" / "train-*")) == 8


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


def holds(stored, value):
    """Whether a column keeps a value; missing fields are null, and mixed values are JSON text."""
    if isinstance(stored, str) and not isinstance(value, str):
        return True
    if isinstance(value, dict):
        return all(holds(stored[name], each) for name, each in value.items())
    if isinstance(value, list):
        return len(stored) == len(value) and all(map(holds, stored, value))
    return stored == value or isinstance(stored, str)


@given(st.lists(json_values, min_size=1, max_size=6))
def test_a_column_holds_all_values(found):
    """The merged type takes each value, and loses none."""
    kind = "null"
    for value in found:
        kind = merged(kind, kind_of(value))
    stored = pa.array([fitted(value, kind) for value in found], type_of(kind)).to_pylist()
    assert all(map(holds, stored, found))


def test_jsonl_has_typed_columns(tmp_path):
    """Types come from all lines; a faulty line is a row with a fault."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"n": 1, "who": {"a": 1}}\n{"n": 2.5, "new": "x"}\n{"n": \n\n{"n": null, "who": {"b": [1]}}\n'
    )
    found = rows_of(path)
    assert [row["n"] for row, _ in found] == [1.0, 2.5, None, None]
    assert found[3][0]["who"] == {"a": None, "b": [1]}
    assert found[2][1].startswith("line 3")
    assert opened(str(path), {}).rows == 4


def test_a_header_that_is_not_utf_8_is_named(tmp_path):
    """As a row is."""
    (tmp_path / "a.csv").write_bytes("größe;text\n1;a\n".encode("latin-1"))
    with pytest.raises(TableError, match=r"a.csv, line 1: it is not UTF-8"):
        opened(str(tmp_path / "a.csv"), {})


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.gz"])
def test_a_file_that_is_cut_short_is_named(tmp_path, name):
    """Wherever reading finds it."""
    path = tmp_path / name
    row = b'{"a": "%d"}\n' if "jsonl" in name else b"%d\n"
    path.write_bytes(gzip.compress(b"a\n" * ("csv" in name) + b"".join(row % n for n in range(50_000)))[:-2_000])
    with pytest.raises(TableError, match=re.escape(name)):
        rows_of(path)


def test_a_name_that_is_not_utf_8_is_a_fault_of_the_folder(tmp_path):
    """Arrow's file systems cannot name such a file."""
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / os.fsdecode(b"gr\xf6\xdfe.txt")).write_text("b")
    with pytest.raises(TableError, match="utf-8"):
        opened(str(tmp_path), {})


TIMES = [
    (pa.date32(), 10**7, "29349-01-26"),
    (pa.timestamp("us"), 300_000_000_000_000_000, "11476-08-15 05:20:00.000000"),
    (pa.timestamp("ns"), 1, "1970-01-01 00:00:00.000000001"),
    (pa.time64("ns"), 1, "00:00:00.000000001"),
    (pa.duration("ns"), 1, "1"),
    (pa.list_(pa.date32()), [10**7], ["29349-01-26"]),
    (pa.large_list(pa.timestamp("ns")), [1], ["1970-01-01 00:00:00.000000001"]),
    (pa.list_(pa.timestamp("ns"), 1), [1], ["1970-01-01 00:00:00.000000001"]),
    (pa.struct([("at", pa.timestamp("ns"))]), {"at": 1}, {"at": "1970-01-01 00:00:00.000000001"}),
    (pa.map_(pa.string(), pa.timestamp("ns")), [("at", 1)], [("at", "1970-01-01 00:00:00.000000001")]),
]
WITHOUT_PANDAS = """
import sys
class Lacking:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "pandas":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Lacking())
from pyarrow import ipc
from tidemill.tables.values import rows_of
with ipc.open_stream(sys.stdin.buffer) as reader:
    print([list(row.values()) for row in rows_of(reader.read_next_batch())])
"""


def test_a_time_that_python_lacks_is_text():
    """At any depth; pandas has objects for some of them, and need not be there."""
    columns = [pa.array([value, None], kind) for kind, value, _ in TIMES]
    batch = pa.RecordBatch.from_arrays(columns, [str(at) for at in range(len(TIMES))])
    stream = io.BytesIO()
    with ipc.new_stream(stream, batch.schema) as sink:
        sink.write_batch(batch)
    command = [sys.executable, "-c", WITHOUT_PANDAS]
    done = subprocess.run(command, input=stream.getvalue(), stdout=subprocess.PIPE, check=True)
    assert ast.literal_eval(done.stdout.decode()) == [[text for *_, text in TIMES], [None] * len(TIMES)]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_time_that_python_lacks_can_be_written(suffix):
    """The rows beside it, too."""
    batch = pa.RecordBatch.from_arrays(
        [pa.array([10**7, None], pa.date32()), pa.array(["a", "b"])], ["day", "text"]
    )
    file = io.BytesIO()
    with sinks.writing(file, suffix, batch.schema) as sink:
        sink.write(batch)
    lines = file.getvalue().decode().splitlines()[-2:]
    assert "29349-01-26" in lines[0]
    assert "b" in lines[1]


files = st.sampled_from([
    pa.nulls(2), pa.array([1, 2]), pa.array([1.5, None]), pa.array([(1 << 53) + 1, 1]), pa.array(["a", "b"]),
    pa.array(["a", None], pa.large_string()), pa.array(["a", "b"]).dictionary_encode(), pa.array([b"a", b"b"]),
    pa.array([True, False]), pa.array([1, 2], pa.uint64()), pa.array([(1 << 64) - 1, 0], pa.uint64()),
    pa.array([[1], []]), pa.array([["a"], None]), pa.array([[None], [None]]), pa.array([{"a": 1}, {"a": 2}]),
    pa.array([{"b": 1.5}, None]), pa.array([1, 2], pa.timestamp("us")), pa.array([1 << 62, 2], pa.timestamp("us")),
    pa.array([1, 2], pa.timestamp("ns")), pa.array([1, 2], pa.timestamp("us", "UTC")),
    pa.array([1, 2], pa.date32()), pa.array([1, 2], pa.decimal128(5)), pa.array([1, 2], pa.int8()),
])  # fmt: skip
texts = st.text(st.sampled_from("ab\",;\t\n\r'\0\ud800"), max_size=30).map(
    lambda text: text.encode("utf-8", "surrogatepass")
)


@given(st.lists(files, min_size=1, max_size=4), st.sampled_from(["parquet", "arrow"]))
def test_opening_files_raises_what_reading_them_would(tmp_path_factory, columns, suffix):
    """A run that has been paid for must not end; a value that no type takes is a fault of its row."""
    folder = tmp_path_factory.mktemp("files")
    for at, column in enumerate(columns):
        ids = pa.array([2 * at, 2 * at + 1])
        table = pa.table({"id": ids, "x": column} if at % 2 else {"x": column, "id": ids})
        if suffix == "parquet":
            parquet.write_table(table, folder / f"{at}.parquet")
        else:
            with ipc.new_file(folder / f"{at}.arrow", table.schema) as sink:
                sink.write_table(table)
    try:
        source = opened(str(folder), {})
    except TableError as error:
        assert re.search(r"[1-3]\.(parquet|arrow): the column x is", str(error))  # noqa: PT017 - or it has none
        return
    for start in range(2 * len(columns) + 1):
        found = rows_of(folder, start)
        assert [row["id"] for row, _ in found] == list(range(start, 2 * len(columns)))
    written = [value for column in columns for value in values.values_of(column)]
    assert source.schema.names == ["x", "id"]
    for (row, fault), value in zip(rows_of(folder), written, strict=True):
        assert (row["x"] is None) == (value is None or fault is not None)
        assert fault is None or "the column x" in fault


@given(st.sampled_from(["csv", "tsv", "jsonl"]), texts, st.integers(0, 3))
def test_opening_text_raises_what_reading_it_would(tmp_path_factory, suffix, rest, start):
    """Whatever follows the header; the last row is there, unless it is in a quote that the rest has not closed."""
    path = tmp_path_factory.mktemp("text") / f"a.{suffix}"
    head = b'{"a": 1, "b": ""}\n' if suffix == "jsonl" else b"a\tb\n"
    path.write_bytes(head + rest + b"\nlast\tz\n")
    source = opened(str(path), {})
    found = rows_of(path)
    assert rows_of(path, start) == found[start:]
    assert all(list(row) == source.schema.names for row, _ in found)
    if suffix != "jsonl":
        assert rest.count(b'"') % 2 or b'"' in rest or found[-1] == ({"a": "last", "b": "z"}, None)
