"""The HTTP client, against a server that sends the bytes it is told to."""

import asyncio
import gzip
import itertools
import ssl
import zlib
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.waiting import until

from tidemill import __version__
from tidemill.processors.failures import Answer, FailureKind
from tidemill.processors.http.client import HttpUpstream
from tidemill.processors.memory_budget import LargeReplies
from tidemill.schemas.bounds import REPLY_BYTES_MAX

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Request-ID: abc\r\n\r\n{}"
SECONDS = 20.0
SHORT_SECONDS = 0.2
OWN = b"user-agent: tidemill/%b\r\naccept-encoding: identity\r\n" % __version__.encode()
"""What every request says of who asks, and of how the reply may come."""
CERTIFICATE = Path(__file__).parents[3] / "support" / "tls" / "certificate.pem"


class Server:
    """Answers each request with the next of its scripts: bytes to send one after the other; None closes."""

    def __init__(self, *scripts: list[bytes | None]) -> None:
        self.scripts = list(scripts)
        self.requests: list[bytes] = []
        self.connections = 0
        self.url = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
                self.requests.append(head + await reader.readexactly(length))
                for piece in self.scripts.pop(0):
                    if piece is None:
                        return
                    writer.write(piece)
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(*scripts: list[bytes | None], tls: ssl.SSLContext | None = None, ca_file: Path | None = None):
    """A server and a client, which trusts whom `ca_file` names."""
    server = Server(*scripts)
    listener = await asyncio.start_server(server.answer, "127.0.0.1", 0, ssl=tls)
    port = listener.sockets[0].getsockname()[1]
    server.url = f"http{'s' if tls else ''}://127.0.0.1:{port}/v1/x?y=1"
    client = HttpUpstream({("127.0.0.1", port): [ca_file]} if ca_file else None)
    try:
        yield server, client
    finally:
        await client.close()
        listener.close()
        await listener.wait_closed()


async def post(server: Server, client: HttpUpstream, seconds: float = SECONDS) -> Answer | FailureKind:
    return await client.post(server.url, {"authorization": "Bearer k"}, b'{"a":1}', seconds)


async def test_a_call_is_named() -> None:
    """So that it can be found in the log of the server, and in that of a proxy before it."""
    async with serving([OK], [OK]) as (server, client):
        for body in (b'{"a":1}', memoryview(b'{"a":1}')):
            await client.post(server.url, {}, body, SECONDS, "batch_1-17-1")
            assert server.requests[-1].count(b"\r\nx-request-id: batch_1-17-1\r\n") == 1


async def test_a_call_and_its_answer() -> None:
    """The request is whole, the headers that matter are read, and the connection is kept."""
    async with serving([OK], [OK]) as (server, client):
        assert await post(server, client) == Answer(200, b"{}", "abc", None)
        assert await post(server, client) == Answer(200, b"{}", "abc", None)
        assert server.connections == 1
        host = server.url.split("/")[2].encode()
        assert server.requests[0] == (
            b"POST /v1/x?y=1 HTTP/1.1\r\nhost: %b\r\n%bauthorization: Bearer k\r\ncontent-length: 7\r\n\r\n"
            % (host, OWN)
            + b'{"a":1}'
        )


async def test_a_page_is_read() -> None:
    """On the connections of the calls, with a bound of its own; a call after it has the old bound."""
    async with serving([OK], [OK], [OK], [OK]) as (server, client):
        headers = {"authorization": "Bearer k"}
        assert await client.get(server.url, headers, SECONDS, 2) == Answer(200, b"{}", "abc", None)
        assert await post(server, client) == Answer(200, b"{}", "abc", None)
        assert server.connections == 1
        host = server.url.split("/")[2].encode()
        assert server.requests[0] == (
            b"GET /v1/x?y=1 HTTP/1.1\r\nhost: %b\r\n%bauthorization: Bearer k\r\n\r\n" % (host, OWN)
        )
        assert await client.get(server.url, headers, SECONDS, 1) is FailureKind.TOO_LARGE
        assert await post(server, client) == Answer(200, b"{}", "abc", None)


