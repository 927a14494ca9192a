"""Calls of the HTTP client: requests, TLS, keys and timeouts."""

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import orjson
import pytest
from support.scripted_server import ANSWER, OK, SECONDS, Server, post, serving, untimed
from support.servers import configured
from support.waiting import until

from tidemill import __version__
from tidemill.configuration.servers import Model
from tidemill.configuration.servers import Server as Settings
from tidemill.processors.failures import Answer, FailureKind
from tidemill.processors.http.client import REDACTED, HttpUpstream, Trust
from tidemill.processors.http.connection import Connection, OnEnd

SHORT_SECONDS = 0.2
OWN = b"user-agent: tidemill/%b\r\naccept-encoding: identity\r\n" % __version__.encode()
"""Headers of every request."""
CERTIFICATE = Path(__file__).parents[3] / "support" / "tls" / "certificate.pem"


async def test_a_call_sends_its_request_id() -> None:
    """Logs of the server and of a proxy can show it."""
    async with serving([OK], [OK]) as (server, client):
        for body in (b'{"a":1}', memoryview(b'{"a":1}')):
            await client.post(server.url, {}, body, SECONDS, b"x-request-id: batch_1-17-1\r\n")
            assert server.requests[-1].count(b"\r\nx-request-id: batch_1-17-1\r\n") == 1


async def test_a_call_and_its_answer() -> None:
    """The request is complete, and the connection is reused."""
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


async def test_get_fetches_a_page_within_its_own_bound() -> None:
    """On the connections of calls, whose bound does not change."""
    async with serving([OK], [OK], [OK], [OK]) as (server, client):
        headers = {"authorization": "Bearer k"}
        assert untimed(await client.get(server.url, headers, SECONDS, 2)) == Answer(200, b"{}", "abc", None)
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
    """A server with a self-signed certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE, CERTIFICATE.with_name("key.pem"))
    return context


async def test_a_private_authority_is_trusted_by_its_file(tls: ssl.SSLContext) -> None:
    """Without the file, or if it is missing, nothing is sent."""
    async with serving([OK], tls=tls, ca_file=CERTIFICATE) as (server, client):
        assert await post(server, client) == ANSWER
        assert server.requests
    for ca_file in (None, CERTIFICATE.with_name("gone.pem")):
        async with serving([OK], tls=tls, ca_file=ca_file) as (server, client):
            assert await post(server, client) is FailureKind.CONNECT
            assert not server.requests
            lacks = "a TLS file of its settings cannot be used" if ca_file else "its certificate is not trusted"
            assert client.fault(server.url, {}) == lacks


async def test_ssl_cert_file_replaces_the_authorities_of_the_system(
    tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in other clients."""
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    async with serving([OK], tls=tls) as (server, client):
        assert await post(server, client) == ANSWER


KEY = 'sk-a/b"c-0123456789'


@pytest.mark.parametrize(
    "said",
    [
        KEY.encode(),
        rb'{"error": "no such key: sk-a/b\"c-0123456789"}',
        rb'{"error": "no such key: sk-a\/b\"c-0123456789", "again": "sk-a\/b\"c-0123456789"}',
    ],
)
@pytest.mark.parametrize("header", ["authorization", "X-Api-Key", "api-key"])
async def test_our_key_is_redacted_in_answers(said: bytes, header: str) -> None:
    """As text and in each form of JSON; the rest of the answer is unchanged."""
    key = KEY.encode()
    head = b"X-Request-ID: r-%b\r\nLocation: /?key=%b\r\nContent-Type: a/%b\r\n" % (key, key, key)
    reply = b"HTTP/1.1 401 No\r\nContent-Length: %d\r\n%b\r\n%b" % (len(said), head, said)
    async with serving([reply]) as (server, client):
        value = f"Bearer {KEY}" if header == "authorization" else KEY
        answer = await client.post(server.url, {header: value}, b"{}", SECONDS)
    assert isinstance(answer, Answer)
    assert b"0123456789" not in answer.body
    assert answer.body.startswith(said.partition(b"sk-")[0])
    assert b"[redacted]" in answer.body
    assert (answer.request_id, answer.location, answer.media_type) == (None, None, None)


@pytest.mark.parametrize("key", ["k", "short-k", "01234567890123456789"])
async def test_short_keys_and_numbers_are_not_redacted(key: str) -> None:
    """An answer may contain them by chance."""
    said = b'{"content": "%b"}' % key.encode()
    async with serving([b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(said), said)]) as (
        server,
        client,
    ):
        answer = await client.post(server.url, {"authorization": f"Bearer {key}"}, b"{}", SECONDS)
    assert untimed(answer) == Answer(200, said)


