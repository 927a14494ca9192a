"""A server that sends scripted bytes, and the HTTP client of processors that calls it."""

import asyncio
import ssl
from contextlib import asynccontextmanager
from pathlib import Path

from msgspec import structs

from tidemill.processors.failures import Answer, FailureKind
from tidemill.processors.http.client import HttpUpstream, Trust

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Request-ID: abc\r\n\r\n{}"
ANSWER = Answer(200, b"{}", "abc", None)
SECONDS = 20.0


class Server:
    """Answers each request with the next of its scripts: bytes to send one after the other; None closes."""

    def __init__(self, *scripts: list[bytes | None]) -> None:
        self.scripts = list(scripts)
        self.requests: list[bytes] = []
        self.connections = self.closed = 0
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
            self.closed += 1
            writer.close()


@asynccontextmanager
async def serving(*scripts: list[bytes | None], tls: ssl.SSLContext | None = None, ca_file: Path | None = None):
    """A server and a client, which trusts the authority of `ca_file`."""
    server = Server(*scripts)
    listener = await asyncio.start_server(server.answer, "127.0.0.1", 0, ssl=tls)
    port = listener.sockets[0].getsockname()[1]
    server.url = f"http{'s' if tls else ''}://127.0.0.1:{port}/v1/x?y=1"
    client = HttpUpstream({("127.0.0.1", port): Trust((ca_file,))} if ca_file else None)
    try:
        yield server, client
    finally:
        await client.close()
        listener.close()
        await listener.wait_closed()


async def post(server: Server, client: HttpUpstream, seconds: float = SECONDS) -> Answer | FailureKind:
    """Make a call, and remove the time from its outcome."""
    return untimed(await client.post(server.url, {"authorization": "Bearer k"}, b'{"a":1}', seconds))


def untimed(outcome: Answer | FailureKind) -> Answer | FailureKind:
    """The outcome without its time, so that it can be compared."""
    return outcome if isinstance(outcome, FailureKind) else structs.replace(outcome, first_byte=0.0)


def coded(encoding: bytes, body: bytes) -> bytes:
    """A reply with a compressed body."""
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: %b\r\nContent-Length: %d\r\n\r\n"
    return head % (encoding, len(body)) + body