@pytest.fixture
def tls() -> ssl.SSLContext:
    """A server that nobody knows: its certificate vouches for itself."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE, CERTIFICATE.with_name("key.pem"))
    return context


async def test_a_private_authority(tls: ssl.SSLContext) -> None:
    """It is trusted where its file is named; elsewhere, and with a file that is gone, nothing is sent."""
    async with serving([OK], tls=tls, ca_file=CERTIFICATE) as (server, client):
        assert await post(server, client) == REPLIES[0][1]
        assert server.requests
    for ca_file in (None, CERTIFICATE.with_name("gone.pem")):
        async with serving([OK], tls=tls, ca_file=ca_file) as (server, client):
            assert await post(server, client) is FailureKind.CONNECT
            assert not server.requests


async def test_the_authorities_of_the_environment(tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """`SSL_CERT_FILE` takes the place of the system's."""
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    async with serving([OK], tls=tls) as (server, client):
        assert await post(server, client) == REPLIES[0][1]


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
"""Heads that say twice where the body ends, and can be read all the same."""


def coded(encoding: bytes, body: bytes) -> bytes:
    """A reply whose body is compressed so."""
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: %b\r\nContent-Length: %d\r\n\r\n"
    return head % (encoding, len(body)) + body


REPLIES = [
    (OK, Answer(200, b"{}", "abc", None)),
    (
        b'HTTP/1.1 429 No\r\nRetry-After: 7\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n3\r\n"a"\r\n0\r\n\r\n',
        Answer(429, b'{"a"', None, "7"),
    ),
    (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, Answer(200, b"{}", "abc", None)),
    (b"HTTP/1.1 204 None\r\n\r\n", Answer(204, b"", None, None)),
    (
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        Answer(302, b"", None, None),
    ),
    *((coded(encoding, body), Answer(200, TEXT)) for encoding, body in CODED),
    (coded(b"gzip", CODED[0][1][:-1]), Answer(200, b"", encoding="gzip")),
    (coded(b"gzip", b"no gzip"), Answer(200, b"", encoding="gzip")),
    (coded(b"br", b"\x1b\x00"), Answer(200, b"", encoding="br")),
    (coded(b"br", b""), Answer(200, b"")),
    *((b"HTTP/1.1 200 OK\r\n%b\r\n%b" % (head, body), Answer(200, b"{}")) for head, body in SAID_TWICE),
]


@given(st.sampled_from(REPLIES), st.lists(st.integers(0, 150), max_size=6))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
async def test_a_reply_in_any_pieces(reply: tuple[bytes, Answer], cuts: list[int]) -> None:
    """However its bytes arrive."""
    text, answer = reply
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces: list[bytes | None] = [text[a:b] for a, b in itertools.pairwise(places)]
    async with serving(pieces, [OK]) as (server, client):
        assert await post(server, client) == answer
        assert await post(server, client) == REPLIES[0][1]


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
async def test_a_connection_that_breaks(script: list[bytes | None]) -> None:
    """A reply that is cut, or is none, is no answer; the next call has a connection of its own."""
    async with serving(script, [OK]) as (server, client):
        assert await post(server, client) is FailureKind.READ
        assert await post(server, client) == REPLIES[0][1]
        assert server.connections == 2


async def test_lengths_that_differ() -> None:
    """Where such a reply ends is not known, and another try would not tell."""
    for said in (b"Content-Length: 2\r\nContent-Length: 3", b"Content-Length: 2, 3"):
        async with serving([b"HTTP/1.1 200 OK\r\n%b\r\n\r\n{}" % said], [OK]) as (server, client):
            assert await post(server, client) is FailureKind.UNSUPPORTED_REPLY
            assert await post(server, client) == REPLIES[0][1]
            assert server.connections == 2


