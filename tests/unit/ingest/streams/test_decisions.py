"""The bounds of a record of the intake."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.ingest.streams import decisions
from tidemill.ingest.streams.decisions import REQUEST_BYTES_MIN, SHORT_LINES_MAX, bounded, split
from tidemill.schemas.endpoints import ENDPOINTS
from tidemill.schemas.log.intake import IntakeError

SHORTEST = min(
    (
        orjson.dumps({"custom_id": "a", "method": "POST", "url": url, "body": {"model": "m", "input": ""}})
        for url in ENDPOINTS
    ),
    key=len,
)


def test_every_request_is_longer_than_a_short_line():
    """So no request counts as a short line, and the largest record keeps the bound of lines."""
    assert len(SHORTEST) >= REQUEST_BYTES_MIN
    full = b"\n".join([SHORTEST] * (decisions.RECORD_BYTES_MAX // (len(SHORTEST) + 1)))
    assert len(bounded(full)) == full.count(b"\n") + 1


@given(st.binary(max_size=200))
def test_a_record_within_the_bounds_is_split(value):
    """The bounds change no line."""
    assert bounded(value) == split(value)


def test_a_byte_order_mark_at_the_start_of_a_record_is_no_part_of_its_first_line():
    """A producer may send a file as it is. A mark further on is malformed, as in a file."""
    line = SHORTEST
    assert split(b"\xef\xbb\xbf" + line + b"\r\n" + line) == [line, line]
    assert split(b"\xef\xbb\xbf\n") == []
    assert split(line + b"\n\xef\xbb\xbf" + line) == [line, b"\xef\xbb\xbf" + line]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"x" * (decisions.RECORD_BYTES_MAX + 1), "larger than 1048576 bytes"),
        (b"\n" * decisions.RECORD_LINES_MAX, "more than 16384 lines"),
        (b"x\n" * (SHORT_LINES_MAX + 1), "too short"),
        ((SHORTEST[:63] + b"\n") * (SHORT_LINES_MAX + 1) + SHORTEST, "too short"),
    ],
)
def test_a_record_above_a_bound_names_the_bound(value, reason):
    """The message quotes no line."""
    with pytest.raises(IntakeError, match=reason):
        bounded(value)


def test_some_short_lines_are_error_lines():
    """A producer with a mistake gets an error for each of its lines."""
    assert len(bounded(b"{\n" * SHORT_LINES_MAX + SHORTEST)) == SHORT_LINES_MAX + 1
