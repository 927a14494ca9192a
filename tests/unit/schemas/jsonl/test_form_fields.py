"""The form of a line is bounded by the line, however long its names and lists are."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.processors.calls import forms
from tidemill.schemas.endpoints import ENDPOINTS
from tidemill.schemas.jsonl.form_fields import GROWTH_BYTES_MAX, PARTS_MAX, FormError, check, decoded

EDITS = ENDPOINTS["/v1/images/edits"]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(['"', "\r\n", "é"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 10**9) | st.floats(-1, 1) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(TEXT.filter(lambda name: name not in EDITS.files), VALUES, max_size=4))
def test_the_size_is_that_of_the_form_or_a_little_more(body):
    """The bytes of each field are known before one is written."""
    fields, size = decoded(msgspec.json.encode(body), EDITS.files)
    form = forms.encoded(EDITS, fields, {})
    assert len(form) <= size + len(forms.encoded(EDITS, {}, {}))


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"n" * 200_000: [0] * 1000}, "n" * 200_000),
        ({"short": [0] * 100_000, "other": 1}, "short"),
        ({"n" * 50_000: {str(key): 0 for key in range(900)}}, "n" * 50_000),
        ({"n" * 50_000: [[]] * 900}, "n" * 50_000),
        ({"list": ['"' * 60_000 + "x"], "a" * 30_000: {"b" * 30_000: ["x"] * 500}}, "a" * 30_000),
        ({f"key-{number}": 0 for number in range(PARTS_MAX)}, ""),
        ({"deep": [[0] * 500] * 500}, "deep"),
    ],
    ids=["name", "items", "keys", "lists", "nested", "fields", "deep"],
)
def test_a_product_of_names_and_items_is_refused(body, field):
    """The error names the field that makes the form large."""
    for examine in (check, decoded):
        with pytest.raises(FormError) as caught:
            examine(msgspec.json.encode({"model": "m", **body}), EDITS.files)
        assert caught.value.field == field


def test_ingest_decodes_no_files():
    """They may have many MiB, and their names are checked by then."""
    check(b'{"model":"m","image":["\xff"],"mask":"\xff"}', EDITS.files)
    with pytest.raises(FormError):
        check(b'{"model":"m","image":"","prompt":"\xff"}', EDITS.files)


def test_a_large_line_is_no_product():
    """A text may be as long as a line, and fields as many as a server takes."""
    body = msgspec.json.encode({"prompt": "x" * (8 << 20), "image": "y" * 1000, "tags": ["tag"] * 1000})
    _, size = decoded(body, EDITS.files)
    assert 8 << 20 < size < len(body) + GROWTH_BYTES_MAX
