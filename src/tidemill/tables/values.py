"""Converts Arrow columns to Python values; times that Python cannot represent become text."""

from collections.abc import Callable
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
    return mapped(kind, lambda each: pa.string() if types.is_temporal(each) else each)


def mapped(kind: pa.DataType, change: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """A type, of whose structs, maps and lists the innermost types are changed."""
    if types.is_struct(kind):
        return pa.struct([field.with_type(mapped(field.type, change)) for field in kind])
    if types.is_map(kind):
        key, value = (each.with_type(mapped(each.type, change)) for each in (kind.key_field, kind.item_field))
        return pa.map_(key, value, keys_sorted=kind.keys_sorted)
    if not (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)):
        return change(kind)
    item = kind.value_field.with_type(mapped(kind.value_type, change))
    if types.is_fixed_size_list(kind):
        return pa.list_(item, kind.list_size)
    return pa.large_list(item) if types.is_large_list(kind) else pa.list_(item)


def without_dictionaries(kind: pa.DataType) -> pa.DataType:
    """A type with plain values in place of dictionaries, at any depth."""
    return mapped(kind, lambda each: without_dictionaries(each.value_type) if types.is_dictionary(each) else each)


def decoded(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """A column in a type without dictionaries."""
    if column.type == kind:
        return column
    if types.is_dictionary(column.type):
        return decoded(column.dictionary, kind).take(column.indices)
    try:
        return column.cast(kind)
    except pa.ArrowNotImplementedError:
        # Dictionaries within lists and structs.
        return pa.array(column.to_pylist(), kind)
