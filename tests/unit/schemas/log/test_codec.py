"""Decoders: for any record they return their result or raise `DecodeError`."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.processors.outcomes import batching
from tidemill.processors.partitions import unreadable
from tidemill.schemas import ids
from tidemill.schemas.bounds import (
    BATCH_LINES_MAX,
    LARGE_BYTES_MAX,
    RECORD_BYTES_EXTRA,
    RECORD_BYTES_MAX,
    STORE_KEY_CHARS_MAX,
    TIME_MAX,
    TOKENS_MAX,
)
from tidemill.schemas.log import codec, dead_letters
from tidemill.schemas.log.codec import DecodeError, LineMark, LineRef
from tidemill.schemas.log.part import LARGE_PREFIX

BATCH = ids.new_batch_id()
OURS = [
    "tidemill-batch", "tidemill-project", "tidemill-first", "tidemill-deadline", "tidemill-created",
    "tidemill-url", "tidemill-ref", "tidemill-marks", "tidemill-kind", "tidemill-v",
    "tidemill-indices", "tidemill-model",
    dead_letters.SOURCE, dead_letters.CUT, dead_letters.MARK,
]  # fmt: skip
FIELDS = ["batch_id", "at", "total", "model", "errors", "batch", "receipt", "usage", "input", "project"]
GOOD = {
    "tidemill-batch": BATCH.encode(), "tidemill-project": b"p", "tidemill-first": b"0", "tidemill-deadline": b"1",
    "tidemill-url": b"/v1/embeddings",
}  # fmt: skip
VALUES = (
    st.none()
    | st.binary(max_size=40)
    | st.integers(-(1 << 80), 1 << 80).map(lambda number: str(number).encode())
    | st.sampled_from(
        [b"9" * 5000, b"[[0,1,false]]", b"[]", b"[4,9]", b'{"key":"x","offset":0,"length":1}', b"\xff" * 9, b"1"]
    )
)
HEADERS = st.lists(st.tuples(st.sampled_from(OURS) | st.text(max_size=8), VALUES), max_size=8)
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)
DECODERS = [
    codec.decode_command, codec.decode_fact, codec.decode_batch, codec.decode_file, codec.decode_key,
    codec.decode_ledger, codec.decode_claim, codec.decode_queue, codec.decode_upload,
]  # fmt: skip


@given(headers=HEADERS, size=st.integers(0, 100))
def test_headers_of_lines(headers, size):
    """The marks add up, and each number has its place."""
    try:
        _, marks = codec.lines_marks(headers, size)
    except DecodeError:
        return
    assert all(0 <= mark.index < 1 << 32 for mark in marks)


@given(headers=HEADERS)
def test_headers_of_requests(headers):
    """Also if one of them is missing, null, or repeated."""
    try:
        head = codec.request_head([*GOOD.items(), *headers])
    except DecodeError:
        return
    assert 0 <= head.first < BATCH_LINES_MAX
    assert 0 <= head.deadline <= TIME_MAX
    for count in (1, 2):
        try:
            places = head.places(count)
        except DecodeError:
            continue
        assert len(places) == count
        assert all(place >= 0 for place in places)


@given(headers=HEADERS, value=st.binary(max_size=60) | st.none())
def test_decoders_of_any_headers_raise_only_decode_errors(headers, value):
    """Properties of a record that stages read before they decode it."""
    assert isinstance(codec.kind_of(headers), bytes)
    list(unreadable.error_lines(headers, value or b"", "m"))
    assert isinstance(codec.lines_model(headers), str)
    said = dead_letters.headers("t/0/1", headers, key=value, stage="s", reason="r")
    letter = dead_letters.decode(said, value, 0.0)
    assert [name for name, _ in dead_letters.requeue_headers(letter)].count(dead_letters.REQUEUED) == 1


@settings(max_examples=30)
@pytest.mark.parametrize("decode", DECODERS)
@given(value=st.none() | st.binary(max_size=60) | TREES.map(lambda tree: json.dumps(tree).encode()))
def test_values(decode, value):
    """Nothing else comes out of them."""
    with pytest.raises(DecodeError):
        decode(value)


@settings(max_examples=40)
@pytest.mark.parametrize("kind", ["accepted", "rejected", "opened", "grown", "sealed", "compacted", "tick"])
@given(fields=st.dictionaries(
    st.sampled_from(FIELDS),
    TREES | st.integers(0, 100) | st.text(max_size=80),
))  # fmt: skip
def test_facts_of_a_kind(kind, fields):
    """An accepted record can be encoded again, and is the same."""
    try:
        fact = codec.decode_fact(json.dumps({"v": 1, **fields, "kind": kind}).encode())
    except DecodeError:
        return
    assert codec.decode_fact(codec.encode(fact)) == fact


@pytest.mark.parametrize("at", ["Infinity", "NaN", "-1", "1e400", str(TIME_MAX + 1), "9" * 5000, '"x"', "[]"])
def test_an_invalid_time_of_a_tick_is_rejected(at):
    """Of a tick, which time is decided by."""
    with pytest.raises(DecodeError):
        codec.decode_fact(b'{"v":1,"kind":"tick","at":%b}' % at.encode())


def test_a_full_record_of_lines_fits():
    """With the marks of as many lines as travel together, all of them as long as can be."""
    mark = LineMark(BATCH_LINES_MAX, (1 << 32) - 1, False, (TOKENS_MAX,) * 4, (1 << 32) - 1)
    ref = LineRef("k" * STORE_KEY_CHARS_MAX, (1 << 63) - 1, (1 << 32) - 1)
    for count, value in ((batching.RECORD_LINES_MAX, batching.RECORD_BYTES_MAX), (1, batching.LINE_BYTES_MAX)):
        headers = codec.lines_headers(BATCH, [mark] * count, ref=ref)
        size = sum(len(name) + len(content or b"") for name, content in headers) + value
        assert size + RECORD_BYTES_EXTRA < RECORD_BYTES_MAX
        assert count <= codec.LINES_MAX


@pytest.mark.parametrize(
    "ref",
    [
        LineRef("files/file-other", 0, 9),
        LineRef(f"{LARGE_PREFIX}batch_{'1' * 32}/0-x", 0, 9),
        LineRef(f"{LARGE_PREFIX}{BATCH}/0-x", 0, LARGE_BYTES_MAX + 1),
        LineRef(f"{LARGE_PREFIX}{BATCH}/0-x", -1, 9),
    ],
)
def test_a_result_refers_to_an_object_of_its_batch(ref):
    """It cannot refer to a file of another project, nor to more bytes than fit into memory."""
    headers = codec.lines_headers(BATCH, [LineMark(0, ref.length, failed=False)], ref=ref)
    with pytest.raises(DecodeError, match=r"another batch|malformed"):
        codec.lines_marks(headers, 0)


def test_an_index_beyond_every_batch_is_rejected():
    """No batch has so many."""
    headers = codec.lines_headers(BATCH, [LineMark(BATCH_LINES_MAX, 1, failed=False)])
    with pytest.raises(DecodeError, match="malformed"):
        codec.lines_marks(headers, 1)
