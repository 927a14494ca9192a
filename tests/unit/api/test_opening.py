"""The look at a file's first line."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.api.receiving import opening
from tidemill.api.receiving.opening import NOT_JSONL, NOT_UTF8, Opening

FILES = [
    (b'{"a":1}\n', None),
    (b'{"a":1}', None),
    (b'\xef\xbb\xbf{"a":1}\r\n{"b"', None),
    (b'\n\r\n  \n{"a":1}\nnot json', None),
    ('{"a":"\u00e4"}'.encode(), None),
    (b"", NOT_JSONL),
    (b"\n \r\n", NOT_JSONL),
    (b"\xef\xbb\xbf", NOT_JSONL),
    (b"a,b,c\n1,2,3\n", NOT_JSONL),
    (b'{"a":1} {"b":2}\n', NOT_JSONL),
    (b'{"a":\n1}\n', NOT_JSONL),
    ('{"a":"\u00e4"}\n'.encode("latin-1"), NOT_UTF8),
    ('{"a":1}\n'.encode("utf-16"), NOT_UTF8),
]


@given(st.sampled_from(FILES), st.lists(st.integers(0, 40), max_size=8))
def test_any_cutting_is_judged_alike(file, cuts):
    """A good first line passes, in whatever pieces it comes."""
    content, fault = file
    looking = Opening()
    places = [0, *sorted(cut for cut in cuts if cut < len(content)), len(content)]
    for start, end in itertools.pairwise(places):
        looking.feed(content[start:end])
    assert looking.fault() == fault


def test_a_first_line_above_the_bound_is_left_to_ingest(monkeypatch):
    """It is not held in memory."""
    monkeypatch.setattr(opening, "FIRST_LINE_BYTES_MAX", 100)
    looking = Opening()
    for _ in range(11):
        looking.feed(b"x" * 10)
    assert looking.is_done
    assert looking.fault() is None


@pytest.mark.parametrize(("content", "fault"), FILES)
def test_one_piece(content, fault):
    """The same without a cut."""
    looking = Opening()
    looking.feed(content)
    assert looking.fault() == fault


@pytest.mark.parametrize("size", [100_000, 1 << 20])
def test_a_first_line_of_brackets(size):
    """Flat it passes, deep it is no file for a batch; neither is made into objects."""
    looking = Opening()
    looking.feed(b"[" + b"[]," * size + b"[]]\n")
    assert (looking.is_done, looking.fault()) == (True, None)
    looking = Opening()
    looking.feed(b"[" * size + b"]" * size + b"\n")
    assert looking.fault() == NOT_JSONL
