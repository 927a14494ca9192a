"""The columns that a result adds to its row, and how they are read from the result."""

from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol

import pyarrow as pa
from pyarrow import compute

from tidemill.schemas.json_schema import AnswerError, Checker
from tidemill.tables import RowError
from tidemill.tables.answers import kind_of_answers
from tidemill.tables.json_types import fitted, type_of
from tidemill.tables.replies import FLOAT_BYTES, Result

ANSWER: Final = "answer"
VALUE: Final = "value"
EMBEDDING: Final = "embedding"
INCOMPLETE: Final = "incomplete"
FACTS: Final = (
    pa.field("error", pa.string()),
    pa.field("attempts", pa.int32()),
    pa.field("input_tokens", pa.int64()),
    pa.field("output_tokens", pa.int64()),
    pa.field("cost", pa.float64()),
)
"""Columns of every result, after those of its answer."""


class Reader(Protocol):
    """Reads the answers of one kind of request."""

    @property
    def fields(self) -> list[pa.Field]:
        """The columns of the answer."""

    def read(self, result: Result) -> tuple[list[Any], str | None]:
        """The values for the fields, and what is wrong with them."""


class VectorReader:
    """Reads embeddings, as bytes: their length is known only when all are there (`sized`)."""

    fields: Final = [pa.field(EMBEDDING, pa.binary())]

    def read(self, result: Result) -> tuple[list[Any], str | None]:
        """See `Reader.read`."""
        try:
            return [result.vector()], None
        except RowError as error:
            return [None], str(error)


class ChatReader:
    """Reads the text of an answer, and with a schema its values."""

    def __init__(self, schema: Mapping[str, Any] | None) -> None:
        """Prepare the check.

        Raises:
            SchemaError: The schema is invalid, or exceeds the bounds.
        """
        self.fields = [pa.field(ANSWER, pa.string())]
        self._checker = None if schema is None else Checker(schema)
        if schema is not None:
            kind = kind_of_answers(schema)
            self._is_object = isinstance(kind, dict)
            self._kinds = kind if isinstance(kind, dict) else {VALUE: kind}
            self.fields += [pa.field(name, type_of(each)) for name, each in self._kinds.items()]

    def read(self, result: Result) -> tuple[list[Any], str | None]:
        """See `Reader.read`; an answer with a fault, or one that was cut, is kept as text.

        JSON that fits a schema is whole, however the server ended it.
        """
        values: list[Any] = [None] * len(self.fields)
        cut = f"; {result.cut}" if result.cut else ""
        try:
            values[0] = text = result.text()
            if self._checker is not None:
                values[1:] = self._values(self._checker.check(text.encode("utf-8", "surrogatepass")))
            elif cut:
                return values, f"{INCOMPLETE}: the answer is not whole{cut}"
        except (RowError, AnswerError) as error:
            return values, f"invalid_output: {error}{cut}"
        return values, None

    def _values(self, answer: Any) -> list[Any]:
        # If a nullable object is null, so are all its properties.
        found = answer or {} if self._is_object else {VALUE: answer}
        return [fitted(found.get(name), kind) for name, kind in self._kinds.items()]


def named(fields: Iterable[pa.Field], taken: Iterable[str]) -> list[pa.Field]:
    """The fields, renamed where another column has the name already: `answer_error` in place of `error`."""
    names, found = set(taken), []
    for field in fields:
        name = field.name
        while name in names:
            name = f"{ANSWER}_{name}"
        names.add(name)
        found.append(field.with_name(name))
    return found


def sized(vectors: pa.Array, size: int) -> tuple[pa.Array, list[int]]:
    """Vectors of `size` bytes as lists of a fixed size, and the places of those that have another size.

    A vector of another size becomes null.
    """
    if not vectors.null_count and compute.binary_length(vectors).unique().to_pylist() == [size]:
        _, offsets, content = vectors.buffers()
        start = pa.Array.from_buffers(pa.int32(), 1, [None, offsets], offset=vectors.offset)[0].as_py()
        return _lists(content.slice(start, len(vectors) * size), size, None), []
    kept = [one if one is not None and len(one) == size else None for one in vectors.to_pylist()]
    odd = [at for at, one in enumerate(kept) if one is None and vectors[at].is_valid]
    content = b"".join(one if one is not None else bytes(size) for one in kept)
    mask = pa.array([one is None for one in kept], pa.bool_())
    return _lists(pa.py_buffer(content), size, mask), odd


def unsized(vectors: pa.Array) -> pa.Array:
    """Vectors as bytes; the reverse of `sized`."""
    count, length = len(vectors), vectors.type.list_size
    numbers = vectors.values.slice(vectors.offset * length, count * length)
    content = numbers.buffers()[1].slice(numbers.offset * FLOAT_BYTES)
    offsets = pa.array(range(0, (count + 1) * length * FLOAT_BYTES, length * FLOAT_BYTES), pa.int32())
    return pa.Array.from_buffers(
        pa.binary(), count, [compute.is_valid(vectors).buffers()[1], offsets.buffers()[1], content]
    )


def _lists(content: pa.Buffer, size: int, mask: pa.Array | None) -> pa.Array:
    numbers = pa.Array.from_buffers(pa.float32(), content.size // FLOAT_BYTES, [None, content])
    return pa.FixedSizeListArray.from_arrays(numbers, size // FLOAT_BYTES, mask=mask)
