"""Clients that no HTTP library allows: raw bytes on plain sockets."""

import contextlib
import socket
import time
from collections.abc import Iterator

from support.waiting import WAIT_SECONDS_MAX


def connect(address: tuple[str, int], *, receives_bytes: int = 0, source: str = "") -> socket.socket:
    """A connection.

    Args:
        address: Address of the server.
        receives_bytes: Size of the system's receive buffer; 0 is its default.
        source: Address of the client.
    """
    raw = socket.socket()
    if source:
        raw.bind((source, 0))
    if receives_bytes:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receives_bytes)
    raw.settimeout(WAIT_SECONDS_MAX)
    raw.connect(address)
    return raw


def answered(raw: socket.socket) -> bytes:
    """All bytes until the other side closes."""
    content = b""
    with contextlib.suppress(ConnectionError):
        while piece := raw.recv(1 << 20):
            content += piece
    return content


def asked(address: tuple[str, int], *pieces: bytes) -> bytes:
    """Send pieces until one fails, and read until the other side closes."""
    with connect(address) as raw:
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                raw.sendall(piece)
        return answered(raw)


def trickled(address: tuple[str, int], start: bytes, piece: bytes) -> bytes:
    """Send a piece again and again, slowly, until the other side answers or closes."""
    with connect(address) as raw:
        raw.sendall(start)
        ends = time.monotonic() + WAIT_SECONDS_MAX
        raw.settimeout(0.2)
        while time.monotonic() < ends:
            try:
                if first := raw.recv(1 << 16):
                    raw.settimeout(WAIT_SECONDS_MAX)
                    return first + answered(raw)
            except TimeoutError:
                with contextlib.suppress(ConnectionError):
                    raw.sendall(piece)
                continue
            except ConnectionError:
                pass
            return b""
    raise AssertionError(f"nothing came of it in {WAIT_SECONDS_MAX:.0f} s")


@contextlib.contextmanager
def silent(
    address: tuple[str, int], count: int, start: bytes = b"", *, sources: tuple[str, ...] = ("127.0.0.2",)
) -> Iterator[list[socket.socket]]:
    """Open connections, in turn from each address, that send `start`, and then nothing."""
    with contextlib.ExitStack() as stack:
        opened = []
        for number in range(count):
            raw = stack.enter_context(connect(address, source=sources[number % len(sources)]))
            with contextlib.suppress(ConnectionError):
                raw.sendall(start)
            opened.append(raw)
        yield opened
