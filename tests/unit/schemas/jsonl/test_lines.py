"""The splitter against splitting the whole file at once."""

import itertools

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tidemill.schemas.jsonl.lines import BOM, Line, Splitter

PIECES = st.lists(
    st.sampled_from(
        [
            b"a",
            b"{}",
            b"\n",
            b"\r\n",
            b"\r",
            b" ",
            b"\t",
            b"\n\n\n",
            b"\xef",
            BOM,
            b"\x0b",
            b"\x0c",
            b"\xe2\x80\xa8",
        ]
    ),
    max_size=40,
).map(b"".join)
BOUND = 6


def expected(data: bytes, line_bytes_max: int) -> list[Line]:
    """The lines, found the plain way."""
    offset = len(BOM) if data.startswith(BOM) else 0
    found = []
    for number, piece in enumerate(data[offset:].split(b"\n"), 1):
        begun = piece.lstrip(b" \t\r")
        if begun:
            at = offset + len(piece) - len(begun)
            found.append(Line(number, at, begun.rstrip(b" \t\r") if len(begun) <= line_bytes_max else None))
        offset += len(piece) + 1
    return found


def split(chunks: list[bytes], line_bytes_max: int) -> list[Line]:
    """The lines, found by the splitter."""
    splitter = Splitter(line_bytes_max)
    found = [line for chunk in chunks for line in splitter.feed(chunk)]
    return found + list(splitter.finish())


@settings(deadline=None)
@given(data=PIECES, cuts=st.lists(st.integers(0, 120), max_size=12))
@example(data=BOM + b"a", cuts=[1, 2])
@example(data=b"\xef", cuts=[])
@example(data=b"\xef\n", cuts=[1])
@example(data=b"a" * (BOUND + 1) + b"\nb", cuts=[3])
@example(data=b"a\n \r\n\n\n b \r\nc", cuts=[4, 6])
def test_any_chunking_gives_the_same_lines(data, cuts):
    """Numbers, offsets and bytes are those of the whole file, however it is cut."""
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    chunks = [data[begin:end] for begin, end in itertools.pairwise(edges)]
    assert split(chunks, BOUND) == expected(data, BOUND)
    assert split([data[at : at + 1] for at in range(len(data))], BOUND) == expected(data, BOUND)


@settings(deadline=None)
@given(data=PIECES)
def test_an_offset_leads_to_the_line(data):
    """The bytes at a line's offset are the line."""
    for line in split([data], 1000):
        assert line.data is not None
        assert data[line.offset : line.offset + len(line.data)] == line.data


def test_a_line_beyond_the_bound_is_not_held():
    """The splitter returns its number, and keeps none of its bytes."""
    splitter = Splitter(1000)
    for _ in range(100):
        assert list(splitter.feed(b"x" * 999)) == []
        assert sum(map(len, splitter._open)) < 1000
    assert list(splitter.feed(b"x\nshort\n")) == [Line(1, 0, None), Line(2, 99_902, b"short")]


def test_only_a_newline_ends_a_line():
    """U+2028, U+0085, a vertical tab and a lone carriage return stand inside a line."""
    data = b'{"a":"\xe2\x80\xa8\xc2\x85"}\x0b\x0c\r{}'
    assert split([data], 1000) == [Line(1, 0, data)]


def test_a_million_blank_lines_are_counted():
    """They cost no memory and keep the numbers right."""
    splitter = Splitter()
    for _ in range(10):
        assert list(splitter.feed(b"\r\n" * 100_000)) == []
    assert list(splitter.feed(b"{}\n")) == [Line(1_000_001, 2_000_000, b"{}")]