async def test_a_server_that_cannot_be_reached() -> None:
    """A refused connection, unknown and invalid names, a server without TLS."""
    async with serving([]) as (server, client):
        url = server.url
        assert await client.post(url.replace("http:", "https:"), {}, b"", SHORT_SECONDS) is FailureKind.CONNECT
        assert client.fault(url.replace("http:", "https:"), {}) == "no connection in time"
    client = HttpUpstream()
    for where, fault in (
        (url, "Connection refused"),
        ("http://name.invalid/v1", "its host name does not resolve"),
        ("http://name..invalid/v1", "its host name is not valid"),
        (f"http://{'a' * 64}.invalid/v1", "its host name is not valid"),
    ):
        assert await client.post(where, {}, b"", SECONDS) is FailureKind.CONNECT
        assert client.fault(where, {}) == fault


async def test_servers_of_one_gateway_keep_their_own_headers() -> None:
    """The gateway may choose the server by a header; a key in one is redacted in the replies to it alone."""
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nsecret-key-2"
    async with serving([OK], [reply], [OK]) as (server, client):
        answers = []
        for headers in ({"x-server": "a"}, {"x-server": "b", "x-api-key": "secret-key-2"}, {"x-server": "a"}):
            answers.append(await client.post(server.url, headers, b"{}", SECONDS))
            named = [f"{name}: {value}\r\n".encode() for name, value in headers.items()]
            assert all(one in server.requests[-1] for one in named)
        assert server.requests[0] == server.requests[2]
        assert isinstance(answers[1], Answer)
        assert answers[1].body == REDACTED


async def test_a_newline_in_a_header_is_rejected() -> None:
    """Before anything is sent."""
    with pytest.raises(ValueError, match="invalid characters"):
        await HttpUpstream().post("http://127.0.0.1:1/", {"authorization": "a\r\nb: c"}, b"", SECONDS)


async def test_a_large_body_is_sent_completely() -> None:
    """Without a copy."""
    body = orjson.dumps({"a": "x" * 3_000_000})
    async with serving([OK]) as (server, client):
        answer = await client.post(server.url, {}, memoryview(body), SECONDS)
        assert untimed(answer) == Answer(200, b"{}", "abc", None)
        assert server.requests[0].endswith(b"\r\n\r\n" + body)


async def test_a_call_ends_at_its_timeout_or_cancellation() -> None:
    """The connection is not reused."""
    async with serving([], [], [OK]) as (server, client):
        assert await post(server, client, 0.05) is FailureKind.TIMEOUT
        call = asyncio.ensure_future(post(server, client))
        await asyncio.wait([call], timeout=0.05)
        call.cancel()
        await asyncio.wait([call])
        assert call.cancelled()
        assert await post(server, client) == ANSWER
        assert server.connections == 3


