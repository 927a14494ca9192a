"""Tables in memory: equal tables have one fingerprint, and every library's table is read."""

import datetime as dt
import decimal
import uuid

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.tables import TableError
from tidemill.tables.sources.frames import FrameSource, like, whole
from tidemill.tables.sources.rows import ROWS_MAX

columns = st.fixed_dictionaries(
    {
        "a": st.lists(st.integers(-5, 5) | st.none(), min_size=4, max_size=4),
        "b": st.lists(st.text(), min_size=4, max_size=4),
    }
)


DAY, TIME = dt.date(2020, 1, 1), dt.datetime(2020, 1, 1, 1)  # noqa: DTZ001 - a column may have no zone
PANDAS = {
    "categories": (pd.Categorical(["x", None]), ["x", None]),
    "categories of numbers": (pd.Categorical([1, 2]), [1, 2]),
    "classes": (pd.cut([1.0, float("nan")], [0, 1]), ["(0.0, 1.0]", None]),
    "intervals": (pd.interval_range(0, 2), ["(0, 1]", "(1, 2]"]),
    "periods": (pd.PeriodIndex(["2020-01", None], freq="M"), ["2020-01", None]),
    "strings": (pd.array(["x", None], "string"), ["x", None]),
    "bytes": ([b"x", None], [b"x", None]),
    "integers": (pd.array([2**60 + 1, None], "Int64"), [2**60 + 1, None]),
    "floats": (pd.array([1, 2], "float16"), [1.0, 2.0]),
    "booleans": (pd.array([True, None], "boolean"), [True, None]),
    "times": (pd.Series([TIME, None]), [TIME, None]),
    "durations": ([dt.timedelta(1), None], [dt.timedelta(1), None]),
    "dates": ([DAY, None], [DAY, None]),
    "decimals": ([decimal.Decimal("1.5"), None], [decimal.Decimal("1.5"), None]),
    "ids": ([uuid.UUID(int=1), None], [uuid.UUID(int=1), None]),
    "lists": ([["x"], None], [["x"], None]),
    "objects": ([{"a": 1}, None], [{"a": 1}, None]),
    "nothing": ([None, None], [None, None]),
    "dictionary of Arrow": (
        pd.Series(["x", None], dtype=pd.ArrowDtype(pa.dictionary(pa.int8(), pa.string()))),
        ["x", None],
    ),
    "sparse": (pd.arrays.SparseArray([0, 1]), None),
    "complex": ([1j, 2j], None),
    "mixed": ([1, "x"], None),
    "any object": ([object(), object()], None),
}
POLARS = {
    "categories": (pl.Categorical, ["x", None], ["x", None]),
    "enumeration": (pl.Enum(["x", "y"]), ["x", None], ["x", None]),
    "strings": (pl.String, ["x", None], ["x", None]),
    "bytes": (pl.Binary, [b"x", None], [b"x", None]),
    "lists of categories": (pl.List(pl.Categorical), [["x"], None], [["x"], None]),
    "objects with categories": (
        pl.Struct({"a": pl.Categorical}),
        [{"a": "x"}, {"a": None}],
        [{"a": "x"}, {"a": None}],
    ),
    "arrays": (pl.Array(pl.String, 1), [["x"], None], [["x"], None]),
    "integers": (pl.UInt64, [2**63, None], [2**63, None]),
    "floats": (pl.Float32, [0.5, None], [0.5, None]),
    "booleans": (pl.Boolean, [True, None], [True, None]),
    "times": (pl.Datetime("us"), [TIME, None], [TIME, None]),
    "durations": (pl.Duration("us"), [dt.timedelta(1), None], [dt.timedelta(1), None]),
    "dates": (pl.Date, [DAY, None], [DAY, None]),
    "clock": (pl.Time, [dt.time(1), None], [dt.time(1), None]),
    "decimals": (pl.Decimal(9, 1), [decimal.Decimal("1.5"), None], [decimal.Decimal("1.5"), None]),
    "nothing": (pl.Null, [None, None], [None, None]),
    "wide integers": (pl.Int128, [1, 2], None),
    "any object": (pl.Object, [object(), object()], None),
}