async def test_the_bound_of_a_reply_is_a_setting() -> None:
    """It holds for calls; what is below it comes."""
    text = b'{"a":"' + b"x" * 90 + b'"}'
    async with serving([coded(b"identity", text)], [coded(b"identity", text + b" ")]) as (server, _):
        client = HttpUpstream(reply_bytes_max=len(text))
        assert await post(server, client) == Answer(200, text)
        assert await post(server, client) is FailureKind.TOO_LARGE
        await client.close()


async def test_what_is_decompressed_has_the_bound_of_a_reply() -> None:
    """A bomb is given up, not gathered."""
    bomb = gzip.compress(b" " * (REPLY_BYTES_MAX + 1))
    async with serving([coded(b"gzip", bomb)], [OK]) as (server, client):
        assert await post(server, client) is FailureKind.TOO_LARGE
        assert await post(server, client) == REPLIES[0][1]


async def test_a_reply_that_ends_with_its_connection() -> None:
    """As HTTP/1.0 has it; and a server that asks to close gets no second call on that connection."""
    closing = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    async with serving([b"HTTP/1.0 200 OK\r\n\r\n{", b"}", None], [closing], [OK]) as (server, client):
        assert await post(server, client) == Answer(200, b"{}", None, None)
        assert isinstance(await post(server, client), Answer)
        assert isinstance(await post(server, client), Answer)
        assert server.connections == 3


async def test_what_nobody_asked_for_is_not_taken_for_a_reply() -> None:
    """Bytes after a reply spoil the connection."""
    async with serving([OK + OK.replace(b"{}", b"[]")], [OK]) as (server, client):
        first = await post(server, client)
        second = await post(server, client)
        assert second == REPLIES[0][1]
        assert first in {REPLIES[0][1], FailureKind.READ}
        assert server.connections == 2


async def test_a_reply_above_the_bound() -> None:
    """It is given up, not gathered."""
    async with serving(
        [b"HTTP/1.1 200 OK\r\n\r\n", *[b"x" * (1 << 20)] * (1 + (REPLY_BYTES_MAX >> 20)), None]
    ) as (
        server,
        client,
    ):
        assert await post(server, client) is FailureKind.TOO_LARGE


async def test_a_call_ends_in_time() -> None:
    """A server that says nothing, and a call that its caller gives up."""
    async with serving([], [], [OK]) as (server, client):
        assert await post(server, client, 0.05) is FailureKind.TIMEOUT
        call = asyncio.ensure_future(post(server, client))
        await asyncio.wait([call], timeout=0.05)
        call.cancel()
        await asyncio.wait([call])
        assert call.cancelled()
        assert await post(server, client) == REPLIES[0][1]
        assert server.connections == 3


KEY = 'sk-a/b"c-0123456789'


@pytest.mark.parametrize(
    "said",
    [
        KEY.encode(),
        rb'{"error": "no such key: sk-a/b\"c-0123456789"}',
        rb'{"error": "no such key: sk-a\/b\"c-0123456789", "again": "sk-a\/b\"c-0123456789"}',
    ],
)
async def test_our_key_does_not_come_back(said: bytes) -> None:
    """What a server repeats of its key is redacted, as it stands and as JSON may write it; the rest is kept."""
    reply = b"HTTP/1.1 401 No\r\nContent-Length: %d\r\nX-Request-ID: r-%b\r\n\r\n%b" % (
        len(said),
        KEY.encode(),
        said,
    )
    async with serving([reply]) as (server, client):
        answer = await client.post(server.url, {"authorization": f"Bearer {KEY}"}, b"{}", SECONDS)
    assert isinstance(answer, Answer)
    assert b"0123456789" not in answer.body
    assert answer.body.startswith(said.partition(b"sk-")[0])
    assert b"[redacted]" in answer.body
    assert answer.request_id is None


@pytest.mark.parametrize("key", ["k", "short-k", "01234567890123456789"])
async def test_a_key_that_is_no_secret_damages_no_reply(key: str) -> None:
    """A word of a few letters and a number may stand in any answer."""
    said = b'{"content": "%b"}' % key.encode()
    async with serving([b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(said), said)]) as (
        server,
        client,
    ):
        answer = await client.post(server.url, {"authorization": f"Bearer {key}"}, b"{}", SECONDS)
    assert answer == Answer(200, said)