async def test_a_call_that_is_cancelled_with_its_answer_leaves_no_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The answer has come, and the call has not taken it yet."""
    ended = []
    end = Connection._end

    def end_and_cancel(self: Connection, outcome: Answer | FailureKind) -> None:
        end(self, outcome)
        ended.append(self)
        call.cancel()

    monkeypatch.setattr(Connection, "_end", end_and_cancel)
    async with serving([OK]) as (server, client):
        call = asyncio.ensure_future(post(server, client))
        await asyncio.wait([call])
        assert call.cancelled()
        assert ended[0]._transport is None or ended[0]._transport.is_closing()


async def test_a_call_on_an_open_connection_needs_no_task() -> None:
    """The next call may begin as one ends; the first has no connection yet."""
    async with serving([OK], [OK], [OK]) as (server, client):
        outcomes: list[Answer | FailureKind] = []

        def end(outcome: Answer | FailureKind) -> None:
            outcomes.append(outcome)
            if len(outcomes) == 1:
                assert begin(client, server, end) is not None

        assert begin(client, server, end) is None
        await post(server, client)
        assert begin(client, server, end) is not None
        assert not outcomes
        await until(lambda: len(outcomes) == 2, "two answers")
        assert [isinstance(one, Answer) and one.body for one in outcomes] == [b"{}", b"{}"]
        assert server.connections == 1


async def test_bytes_behind_a_reply_are_no_reply_to_the_next_call() -> None:
    """The connection takes no other call."""
    async with serving([OK], [OK + OK]) as (server, client):
        await post(server, client)
        ended: list[bool] = []
        begin(client, server, lambda _: ended.append(begin(client, server, ended.append) is None))
        await until(lambda: bool(ended), "the answer")
        assert ended == [True]


async def test_an_aborted_call_tells_nothing() -> None:
    """Its connection closes."""
    async with serving([OK], []) as (server, client):
        await post(server, client)
        outcomes: list[Answer | FailureKind] = []
        abort = begin(client, server, outcomes.append)
        assert abort is not None
        await until(lambda: len(server.requests) == 2, "the request")
        abort()
        await until(lambda: server.closed == 1, "the end of the connection")
        assert not outcomes


def begin(client: HttpUpstream, server: Server, end: OnEnd) -> Callable[[], None] | None:
    return client.begin(server.url, {"authorization": "Bearer k"}, b"{}", SECONDS, b"", on_end=end)


def port_of(server: Server) -> int:
    return urlsplit(server.url).port or 0


async def test_connections_to_a_place_that_is_gone_are_closed() -> None:
    """An idle one at once, that of a call in flight after its answer; no other is kept there."""
    async with serving([OK], [OK], [OK], [OK]) as (server, client):
        here = {("127.0.0.1", port_of(server))}
        client.follow({}, here)
        assert await post(server, client) == ANSWER
        client.follow({}, here)
        assert await post(server, client) == ANSWER
        assert (server.connections, server.closed) == (1, 0)
        client.follow({}, ())
        await until(lambda: server.closed == 1, "the idle connection")
        client.follow({}, here)
        call = asyncio.ensure_future(post(server, client))
        await asyncio.sleep(0)
        client.follow({}, ())
        assert await call == ANSWER
        await until(lambda: server.closed == 2, "the connection of the call")
        assert await post(server, client) == ANSWER
        await until(lambda: server.closed == 3, "a connection after that")


async def test_a_changed_trust_counts_for_the_next_call(tls: ssl.SSLContext) -> None:
    """A connection that was trusted before is not used again."""
    async with serving([OK], [OK], tls=tls, ca_file=CERTIFICATE) as (server, client):
        assert await post(server, client) == ANSWER
        here = ("127.0.0.1", port_of(server))
        client.follow({}, {here})
        assert await post(server, client) is FailureKind.CONNECT
        client.follow({here: Trust((CERTIFICATE,))}, {here})
        assert await post(server, client) == ANSWER


async def test_a_server_is_called_at_an_address_by_its_name(tls: ssl.SSLContext) -> None:
    """The certificate is checked against the name of the `host` header, and not against the address."""
    async with serving([OK], [OK], tls=tls) as (server, client):
        port = port_of(server)
        client.follow({(name, port): Trust((CERTIFICATE,)) for name in ("localhost", "other.example")}, ())
        answer = await client.post(server.url, {"host": f"localhost:{port}"}, b"{}", SECONDS)
        assert untimed(answer) == ANSWER
        assert b"\r\nhost: localhost:%d\r\n" % port in server.requests[0]
        other = {"host": f"other.example:{port}"}
        assert await client.post(server.url, other, b"{}", SECONDS) is FailureKind.CONNECT
        assert client.fault(server.url, other) == "its certificate is for another name"


class Proxy:
    """Forwards one connection after the other to a server, once it has the head of a request for a tunnel."""

    def __init__(self, port: int, answer: bytes) -> None:
        self.heads: list[bytes] = []
        self._port = port
        self._answer = answer

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.heads.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(self._answer)
            if self._answer == ESTABLISHED:
                there, back = await asyncio.open_connection("127.0.0.1", self._port)
                await asyncio.gather(_copy(reader, back), _copy(there, writer))
            await writer.drain()
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
    finally:
        writer.close()


ESTABLISHED = b"HTTP/1.1 200 Connection established\r\nvia: proxy\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (ESTABLISHED, ANSWER),
        (b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n", FailureKind.CONNECT),
        (b"HTTP/1.1\r\n\r\n", FailureKind.CONNECT),
        (b"SSH-2.0", FailureKind.CONNECT),
        (b"x" * (1 << 17), FailureKind.CONNECT),
    ],
    ids=["tunnel", "refused", "no status", "no head", "endless"],
)
async def test_a_proxy_tunnels_calls_with_tls(
    tls: ssl.SSLContext, answer: bytes, outcome: Answer | FailureKind
) -> None:
    """It sees neither the key nor the line; without a tunnel nothing is sent."""
    async with serving([OK], [OK], tls=tls) as (server, _):
        port = urlsplit(server.url).port
        assert port is not None
        proxy = Proxy(port, answer)
        listener = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
        way = Trust((CERTIFICATE,), proxy=("127.0.0.1", listener.sockets[0].getsockname()[1]))
        client = HttpUpstream({("127.0.0.1", port): way})
        for _ in range(2):
            assert await post(server, client) == outcome
        assert client.fault(server.url, {}) == ("" if outcome == ANSWER else "the proxy makes no tunnel")
        there = b"127.0.0.1:%d" % port
        assert proxy.heads == [b"CONNECT %b HTTP/1.1\r\nhost: %b\r\n\r\n" % (there, there)] * len(proxy.heads)
        assert (len(proxy.heads), len(server.requests)) == ((1, 2) if outcome == ANSWER else (2, 0))
        await client.close()
        listener.close()
        await listener.wait_closed()


async def test_a_proxy_forwards_calls_without_tls() -> None:
    """Their requests name the whole URL, as RFC 9112, section 3.2.2, has it."""
    async with serving([OK], [OK]) as (proxy, client):
        address = proxy.url.partition("/v1")[0]
        servers = {"gpu": Settings(url="http://gpu:8000/v1", proxy=address)}
        configured({"m": Model(servers=("gpu",))}, servers, client=client)
        for _ in range(2):
            assert untimed(await client.post("http://gpu:8000/v1/x?y=1", {}, b"{}", SECONDS)) == ANSWER
        assert proxy.connections == 1
        assert proxy.requests[0].startswith(b"POST http://gpu:8000/v1/x?y=1 HTTP/1.1\r\nhost: gpu:8000\r\n")