def rows(source, start=0):
    return [row for found in source.read(start) for row in found.batch.to_pylist()]


@given(columns, st.integers(0, 5))
def test_rows_and_fingerprint_are_those_of_the_content(found, start):
    """However the table is cut into chunks, and from which row on it is read."""
    table = pa.table(found)
    chunked = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert rows(FrameSource(chunked), start) == table.to_pylist()[start:]
    assert FrameSource(chunked).fingerprint == FrameSource(table).fingerprint
    other = FrameSource(table.append_column("c", [range(4)]))
    assert other.fingerprint != FrameSource(table).fingerprint


@pytest.mark.parametrize("library", [pd.DataFrame, pl.DataFrame, pa.table])
def test_each_library_gets_its_own(library):
    """With the same columns and rows, in batches of bounded size."""
    frame = library({"a": list(range(ROWS_MAX + 1)), "b": ["x"] * (ROWS_MAX + 1)})
    source = FrameSource(frame)
    assert (source.kept, source.rows) == (("a", "b"), ROWS_MAX + 1)
    assert [found.batch.num_rows for found in source.read(0)] == [ROWS_MAX, 1]
    added = pa.table({"a": frame["a"], "c": range(ROWS_MAX + 1)})
    found = like(frame, added, ["a"])
    assert type(found) is type(frame)
    assert pa.table(found).to_pydict() == {"a": list(range(ROWS_MAX + 1)), "c": list(range(ROWS_MAX + 1))}


def test_rows_keep_their_labels_and_types():
    """Labels with gaps and doubles, and numbers that a float cannot hold."""
    ids = pd.array([2**60 + 1, None, 3], "Int64")
    frame = pd.DataFrame({"id": ids, "kind": pd.Categorical(["x", "y", "x"])}, index=[7, 7, 2])
    table = pa.table({"id": [0, 0, 0], "kind": ["", "", ""], "answer": ["a", "b", "c"]})
    found = like(frame, table, ["id", "kind"])
    pd.testing.assert_frame_equal(found[["id", "kind"]], frame)
    assert list(found["answer"]) == ["a", "b", "c"]
    shown = like(
        pl.DataFrame({"id": ["x"]}, schema={"id": pl.Categorical}), pa.table({"id": ["x"], "answer": [1]}), ["id"]
    )
    assert dict(shown.schema) == {"id": pl.Categorical, "answer": pl.Int64}


def test_an_index_and_categories_become_plain_columns():
    """A named index is a column; one without a name is left out."""
    frame = pd.DataFrame({"a": pd.Categorical(["x", "y"])}, index=["r", "s"])
    assert FrameSource(frame).schema.names == ["a"]
    assert FrameSource(frame.rename_axis("key")).schema.names == ["a", "key"]
    assert rows(FrameSource(frame)) == [{"a": "x"}, {"a": "y"}]


@pytest.mark.parametrize("value", [[1], {"a": [1]}, "a.csv", None])
def test_what_is_no_table_is_refused(value):
    """By its type."""
    with pytest.raises(TableError, match=f"a {type(value).__name__} is not a table"):
        FrameSource(value)


FRAMES = [
    *(pytest.param(lambda values=values: pd.DataFrame({"id": [1, 2], "odd": values}), read, id=f"pandas: {name}")
      for name, (values, read) in PANDAS.items()),
    *(pytest.param(
        lambda kind=kind, values=values: pl.DataFrame({"id": [1, 2], "odd": pl.Series(values, dtype=kind)}),
        read, id=f"polars: {name}")
      for name, (kind, values, read) in POLARS.items()),
]  # fmt: skip


@pytest.mark.parametrize(("frame", "read"), FRAMES)
def test_each_type_is_read_or_refused_by_the_name_of_its_column(frame, read):
    """Also in a column that no prompt names."""
    if read is None:
        with pytest.raises(TableError, match=r"column odd\b"):
            FrameSource(frame())
        return
    assert rows(FrameSource(frame())) == [{"id": 1, "odd": read[0]}, {"id": 2, "odd": read[1]}]


