"""Converts Arrow columns to Python values; times that Python cannot represent become text."""

from typing import Any

import pyarrow as pa
from pyarrow import types


def values_of(column: pa.Array) -> list[Any]:
    """The values of a column; its times are text if Python has no object for one of them.

    Python's dates end with the year 9999, and its times have no nanoseconds.
    """
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError):
        return list(column.cast(_with_text(column.type)).to_pylist())


def rows_of(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows of a batch by the names of their columns; see `values_of`."""
    columns = map(values_of, batch.columns)
    return [dict(zip(batch.schema.names, row, strict=True)) for row in zip(*columns, strict=True)]


def _with_text(kind: pa.DataType) -> pa.DataType:
    """A type with text in place of times."""
    if types.is_struct(kind):
        return pa.struct([field.with_type(_with_text(field.type)) for field in kind])
    if types.is_map(kind):
        return pa.map_(_with_text(kind.key_type), _with_text(kind.item_type))
    if types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_with_text(kind.value_type)))
    if types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(_with_text(kind.value_type)), kind.list_size)
    if types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_with_text(kind.value_type)))
    return pa.string() if types.is_temporal(kind) else kind
