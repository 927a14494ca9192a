"""Replies of all forms, complete and incomplete, and their bounds."""

import gzip
import itertools
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs
from support.scripted_server import ANSWER, OK, coded, post, serving

from tidemill.processors.failures import Answer, FailureKind
from tidemill.processors.http.client import HttpUpstream
from tidemill.schemas.bounds import REPLY_BYTES_MAX

TEXT = b'{"a":"' + b"x" * 100_000 + b'"}'


_bare = zlib.compressobj(wbits=-15)


CODED = [
    (b"gzip", gzip.compress(TEXT)),
    (b"X-GZIP", gzip.compress(TEXT) + b"behind its end"),
    (b"deflate", zlib.compress(TEXT)),
    (b"deflate", _bare.compress(TEXT) + _bare.flush()),
    (b"identity", TEXT),
]
"""One body in each encoding that is read."""


SAID_TWICE = [
    (b"Content-Length: 2\r\nX: y\r\ncontent-length:2\r\n", b"{}"),
    (b"Content-Length: 2, 2\r\n", b"{}"),
    (b"Content-Length: 900\r\nTransfer-Encoding: chunked\r\n", b"2\r\n{}\r\n0\r\n\r\n"),
    (b"Transfer-Encoding: chunked\r\nContent-Length: 900\r\n", b"2\r\n{}\r\n0\r\n\r\n"),
]
"""Heads that state the end of the body twice, and are still readable."""


REPLIES = [
    (OK, Answer(200, b"{}", "abc", None)),
    (
        b'HTTP/1.1 429 No\r\nRetry-After: 7\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n3\r\n"a"\r\n0\r\n\r\n',
        Answer(429, b'{"a"', None, "7"),
    ),
    (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, Answer(200, b"{}", "abc", None)),
    (b"HTTP/1.1 204 None\r\n\r\n", Answer(204, b"", None, None)),
    (
        b"HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nContent-Length: 2\r\n\r\n{}",
        Answer(200, b"{}", media_type="audio/mpeg"),
    ),
    (
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        Answer(302, b"", location="http://127.0.0.1:1/"),
    ),
    *((coded(encoding, body), Answer(200, TEXT)) for encoding, body in CODED),
    (coded(b"gzip", CODED[0][1][:-1]), Answer(200, b"", encoding="gzip")),
    (coded(b"gzip", b"no gzip"), Answer(200, b"", encoding="gzip")),
    (coded(b"br", b"\x1b\x00"), Answer(200, b"", encoding="br")),
    (coded(b"br", b""), Answer(200, b"")),
    *((b"HTTP/1.1 200 OK\r\n%b\r\n%b" % (head, body), Answer(200, b"{}")) for head, body in SAID_TWICE),
]


@given(st.sampled_from(range(len(REPLIES))), st.lists(st.integers(0, 150), max_size=6))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
async def test_a_reply_may_arrive_in_any_pieces(number: int, cuts: list[int]) -> None:
    """Valid replies of all forms."""
    text, answer = REPLIES[number]
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces: list[bytes | None] = [text[a:b] for a, b in itertools.pairwise(places)]
    async with serving(pieces, [OK]) as (server, client):
        found = await post(server, client)
        assert isinstance(found, Answer)
        # A large reply has a share of the memory.
        assert structs.replace(found, share=None) == answer
        assert await post(server, client) == ANSWER


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"


@pytest.mark.parametrize(
    "script",
    [
        [None],
        [OK[:-1], None],
        [OK[:20], None],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}", None],
        [b"what?\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000],
        [CHUNKED + b"0\r\n", *[b"x: " + b"y" * 65_000] * 5],
        [CHUNKED + b"2;x=", *[b"y" * 65_000] * 5],
        [b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"],
    ],
)
async def test_an_incomplete_or_malformed_reply_is_no_answer(script: list[bytes | None]) -> None:
    """The next call has a new connection."""
    async with serving(script, [OK]) as (server, client):
        assert await post(server, client) is FailureKind.READ
        assert await post(server, client) == ANSWER
        assert server.connections == 2


async def test_two_different_lengths_are_unsupported() -> None:
    """The end of the reply is unknown, and a retry would not help."""
    for said in (b"Content-Length: 2\r\nContent-Length: 3", b"Content-Length: 2, 3"):
        async with serving([b"HTTP/1.1 200 OK\r\n%b\r\n\r\n{}" % said], [OK]) as (server, client):
            assert await post(server, client) is FailureKind.UNSUPPORTED_REPLY
            assert await post(server, client) == ANSWER
            assert server.connections == 2


async def test_the_bound_of_a_reply_is_a_setting() -> None:
    """A reply up to the bound is delivered."""
    text = b'{"a":"' + b"x" * 90 + b'"}'
    async with serving([coded(b"identity", text)], [coded(b"identity", text + b" ")]) as (server, _):
        client = HttpUpstream(reply_bytes_max=len(text))
        assert await post(server, client) == Answer(200, text)
        assert await post(server, client) is FailureKind.TOO_LARGE
        await client.close()


async def test_the_bound_of_a_reply_holds_after_decompression() -> None:
    """A compression bomb is given up early."""
    bomb = gzip.compress(b" " * (REPLY_BYTES_MAX + 1))
    async with serving([coded(b"gzip", bomb)], [OK]) as (server, client):
        assert await post(server, client) is FailureKind.TOO_LARGE
        assert await post(server, client) == ANSWER


async def test_a_closed_connection_ends_a_reply_without_length() -> None:
    """As in HTTP/1.0; a connection that the server wants to close is not reused."""
    closing = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    async with serving([b"HTTP/1.0 200 OK\r\n\r\n{", b"}", None], [closing], [OK]) as (server, client):
        assert await post(server, client) == Answer(200, b"{}", None, None)
        assert isinstance(await post(server, client), Answer)
        assert isinstance(await post(server, client), Answer)
        assert server.connections == 3


async def test_bytes_behind_a_reply_close_the_connection() -> None:
    """The next call must not take them for its reply."""
    async with serving([OK + OK.replace(b"{}", b"[]")], [OK]) as (server, client):
        first = await post(server, client)
        second = await post(server, client)
        assert second == ANSWER
        assert first in {ANSWER, FailureKind.READ}
        assert server.connections == 2


async def test_a_reply_above_the_bound_is_given_up() -> None:
    """Also one without a length."""
    async with serving(
        [b"HTTP/1.1 200 OK\r\n\r\n", *[b"x" * (1 << 20)] * (1 + (REPLY_BYTES_MAX >> 20)), None]
    ) as (
        server,
        client,
    ):
        assert await post(server, client) is FailureKind.TOO_LARGE
