"""A TCP proxy that loses replies: the server gets the request, but the client no reply."""

import socket
import threading
from typing import Self
from urllib.parse import urlsplit

from support.waiting import WAIT_SECONDS_MAX

READ_BYTES = 65_536
HEAD_END = b"\r\n\r\n"


class Dropper:
    """A proxy at `url`, as a context manager; it closes the connection instead of the first `drops` replies.

    It handles one request per connection, so it asks the server to close each connection.
    """

    def __init__(self, url: str, drops: int = 1) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname, parts.port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}{parts.path}"
        self.drops = drops
        self.dropped = 0
        self.requests = 0
        self._thread = threading.Thread(target=self._serve, name="dropper")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # A thread that waits in `accept` is woken by a connection of our own.
        port = self._listening.getsockname()[1]
        self._closing = True
        with socket.create_connection(("127.0.0.1", port)):
            pass
        self._thread.join(WAIT_SECONDS_MAX)
        self._listening.close()

    _closing = False

    def _serve(self) -> None:
        while True:
            client, _ = self._listening.accept()
            with client:
                if self._closing:
                    return
                client.settimeout(WAIT_SECONDS_MAX)
                self._exchange(client)

    def _exchange(self, client: socket.socket) -> None:
        request = _message(client)
        if not request:
            return
        self.requests += 1
        with socket.create_connection(self._target, WAIT_SECONDS_MAX) as server:
            server.sendall(request.replace(HEAD_END, b"\r\nconnection: close" + HEAD_END, 1))
            reply = b""
            while chunk := server.recv(READ_BYTES):
                reply += chunk
        if self.dropped < self.drops:
            self.dropped += 1
            return
        client.sendall(reply)


def _message(client: socket.socket) -> bytes:
    """One request: its head, and as much body as its length says."""
    data = b""
    while HEAD_END not in data:
        if not (chunk := client.recv(READ_BYTES)):
            return b""
        data += chunk
    head, _, body = data.partition(HEAD_END)
    lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    missing = int(lengths[0] if lengths else 0) - len(body)
    while missing > 0:
        chunk = client.recv(READ_BYTES)
        data += chunk
        missing -= len(chunk)
    # The SDKs keep connections alive; here each has one request.
    return (
        b"\r\n".join(
            line
            for line in data.partition(HEAD_END)[0].split(b"\r\n")
            if not line.lower().startswith(b"connection:")
        )
        + HEAD_END
        + data.partition(HEAD_END)[2]
    )
