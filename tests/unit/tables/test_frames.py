"""Tables in memory: equal tables have one fingerprint, and every library's table is read."""

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.tables import TableError
from tidemill.tables.sources.frames import FrameSource, like
from tidemill.tables.sources.rows import ROWS_MAX

columns = st.fixed_dictionaries(
    {
        "a": st.lists(st.integers(-5, 5) | st.none(), min_size=4, max_size=4),
        "b": st.lists(st.text(), min_size=4, max_size=4),
    }
)


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