TEXT, BYTES = pa.large_string(), pa.large_binary()


@pytest.mark.parametrize(
    ("found", "value", "plain"),
    [
        (pa.string(), "x", TEXT),
        (pa.string_view(), "x", TEXT),
        (pa.large_string(), "x", TEXT),
        (pa.binary(), b"x", BYTES),
        (pa.binary_view(), b"x", BYTES),
        (pa.list_(pa.string_view()), ["x"], pa.list_(TEXT)),
        (pa.large_list(pa.string()), ["x"], pa.large_list(TEXT)),
        (pa.list_(pa.string(), 1), ["x"], pa.list_(TEXT, 1)),
        (pa.map_(pa.string(), pa.string_view()), [("x", "y")], pa.map_(TEXT, TEXT)),
        (pa.struct({"a": pa.string()}), {"a": "x"}, pa.struct({"a": TEXT})),
    ],
)
def test_texts_of_a_column_may_exceed_2_gib(found, value, plain):
    """Together: offsets of 32 bits would end there. A slice of a view would be written with all of its texts."""
    source = FrameSource(pa.table({"a": pa.array([value, None], found)}))
    assert source.schema.field("a").type == plain
    assert rows(source) == [{"a": value}, {"a": None}]


def test_a_stream_that_ends_is_read_once():
    """What was read stands for it; frames of pandas and polars stay as they are."""
    table = pa.table({"a": [1, 2]})
    found = whole(table.to_reader())
    assert rows(FrameSource(found)) == table.to_pylist()
    assert like(found, table.append_column("b", [[3, 4]]), ["a"]).to_pydict() == {"a": [1, 2], "b": [3, 4]}
    for frame in (pd.DataFrame({"a": [1]}), pl.DataFrame({"a": [1]})):
        assert whole(frame) is frame


@pytest.mark.parametrize("ids", [[1, 2], [1, 3], [2, 1]])
def test_a_named_index_is_a_column_whatever_its_numbers(ids):
    """Evenly spaced ones are a range in pandas."""
    assert rows(FrameSource(pd.DataFrame({"id": ids}).set_index("id"))) == [{"id": each} for each in ids]


def test_an_index_of_periods_has_their_texts():
    """A time series is indexed by them."""
    frame = pd.DataFrame({"a": [1]}, index=pd.PeriodIndex(["2020-01"], freq="M", name="month"))
    assert rows(FrameSource(frame)) == [{"a": 1, "month": "2020-01"}]
    assert frame.index.dtype == "period[M]"


ODD = [1, "x", None]


@pytest.mark.parametrize(
    "index",
    [
        pd.Index(ODD, dtype=object),
        pd.MultiIndex.from_arrays([pd.Series(ODD, dtype=object), ["a", "b", "c"]], names=[None, "id"]),
        pd.MultiIndex.from_arrays([ODD, ODD]),
        pd.Index([object(), {}.keys(), 1j], dtype=object),
    ],
)
def test_an_index_without_a_name_is_not_read(index):
    """It is no column, so it may have any values; the frame keeps it."""
    frame = pd.DataFrame({"text": ["a", "b", "c"]}, index=index)
    source = FrameSource(frame)
    assert source.kept == ("text", *filter(None, index.names))
    assert [row["text"] for rows in source.read(0) for row in rows.batch.to_pylist()] == ["a", "b", "c"]
    assert frame.index is index


def test_an_odd_index_is_refused_by_its_name():
    """And not by that of the first column."""
    frame = pd.DataFrame({"text": ["a", "b", "c"]}, index=pd.Index(ODD, dtype=object, name="id"))
    with pytest.raises(TableError, match="the table, index id, cannot be read"):
        FrameSource(frame)
    with pytest.raises(TableError, match="the table, column odd, cannot be read"):
        FrameSource(pd.DataFrame({"text": ["a", "b", "c"], "odd": ODD}, index=pd.Index([1, 2, 3], name="id")))
