"""Headers that go with each call: which may, and their form in a record."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.schemas import headers
from tidemill.schemas.bounds import FORWARDED_HEADERS_MAX
from tidemill.schemas.log import codec
from tidemill.schemas.log.codec import DecodeError, RequestHead

HEAD = RequestHead(batch_id="batch_1", project="p", first=0, deadline=9, url="/v1/embeddings")
NEVER = [
    "authorization", "Traceparent", "host", "content-length", "content-language", "connection", "keep-alive",
    "transfer-encoding", "te", "upgrade", "proxy-authorization", "cookie", "x-api-key", "api-key", "x-request-id",
    "idempotency-key", "a b", "a:", "", "x" * 65, "x-\u00e9",
]  # fmt: skip
NAMES = st.from_regex("x-[a-z]{1,9}", fullmatch=True)
VALUES = st.from_regex("[!-~]([ -~]{0,98}[!-~])?", fullmatch=True)


@pytest.mark.parametrize("name", NEVER)
def test_names_that_never_go(name):
    """Neither by a setting nor in a record of another writer."""
    assert not headers.is_forwardable(name)
    with pytest.raises(DecodeError):
        codec.request_head([*codec.request_headers(HEAD), (codec.HEADERS, f"{name}: v\r\n".encode())])


@given(st.dictionaries(NAMES, VALUES, min_size=1, max_size=8))
def test_headers_come_back_from_a_record(found):
    """As they were."""
    head = codec.request_head(codec.request_headers(dataclasses.replace(HEAD, headers=found)))
    assert head.headers == found


@pytest.mark.parametrize(
    "text",
    [
        b"", b"x: v", b"x: v\n", b"x:v\r\n", b"x: v\r\n\r\n", b"x: a\r\nx: b\r\n", b"x: \xff\r\n", b"x: a\rb\r\n",
        b"x: " + b"v" * 513 + b"\r\n",
        b"".join(b"x-%d: v\r\n" % n for n in range(FORWARDED_HEADERS_MAX + 1)),
        b"".join(b"x-%d: %b\r\n" % (n, b"v" * 512) for n in range(4)),
    ],
)  # fmt: skip
def test_malformed_headers_are_refused(text):
    """None can begin a request of its own, and all have their bounds."""
    with pytest.raises(DecodeError, match="malformed"):
        codec.request_head([*codec.request_headers(HEAD), (codec.HEADERS, text)])
