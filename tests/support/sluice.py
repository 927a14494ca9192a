"""A proxy that a test can close: it holds requests back, or breaks all connections."""

import socket
import threading
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit


class Sluice:
    """A proxy at `url` to the server, as a context manager.

    Attributes:
        sent: Bytes sent to the server.
        is_down: Whether it breaks every connection.
    """

    def __init__(self, url: str) -> None:
        self._to = (str(urlsplit(url).hostname), int(urlsplit(url).port or 80))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.sent = 0
        self.is_down = False
        self._sockets: list[socket.socket] = []
        self._most: int | None = None
        self._free = threading.Condition()

    def hold_after(self, count: int | None) -> None:
        """Let this many more bytes pass; None lets all pass."""
        with self._free:
            self._most = None if count is None else self.sent + count
            self._free.notify_all()

    @property
    def is_holding(self) -> bool:
        """Whether it holds bytes back."""
        return self._most is not None and self.sent >= self._most

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.hold_after(None)
        for each in (self._listener, *self._sockets):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if self.is_down:
                    near.close()
                    continue
                far = socket.create_connection(self._to)
                self._sockets += [near, far]
                threading.Thread(target=self._pump, args=(near, far, True), daemon=True).start()
                threading.Thread(target=self._pump, args=(far, near, False), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, forth: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                if forth:
                    with self._free:
                        self._free.wait_for(lambda: self._most is None or self.sent < self._most)
                        self.sent += len(data)
                if self.is_down:
                    break
                sink.sendall(data)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
