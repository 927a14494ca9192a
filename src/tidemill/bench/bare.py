"""The bare client: makes the calls of a case and does nothing else, as the floor to measure the product against.

    python -m tidemill.bench.bare URL IN_FLIGHT CHANGES INPUT...

It sends the body of each line of the inputs to the URL, keeps IN_FLIGHT calls in flight on as many connections,
repeats refused calls when the server says so, and writes `{"calls": …, "seconds": …, "cpu_seconds": …}`.
CHANGES of IN_FLIGHT are pairs like `6:32,12:64`: seconds after the start, and the new number; `-` for none.

A protocol without tasks, timeouts and an HTTP parser is the leanest client in Python: with asyncio's streams or
the product's client, the floor would measure those. The event loop is that of the product.
"""

import asyncio
import json
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Final, cast
from urllib.parse import urlsplit

import uvloop

_BODY: Final = b'"body":'
_OK: Final = b"200"
_BUSY: Final = (b"429", b"503")
_HEAD_END: Final = b"\r\n\r\n"
_LENGTH: Final = b"\r\ncontent-length: "
_LAST_CHUNK: Final = b"\r\n0\r\n\r\n"
_RETRY_AFTER: Final = b"\r\nretry-after: "


class Connection(asyncio.Protocol):
    """A connection with one call at a time; `ended` gets the connection, the status, the reply and the request."""

    def __init__(self, ended: "Callable[[Connection, bytes, bytes, bytes], None]") -> None:
        self._ended = ended
        self._transport: asyncio.Transport | None = None
        self._request = b""
        self._reply = b""
        self._size = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        # The transports of uvloop are not instances of asyncio's classes.
        self._transport = cast("asyncio.Transport", transport)

    def send(self, request: bytes) -> None:
        """Make a call."""
        assert self._transport is not None
        self._request, self._reply, self._size = request, b"", 0
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Notice the end of a reply, by its length or its last chunk."""
        self._reply = reply = self._reply + data if self._reply else data
        if not self._size:
            if (end := reply.find(_HEAD_END)) < 0:
                return
            length = _field(reply[: end + 2], _LENGTH)
            self._size = -1 if length is None else end + len(_HEAD_END) + int(length)
        if len(reply) == self._size or (self._size < 0 and reply.endswith(_LAST_CHUNK)):
            self._ended(self, reply[9:12], reply, self._request)

    def connection_lost(self, error: Exception | None) -> None:
        """End the run: no case closes connections."""
        raise SystemExit(f"the server closed a connection: {error}")


class Bare:
    """One run over the requests.

    Attributes:
        calls: Calls so far.
        ended: Done once every request has its answer.
    """

    def __init__(self, requests: Iterator[bytes], in_flight_max: int) -> None:
        self.calls = 0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._requests = requests
        self._again: deque[bytes] = deque()
        self._waiting = 0
        self._in_flight = 0
        self._in_flight_max = in_flight_max
        self._idle: list[Connection] = []

    def add(self, connection: Connection) -> None:
        """Use a connection from now on."""
        self._idle.append(connection)

    def limit(self, in_flight_max: int) -> None:
        """Change the number of calls in flight."""
        self._in_flight_max = in_flight_max
        self.fill()

    def fill(self) -> None:
        """Make as many calls as may be in flight."""
        while self._idle and self._in_flight < self._in_flight_max:
            if (request := self._again.popleft() if self._again else next(self._requests, None)) is None:
                break
            self.calls += 1
            self._in_flight += 1
            self._idle.pop().send(request)
        if not self._in_flight and not self._waiting and not self.ended.done():
            self.ended.set_result(None)

    def on_reply(self, connection: Connection, status: bytes, reply: bytes, request: bytes) -> None:
        """Take an answer, and make the next call."""
        self._in_flight -= 1
        self._idle.append(connection)
        if status != _OK:
            if status not in _BUSY:
                raise SystemExit(f"the server answered {reply!r}")
            self._waiting += 1
            seconds = float(_field(reply, _RETRY_AFTER) or 0)
            asyncio.get_running_loop().call_later(seconds, self._retry, request)
        self.fill()

    def _retry(self, request: bytes) -> None:
        self._waiting -= 1
        self._again.append(request)
        self.fill()


def requests(url: str, inputs: list[Path]) -> Iterator[bytes]:
    """The requests of the lines, whose last field is the body; reads them as it goes, so memory stays flat."""
    parts = urlsplit(url)
    head = (
        f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\nContent-Length: "
    )
    start = head.encode()
    for line in chain.from_iterable(path.open("rb") for path in inputs):
        body = line[line.index(_BODY) + len(_BODY) : -2]
        yield b"%b%d\r\n\r\n%b" % (start, len(body), body)


async def run(url: str, in_flight: int, changes: list[tuple[float, int]], inputs: list[Path]) -> dict[str, float]:
    """Make all calls; the clock begins once the connections are open."""
    loop = asyncio.get_running_loop()
    bare = Bare(requests(url, inputs), in_flight)
    host, port = str(urlsplit(url).hostname), urlsplit(url).port or 80
    for _ in range(max([in_flight, *(most for _, most in changes)])):
        _, connection = await loop.create_connection(lambda: Connection(bare.on_reply), host, port)
        bare.add(connection)
    began, cpu = time.monotonic(), _cpu_seconds()
    for seconds, most in changes:
        loop.call_later(seconds, bare.limit, most)
    bare.fill()
    await bare.ended
    return {"calls": bare.calls, "seconds": time.monotonic() - began, "cpu_seconds": _cpu_seconds() - cpu}


def _field(head: bytes, name: bytes) -> bytes | None:
    """The value of a header field; the name is given in lower case, with its line break and colon."""
    if (at := head.lower().find(name)) < 0:
        return None
    at += len(name)
    return head[at : head.index(b"\r", at)]


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main(url: str, in_flight: str, changes: str, *inputs: str) -> None:
    """Run with the arguments of the command line, and leave without closing connections one by one."""
    pairs = [pair.split(":") for pair in changes.split(",") if changes != "-"]
    parsed = [(float(seconds), int(most)) for seconds, most in pairs]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(run(url, int(in_flight), parsed, [Path(name) for name in inputs]))
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
