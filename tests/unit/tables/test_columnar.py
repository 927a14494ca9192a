"""Parquet and Arrow files that are one table, though programs wrote each by itself."""

import re

import pyarrow as pa
import pytest
from pyarrow import parquet

from tidemill.tables import TableError
from tidemill.tables.sources.frames import INDEX
from tidemill.tables.sources.opening import opened
from tidemill.tables.sources.rows import repeated

WORDS = pa.dictionary(pa.int32(), pa.string())


def source_of(folder, *tables):
    """A folder with these tables."""
    for at, table in enumerate(tables):
        parquet.write_table(table, folder / f"{at}.parquet")
    return opened(str(folder), {})


def columns_of(source):
    """The columns of all rows, and the faults."""
    found = list(source.read(0))
    return pa.Table.from_batches([rows.batch for rows in found]).to_pydict(), [dict(rows.faults) for rows in found]


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        ([pa.nulls(1), pa.array(["a"], pa.large_string())], pa.large_string()),
        ([pa.array([1]), pa.array([1.5])], pa.float64()),
        ([pa.array([1], pa.int8()), pa.array([1])], pa.int64()),
        ([pa.array([[None]]), pa.array([["a"]])], pa.list_(pa.string())),
        ([pa.array([{"a": 1}]), pa.array([{"a": 1.5}])], pa.struct([("a", pa.float64())])),
        ([pa.array(["a"]).dictionary_encode(), pa.array(["b"])], pa.string()),
        ([pa.array([["a", None]], pa.list_(WORDS)), pa.array([["b"]])], pa.list_(pa.string())),
        (
            [pa.array([{"a": "b"}], pa.struct([("a", WORDS)])), pa.array([{"a": "c"}])],
            pa.struct([("a", pa.string())]),
        ),
        ([pa.array([1], pa.int8()), pa.array([None], pa.decimal128(5, 2))], pa.decimal128(5, 2)),
        ([pa.array([1], pa.uint32()), pa.array([-1])], pa.int64()),
    ],
)
def test_types_are_those_that_take_all_files(tmp_path, columns, kind):
    """Whichever comes first, and with the columns in any order."""
    for order in (columns, columns[::-1]):
        tables = [pa.table({"x": order[0], "id": [0]}), pa.table({"id": [1], "x": order[1]})]
        source = source_of(tmp_path, *tables)
        assert source.schema == pa.schema([("x", kind), ("id", pa.int64())])
        found, faults = columns_of(source)
        assert found == {"x": [column.to_pylist()[0] for column in order], "id": [0, 1]}
        assert faults == [{}, {}]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (pa.table({"id": [1], "x": ["a"]}), "1.parquet: the column x is string, and int64 in the files before"),
        (pa.table({"id": [1], "x": [b"a"]}), "1.parquet: the column x is binary, and int64"),
        (pa.table({"id": [1]}), "the column x is in only one of 0.parquet and 1.parquet"),
        (pa.table({"id": [1], "x": [1], "z": [1]}), "the column z is in only one of 0.parquet and 1.parquet"),
        (pa.table([[1], [2], [3], [4]], ["id", "x", "x", "y"]), "1.parquet has the column x twice"),
    ],
)
def test_columns_that_differ_are_refused_at_once(tmp_path, table, said):
    """With the file and the column."""
    with pytest.raises(TableError, match=re.escape(said)):
        source_of(tmp_path, pa.table({"id": [0], "x": [0]}), table)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.decimal128(3, 2), pa.int64()),
        (pa.uint64(), pa.int64()),
        (pa.uint64(), pa.int8()),
        (pa.binary(), pa.string()),
    ],
)
@pytest.mark.parametrize(
    "within",
    [lambda kind: kind, pa.list_, lambda kind: pa.struct([("a", pa.large_list(pa.struct([("b", kind)])))])],
)
def test_types_without_one_for_both_are_refused(tmp_path, one, other, within):
    """Arrow names a type for them, in which the values of one would be faults or bytes."""
    for kinds in ((one, other), (other, one)):
        with pytest.raises(TableError, match=r"1\.parquet: the column x is .*; write it in one type"):
            source_of(tmp_path, *(pa.table({"x": pa.nulls(1, within(kind))}) for kind in kinds))


def test_finding_a_repeated_name_takes_linear_time():
    """Each is compared with few others; the widest tables have 10,000 columns."""
    compared = 0

    class Name(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other):
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

    names = [Name(f"column {at}") for at in range(2_000)]
    assert repeated([*names, Name("column 7")]) == ["column 7"]
    assert compared < 2 * len(names)


def test_texts_do_not_become_bytes(tmp_path):
    """A file with bytes would turn the texts of all others into what no prompt can have."""
    with pytest.raises(TableError, match="the column x is binary, and string"):
        source_of(tmp_path, pa.table({"x": ["a"]}), pa.table({"x": [b"a"]}))
    assert (
        source_of(tmp_path, pa.table({"x": [b"a"]}), pa.table({"x": [None]})).schema.field("x").type == pa.binary()
    )


def test_a_value_that_no_type_takes_is_a_fault_of_its_row(tmp_path):
    """It would end the run in the middle."""
    large = (1 << 53) + 1
    source = source_of(tmp_path, pa.table({"x": [1, large, 2]}), pa.table({"x": [0.5]}))
    found, faults = columns_of(source)
    assert found == {"x": [1.0, None, 2.0, 0.5]}
    assert faults[1] == {}
    assert list(faults[0]) == [1]
    assert faults[0][1].startswith(f"the column x: Integer value {large}")


def test_the_index_of_pandas_is_no_column_of_the_output(tmp_path):
    """It can be kept by its name, if all files have it."""
    name = f"{INDEX}0__"
    table = pa.table({"x": [1, 2], name: [5, 7]})
    source = source_of(tmp_path, table)
    assert source.kept == ("x",)
    assert columns_of(source)[0] == {"x": [1, 2], name: [5, 7]}
    source = source_of(tmp_path, table, pa.table({"x": [3]}))
    assert columns_of(source)[0] == {"x": [1, 2, 3]}
