"""A rolling upgrade: what a newer process writes is read by an older one, or refused as a whole."""

import json

import pytest

from tidemill.schemas.log import codec
from tidemill.schemas.log.codec import DecodeError, LineMark, RequestHead
from tidemill.schemas.log.messages import Accepted, BatchCreated, BatchRecord, CancelRequested, Rejected, Tick
from tidemill.schemas.resources.batch import Batch, Status

BATCH = Batch(
    id="batch_0123456789abcdef0123456789abcdef", endpoint="/v1/embeddings", input_file_id="file-1",
    completion_window="24h", status=Status.VALIDATING, created_at=1, expires_at=2,
)  # fmt: skip
MESSAGES = [
    (codec.decode_command, CancelRequested(batch_id=BATCH.id, at=1)),
    (codec.decode_fact, Tick(at=1.5)),
    (codec.decode_batch, BatchRecord(project="default", batch=BATCH)),
]


def grown(value):
    """The same with a field more at each level, as a later minor version might write it."""
    if isinstance(value, dict):
        return {name: grown(content) for name, content in value.items()} | {"of_later": {"x": [1]}}
    return [grown(content) for content in value] if isinstance(value, list) else value


def kind(pair):
    return type(pair[1]).__name__


@pytest.mark.parametrize("pair", MESSAGES, ids=kind)
def test_fields_of_a_later_version_are_ignored(pair):
    """At every level of the message."""
    decode, message = pair
    later = json.dumps(grown(json.loads(codec.encode(message)))).encode()
    assert decode(later) == message


@pytest.mark.parametrize("pair", MESSAGES, ids=kind)
def test_a_later_major_version_is_refused(pair):
    """As a record that cannot be read: the stage makes it a dead letter and goes on."""
    decode, message = pair
    later = json.dumps(json.loads(codec.encode(message)) | {"v": 2}).encode()
    with pytest.raises(DecodeError):
        decode(later)


@pytest.mark.parametrize("model", [Accepted, BatchCreated, BatchRecord, CancelRequested, Rejected, Tick])
def test_every_message_says_its_version(model):
    """Also the one that a reader of today is the first to look at."""
    assert model.model_fields["v"].default == 1


def test_headers_of_a_later_version_are_ignored():
    """A record of requests may say more, and a line's mark may be longer."""
    head = RequestHead(batch_id=BATCH.id, project="p", first=0, deadline=9, url="/v1/embeddings")
    headers = [*codec.request_headers(head), ("tidemill-of-later", b"1")]
    assert codec.request_head(headers) == head
    mark = json.dumps([[7, 12, False, [1, 0, 2, 0], 1, "of later"]]).encode()
    assert codec._marks.decode(mark) == [LineMark(7, 12, failed=False, usage=(1, 0, 2, 0))]


def test_lines_of_a_later_major_version_are_refused():
    """Lines say their version too; those that were written before they did are of the first."""
    head = RequestHead(batch_id=BATCH.id, project="p", first=0, deadline=9, url="/v1/embeddings")
    requests, results = codec.request_headers(head), codec.lines_headers(BATCH.id, [])
    for headers, decode in ((requests, codec.request_head), (results, lambda found: codec.lines_marks(found, 0))):
        bare = [header for header in headers if header[0] != codec.VERSION_HEADER]
        assert decode(headers) == decode(bare)
        with pytest.raises(DecodeError, match="version '2'"):
            decode([*bare, (codec.VERSION_HEADER, b"2")])
