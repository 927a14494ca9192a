"""Levels, elements and parts of JSON text, beside a count of the parsed values."""

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.schemas.jsonl import nesting

SCALARS = st.sampled_from([0, -1.5, "", "[[[", "}{,", '"', '\\"', "\\", "a:b", '\\\\",[', None])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["[", "\\", '"', ":"]), inner),
)


def levels(value: object) -> int:
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(levels, inner), default=0)


def parts(value: object) -> int:
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else None
    keys = len(value) if isinstance(value, dict) else 0
    return 0 if inner is None else 1 + keys + max(0, len(inner) - 1) + sum(map(parts, inner))


@pytest.fixture(params=[1, 3, nesting.CHUNK_BYTES], autouse=True)
def _chunks(request, monkeypatch):
    """However the text falls into chunks."""
    monkeypatch.setattr(nesting, "CHUNK_BYTES", request.param)


@settings(deadline=None)
@given(value=VALUES, others=st.lists(VALUES, max_size=4))
def test_counts_match_the_parsed_values(value, others):
    """Brackets, commas and colons inside strings are none."""
    text = orjson.dumps(value)
    depth = levels(value)
    assert not nesting.exceeds(text, depth)
    assert depth == 0 or nesting.exceeds(text, depth - 1)
    assert nesting.parts(text) == parts(value)
    assert nesting.elements(orjson.dumps([value, *others])) == 1 + len(others)


@settings(deadline=None)
@given(text=st.binary(max_size=80) | st.text('[]{}",\\', max_size=80).map(str.encode))
def test_any_bytes_are_taken(text):
    """Text that is not JSON gives some answer, and no error."""
    nesting.exceeds(text, 3)
    nesting.parts(text)


@pytest.mark.parametrize("text", [b"[" * 300, b"[" * 129 + b"]" * 129, b'{"a":' * 129, b"[[]," * 129])
def test_excess_depth_is_found_before_the_end(text):
    """The first bracket too many decides."""
    assert nesting.exceeds(text, 128)
