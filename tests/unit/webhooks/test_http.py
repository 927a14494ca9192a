"""Calls of webhooks over real sockets: which connections come about, and how much of a reply is read."""

import asyncio
import socket
from contextlib import asynccontextmanager

import pytest
from support.listening import stop_listening

from tidemill.schemas.webhooks.addresses import networks
from tidemill.webhooks import http
from tidemill.webhooks.http import Client

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
LOOPBACK = networks(["127.0.0.0/8", "::1/128"])


class Server:
    """Counts connections, and answers each request with these bytes; None never answers."""

    def __init__(self, answer=OK):
        self.answer = answer
        self.connections = 0
        self.requests = []
        self.sent = 0
        self.port = 0

    async def handle(self, reader, writer):
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                size = int(
                    next(row for row in head.lower().split(b"\r\n") if row.startswith(b"content-length")).split()[
                        1
                    ]
                )
                self.requests.append(head + await reader.readexactly(size))
                if self.answer is None:
                    await reader.read()
                    return
                for chunk in self.answer if isinstance(self.answer, list) else [self.answer]:
                    writer.write(chunk)
                    await writer.drain()
                    self.sent += len(chunk)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(answer=OK):
    found = Server(answer)
    server = await asyncio.start_server(found.handle, "127.0.0.1", 0)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        await stop_listening(server)


@asynccontextmanager
async def calling(allowed=()):
    client = Client(allowed)
    await client.start()
    try:
        yield client
    finally:
        await client.stop()


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "0", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]"]
)
async def test_no_packet_goes_to_a_private_address(scheme, host, monkeypatch):
    """Even if the check of the URL lets it pass: the socket is never made."""
    monkeypatch.setattr(http, "checked_url", lambda url, _: url)
    async with serving() as server, calling() as client:
        found = await client.post(f"{scheme}://{host}:{server.port}/", {}, b"{}")
        # The library itself refuses a host of digits.
        assert found.error == ("connection" if host.isdigit() else "refused_address")
        assert (found.status, server.connections) == (None, 0)


async def test_a_name_that_resolves_to_a_private_address_is_refused(monkeypatch):
    """As with DNS rebinding: the address counts, of each connection, not the name."""
    resolved = ["93.184.216.34", "127.0.0.1"]
    original = asyncio.get_running_loop().getaddrinfo

    async def lookup(host, port, **options):
        return await original(resolved[-1] if host == "hooks.example.com" else host, port, **options)

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
    async with serving() as server, calling() as client:
        found = await client.post(f"https://hooks.example.com:{server.port}/", {}, b"{}")
        assert found.error == "refused_address"
        assert server.connections == 0


async def test_an_allowed_network_is_reachable():
    """Also with `http://`; the connection is used again, and the body is the event's."""
    async with serving() as server, calling(LOOPBACK) as client:
        for _ in range(3):
            found = await client.post(f"http://localhost:{server.port}/a?b=c", {"webhook-id": "evt_1"}, b'{"a":1}')
            assert found.is_good
        assert server.connections == 1
        assert server.requests[0].startswith(b"POST /a?b=c HTTP/1.1\r\n")
        assert server.requests[0].endswith(b'\r\n\r\n{"a":1}')
        assert b"webhook-id: evt_1" in server.requests[0].lower()


async def test_a_scheme_in_capitals_is_one():
    """URLs ignore case there, and so does the check."""
    async with serving() as server, calling(LOOPBACK) as client:
        assert (await client.post(f"HTTP://127.0.0.1:{server.port}/", {}, b"{}")).is_good
    async with calling(LOOPBACK) as client:
        assert (await client.post(f"HTTPS://127.0.0.1:{server.port}/", {}, b"{}")).error == "connection"


async def test_without_tls_only_allowed_networks_are_reachable(monkeypatch):
    """A public address is not, even if another network is allowed."""
    made = []
    monkeypatch.setattr(socket, "socket", lambda **kinds: made.append(kinds))
    async with calling(networks(["10.0.0.0/8"])) as client:
        found = await client.post("http://93.184.216.34/", {}, b"{}")
    assert (found.error, made) == ("refused_address", [])


async def test_a_redirect_is_not_followed():
    """It is a failure like any other reply that is not 2xx."""
    async with serving() as inner:
        moved = b"HTTP/1.1 307 Moved\r\nlocation: http://127.0.0.1:%d/\r\ncontent-length: 0\r\n\r\n" % inner.port
        async with serving(moved) as server, calling(LOOPBACK) as client:
            found = await client.post(f"http://127.0.0.1:{server.port}/", {}, b"{}")
        assert (found.status, found.is_good, found.label) == (307, False, "3xx")
        assert inner.connections == 0


async def test_a_large_reply_is_not_read():
    """A body without an end is cut after some KiB, and its status counts."""
    endless = [b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n", *([b"x" * 65_536] * 1_000)]
    async with serving(endless) as server, calling(LOOPBACK) as client:
        found = await client.post(f"http://127.0.0.1:{server.port}/", {}, b"{}")
        assert found.is_good
        # The system's own buffers take some MiB.
        assert server.sent < 32 << 20


async def test_long_framing_of_a_short_body_is_not_read():
    """Nor is a body of bytes in chunks of one byte each, whose extensions are as long as a line may be."""
    chunk = b"1;%b\r\nx\r\n" % (b"y" * 4_096)
    endless = [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", *([chunk] * 16_000)]
    async with serving(endless) as server, calling(LOOPBACK) as client:
        found = await client.post(f"http://127.0.0.1:{server.port}/", {}, b"{}")
        assert found.is_good
        assert server.sent < 32 << 20


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (None, "timeout"),
        (b"nonsense\r\n\r\n", "connection"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000 + b"\r\n\r\n", "connection"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n", "timeout"),
        ([b"HTTP/1.1 103 Early Hints\r\nlink: </>\r\n\r\n" * 1_000] * 5_000, "connection"),
    ],
)
async def test_a_bad_reply_ends_within_a_bound(answer, error, monkeypatch):
    """Whatever the receiver does. An endless one stops soon: the system's own buffers take some MiB."""
    if error == "timeout":
        monkeypatch.setattr(http, "SECONDS_MAX", 0.5)
    async with serving(answer) as server, calling(LOOPBACK) as client:
        found = await client.post(f"http://127.0.0.1:{server.port}/", {}, b"{}")
        assert (found.status, found.error) == (None, error)
        assert server.sent < 32 << 20


async def test_nothing_listens():
    """A refused connection, and a name that does not exist."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with calling(LOOPBACK) as client:
        assert (await client.post(f"http://127.0.0.1:{port}/", {}, b"{}")).error == "connection"
        assert (await client.post("https://does-not-exist.invalid/", {}, b"{}")).error == "connection"
