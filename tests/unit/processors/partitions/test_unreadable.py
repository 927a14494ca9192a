"""The lines of an unreadable record get error lines."""

import json

import pytest

from tidemill.processors.partitions.unreadable import RECORD_LINES_MAX, error_lines
from tidemill.schemas import ids
from tidemill.schemas.log import codec

BATCH = ids.new_batch_id()


def line(number):
    return json.dumps({"custom_id": f"c-{number}", "body": {}}).encode()


def read(headers, value):
    found = {}
    for batch_id, lines, marked in error_lines(headers, value, "m"):
        assert batch_id == BATCH
        assert codec.lines_model(marked) == "m"
        _, marks = codec.lines_marks(marked, len(lines))
        assert all(mark.failed for mark in marks)
        found |= {mark.index: json.loads(text) for mark, text in zip(marks, lines.splitlines(), strict=True)}
    return found


def test_each_readable_line_gets_an_error_line():
    """With its own id and index; a line without a readable id waits for the deadline."""
    headers = [("tidemill-batch", BATCH.encode()), ("tidemill-first", b"64")]
    found = read(headers, b"\n".join([line(64), b"no json", line(66)]))
    assert {index: text["custom_id"] for index, text in found.items()} == {64: "c-64", 66: "c-66"}
    assert {text["error"]["code"] for text in found.values()} == {"unreadable_request"}


def test_lines_with_gaps_get_their_own_error_lines():
    """In a batch of several models no line of another one gets any, even if the list does not fit."""
    headers = [("tidemill-batch", BATCH.encode()), ("tidemill-first", b"3")]
    value = b"\n".join([line(3), line(7)])
    assert sorted(read([*headers, ("tidemill-indices", b"[3,7]")], value)) == [3, 7]
    for indices in (b"[3]", b"[3,7,9]", b"[3,-7]", b"3,7", b"\xff"):
        assert not read([*headers, ("tidemill-indices", indices)], value)


def test_many_lines_make_several_records():
    """None is above the bound of a record."""
    headers = [("tidemill-batch", BATCH.encode()), ("tidemill-first", b"0")]
    count = 2 * RECORD_LINES_MAX + 1
    assert sorted(read(headers, b"\n".join(line(n) for n in range(count)))) == list(range(count))


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("tidemill-batch", b"../../etc"), ("tidemill-first", b"0")],
        [("tidemill-batch", BATCH.encode())],
        [("tidemill-batch", BATCH.encode()), ("tidemill-first", b"-1")],
        [("tidemill-batch", None), ("tidemill-first", None)],
    ],
)
def test_without_batch_or_index_no_error_line_is_written(headers):
    """The record is a dead letter only."""
    assert not read(headers, line(0))
