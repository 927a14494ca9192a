"""The check of a file's first line."""

import gzip
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.api.uploads import first_line
from tidemill.api.uploads.first_line import NOT_JSONL, NOT_UTF8, FirstLine

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


JSON = st.recursive(
    st.text() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


def judged(*pieces: bytes) -> str | None:
    """The fault of a file that arrives in these chunks."""
    looking = FirstLine()
    for piece in pieces:
        looking.feed(piece)
    return looking.fault()


@given(st.sampled_from(FILES), st.lists(st.integers(0, 40), max_size=8))
def test_chunks_of_any_size_give_the_same_verdict(file, cuts):
    """Including the line and the reason."""
    content, fault = file
    places = [0, *sorted(cut for cut in cuts if cut < len(content)), len(content)]
    found = judged(*(content[start:end] for start, end in itertools.pairwise(places)))
    assert found == judged(content)
    assert (found is None) == (fault is None)
    assert fault is None or found.startswith(f"{fault}: ")


@given(JSON, st.integers(1, 60), st.booleans())
def test_the_beginning_of_a_long_first_line_is_checked(value, looked, is_ascii):
    """Cut anywhere, the beginning of valid JSON passes, and that of other text does not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(first_line, "CHECKED_BYTES_MAX", looked)
        line = json.dumps(value, ensure_ascii=is_ascii).encode()
        assert judged(line + b"\n") is None
        assert judged(b"a" * 100 + line).startswith(NOT_JSONL)
        assert judged(b"\xff" * 100 + line).startswith(NOT_UTF8)


def test_a_long_first_line_has_bounded_costs():
    """Of 8 MiB the first 64 KiB are kept and parsed."""
    looking = FirstLine()
    looking.feed(b"[" + b"[]," * first_line.CHECKED_BYTES_MAX)
    assert (looking.is_done, looking.fault()) == (True, None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file has no line that is not blank"),
        (b'\n\n{"a":1,}\n', "line 3 is not JSON. Column 7: trailing comma"),
        (b'{"a":1}{"b":2}\n', "line 1 is not JSON. Column 8: more text follows the JSON"),
        (
            b'[\n{"custom_id": "1"}\n]\n',
            "line 1 is not JSON. It begins with `[`; each line is a JSON object, with no brackets",
        ),
        (
            b"id,prompt\n1,x\n",
            'line 1 is not JSON. Column 1: unexpected character, expected a JSON value; found "id,',
        ),
        (b'{custom_id: "1"}\n', "line 1 is not JSON. Column 2: unexpected character, expected a string key"),
        (
            b'{"a":"\xe4"}\n',
            "line 1 is not JSON. Byte 7: 0xe4 is not UTF-8; if it should be 'ä', it is Windows-1252",
        ),
        (b'{"a":"\x81"}\n', "0x81 is not UTF-8; save the content as UTF-8"),
        ('{"a":"\u00e4"}'.encode("utf-16"), "UTF-16; save it as UTF-8 (`iconv -f UTF-16 -t UTF-8 FILE`)"),
        ('{"a":1}'.encode("utf-16-le"), "UTF-16LE; save it as UTF-8"),
        ('{"a":1}'.encode("utf-32"), "UTF-32; save it as UTF-8"),
        ('{"a":1}'.encode("utf-32-be"), "UTF-32BE; save it as UTF-8"),
        (gzip.compress(b'{"a":1}\n', mtime=0), "compressed with gzip"),
        (b"PK\x03\x04\x14\x00\x06\x00xl/workbook.xml", "a zip archive, as .zip, .xlsx and .docx files are"),
    ],
)
def test_a_fault_names_its_line_and_reason(content, said):
    """Also in the first line, and in text that is not JSON at all."""
    assert said in judged(content)


def test_a_deeply_nested_first_line():
    """A flat one passes; a too deeply nested beginning does not."""
    assert judged(b"[" + b"[]," * (1 << 20) + b"[]]\n") is None
    assert judged(b"[" * (1 << 20) + b"]" * (1 << 20) + b"\n").startswith(NOT_JSONL)
