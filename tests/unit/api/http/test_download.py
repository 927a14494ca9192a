"""Ranges, versions and filenames of downloads."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.api.http import download
from tidemill.api.http.download import ByteRange
from tidemill.schemas.resources.error import ApiError


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("", None),
        ("bytes=0-0", (0, 1)),
        ("bytes=2-", (2, 10)),
        ("bytes=2-99", (2, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-99", (0, 10)),
        ("Bytes = 1 - 2", (1, 3)),
        ("bytes=5-2", None),
        ("bytes=-", None),
        ("bytes=0-1,4-5", None),
        ("lines=0-1", None),
        ("bytes=a-b", None),
        ("bytes=1-" + "9" * 40, None),
    ],
)
def test_parse_ranges_of_ten_bytes(header, expected):
    """Malformed and multiple ranges are ignored, as RFC 9110 allows."""
    assert download.parse(header, 10) == (ByteRange(start=expected[0], end=expected[1]) if expected else None)


@pytest.mark.parametrize(
    ("header", "size"), [("bytes=10-", 10), ("bytes=-0", 10), ("bytes=0-", 0), ("bytes=-1", 0)]
)
def test_a_range_beyond_the_file(header, size):
    """It contains no byte of the file."""
    with pytest.raises(ApiError, match="not satisfiable"):
        download.parse(header, size)


@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 40))
def test_a_range_equals_a_slice(first, last, size):
    """For all well-formed ranges."""
    data = bytes(range(size))
    try:
        part = download.parse(f"bytes={first}-{last}", size)
    except ApiError:
        assert first >= size
    else:
        assert part is None or data[part.start : part.end] == data[first : last + 1]
        assert (part is None) == (last < first)


@given(st.text(max_size=300))
def test_any_filename_makes_a_valid_header(name):
    """One line of ASCII with balanced quotes."""
    header = download.disposition(name)
    assert header.isascii()
    assert header.isprintable()
    assert header.count('"') == 2


def test_filenames_in_the_header():
    """ASCII for old clients, the name itself for others."""
    assert download.disposition("in.jsonl") == "attachment; filename=\"in.jsonl\"; filename*=UTF-8''in.jsonl"
    assert (
        download.disposition('a"b\r\nä.x')
        == "attachment; filename=\"a_b___.x\"; filename*=UTF-8''a%22b%0D%0A%C3%A4.x"
    )


def test_etags():
    """One among several, weak, or any."""
    assert download.matches('"a", W/"b"', '"b"')
    assert download.matches("*", '"b"')
    assert not download.matches('"a"', '"b"')
    assert not download.matches(None, '"b"')
