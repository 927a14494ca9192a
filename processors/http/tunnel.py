"""A connection with TLS through an HTTP proxy (RFC 9110, section 9.3.6)."""

import asyncio
import ssl
from typing import Final

from tidemill.configuration.security import NotConnected
from tidemill.processors.http.connection import Connection

ANSWER_BYTES_MAX: Final = 16 << 10
"""The head of the proxy's answer."""
_END: Final = b"\r\n\r\n"


class _Answer(asyncio.Protocol):
    """The part of the proxy's answer that has arrived."""

    def __init__(self) -> None:
        self._head = b""
        self.head: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self._head += data
        if _END in self._head or len(self._head) > ANSWER_BYTES_MAX:
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._finish()

    def _finish(self) -> None:
        if not self.head.done():
            self.head.set_result(self._head)


async def connect(
    connection: Connection, server: tuple[str, int], proxy: tuple[str, int], context: ssl.SSLContext, name: str
) -> None:
    """Connect to a server through a proxy.

    Args:
        connection: The protocol that speaks through the tunnel.
        server: Host and port.
        proxy: Its host and port.
        context: For TLS with the server.
        name: The name that the server's certificate must have.

    Raises:
        OSError: No tunnel: the proxy or the server cannot be reached, or the certificate is not trusted.
        UnicodeError: A host name cannot be sent.
    """
    loop = asyncio.get_running_loop()
    transport, answer = await loop.create_connection(_Answer, *proxy)
    try:
        host = f"[{server[0]}]" if ":" in server[0] else server[0]
        there = f"{host}:{server[1]}"
        transport.write(f"CONNECT {there} HTTP/1.1\r\nhost: {there}\r\n\r\n".encode("ascii"))
        _check(await answer.head)
        tunnel = await loop.start_tls(transport, connection, context, server_hostname=name)
    except BaseException:
        transport.abort()
        raise
    assert tunnel is not None
    connection.connection_made(tunnel)


def _check(head: bytes) -> None:
    # A server that speaks before it is spoken to does not speak TLS.
    if head.split(maxsplit=2)[1:2] != [b"200"] or not head.endswith(_END):
        raise NotConnected("the proxy makes no tunnel")