async def test_nobody_there() -> None:
    """A refused connection, names that do not exist or cannot, a server that waits for something else than TLS."""
    async with serving([]) as (server, client):
        url = server.url
        assert await client.post(url.replace("http:", "https:"), {}, b"", SHORT_SECONDS) is FailureKind.CONNECT
    client = HttpUpstream()
    assert await client.post(url, {}, b"", SECONDS) is FailureKind.CONNECT
    for name in ("name.invalid", "name..invalid", f"{'a' * 64}.invalid"):
        assert await client.post(f"http://{name}/v1", {}, b"", SECONDS) is FailureKind.CONNECT


async def test_a_key_cannot_break_the_request() -> None:
    """A newline in a header is refused before anything is sent."""
    with pytest.raises(ValueError, match="invalid characters"):
        await HttpUpstream().post("http://127.0.0.1:1/", {"authorization": "a\r\nb: c"}, b"", SECONDS)


async def test_large_replies_share_a_budget(monkeypatch) -> None:
    """Many of them at one time are whole in the end, bounded meanwhile, and a small one does not wait for them."""
    replies, size, count = LargeReplies(8 << 20), 4 << 20, 12
    large = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size
    async with serving(*[[large]] * count, [OK]) as (server, client):
        monkeypatch.setattr(client, "_replies", replies)
        held, most = [], 0

        async def take() -> None:
            nonlocal most
            answer = await post(server, client)
            assert isinstance(answer, Answer)
            assert answer.share is not None
            assert (len(answer.body), answer.share.size) == (size, size)
            most = max(most, replies.used)
            held.append(answer.share)

        tasks = [asyncio.create_task(take()) for _ in range(count)]
        await until(lambda: len(held) >= 1 and replies.used >= 8 << 20, "spent budget")
        assert len(held) < count
        assert await post(server, client) == Answer(200, b"{}", "abc", None)
        while len(held) < count or any(share.size and share._budget for share in held):
            for share in held:
                share.close()
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        assert replies.used == 0
        assert most <= (8 << 20) + size + count * (1 << 20)


async def test_a_connection_that_waited_for_the_budget_is_read_from_again() -> None:
    """Its next call finds nothing of it; and time that it waited is not the server's."""
    replies = LargeReplies(100_000)
    first = replies.share(lambda: None, lambda: None)
    first.grow(200_000)
    first.finish()
    body = b"x" * 150_000
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    async with serving([whole[:100_000], whole[100_000:]], [OK]) as (server, client):
        client._replies = replies
        call = asyncio.create_task(post(server, client, SHORT_SECONDS))
        await until(lambda: replies.used > 200_000, "a reply that waits")
        await asyncio.sleep(2 * SHORT_SECONDS)
        assert not call.done()
        first.close()
        answer = await call
        assert isinstance(answer, Answer)
        assert answer.body == body
        assert await post(server, client) == Answer(200, b"{}", "abc", None)
        assert server.connections == 1
        assert replies.used == len(body)


async def test_a_large_reply_that_breaks_off_leaves_nothing() -> None:
    """Neither one that ends early, nor one whose call is cancelled, nor a page of a server's metrics."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n"
    async with serving([head + b"x" * 200_000, None], [head + b"x" * 200_000], [head + b"x" * 300_000]) as (
        server,
        client,
    ):
        assert await post(server, client) is FailureKind.READ
        call = asyncio.create_task(post(server, client))
        await until(lambda: client._replies.used > 0, "a reply that has begun")
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await client.get(server.url, {}, SECONDS, 1 << 20)
        assert client._replies.used == 0


async def test_a_large_body_is_sent_from_where_it_lies() -> None:
    """All of it."""
    body = orjson.dumps({"a": "x" * 3_000_000})
    async with serving([OK]) as (server, client):
        answer = await client.post(server.url, {}, memoryview(body), SECONDS)
        assert answer == Answer(200, b"{}", "abc", None)
        assert server.requests[0].endswith(b"\r\n\r\n" + body)
