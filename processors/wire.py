"""HTTP/1.1 as far as a POST needs it: one call on one connection, the reply parsed by llhttp.

A general client spends most of its time on what is not needed here: redirects, cookies, proxies, streams. This one
costs a third of it (see `upstream.py`, which keeps the connections).
"""

import asyncio
from typing import Final, cast

import httptools

from tidemill.processors.budget import SMALL_BYTES, Replies, Share
from tidemill.processors.call import REPLY_BYTES_MAX, Answer, Broken

HEAD_BYTES_MAX: Final = 64 << 10
"""Of what is no body: the head, the fields behind the last chunk, and what may stand with the size of a chunk."""

_INFORMATIONAL: Final = 200
_NOTHING: Final = memoryview(b"")


class Connection(asyncio.Protocol):
    """A connection to a server, used for one call at a time."""

    def __init__(self, replies: Replies) -> None:
        self.idle_since = 0.0
        """When its last call ended, by the clock of the event loop."""
        self._replies = replies
        self._share: Share | None = None
        self._is_paused = False
        """Whether it waits for the budget, and is not read from."""
        self._timer: asyncio.TimerHandle | None = None
        self._seconds_left = 0.0
        """What is left of the call's time while it waits for the budget."""
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._call: asyncio.Future[Answer | Broken] | None = None
        self._keeps_alive = False
        self._request_id: str | None = None
        self._retry_after: str | None = None
        self._bytes_max = REPLY_BYTES_MAX
        self._body: list[bytes] = []
        self._size = 0
        self._bare_bytes = 0
        """What has come since the body last grew."""
        self._begin()

    @property
    def is_usable(self) -> bool:
        """Whether another call may be made."""
        return self._keeps_alive and self._transport is not None and not self._transport.is_closing()

    async def call(
        self, request: bytes, seconds: float, bytes_max: int = REPLY_BYTES_MAX, body: memoryview = _NOTHING
    ) -> Answer | Broken:
        """Send a request and wait for its reply.

        Args:
            request: All of it.
            seconds: How long that may take.
            bytes_max: Of the reply's body.
            body: What comes after it; it is not copied.
        """
        if self._transport is None or self._transport.is_closing():
            return Broken.CONNECTION
        self._begin()
        self._bytes_max = bytes_max
        call: asyncio.Future[Answer | Broken] = self._loop.create_future()
        self._call = call
        self._timer = self._loop.call_later(seconds, self._end, Broken.TIMEOUT)
        try:
            self._transport.write(request)
            if body:
                self._transport.write(body)
            return await call
        except asyncio.CancelledError:
            if call.done() and not call.cancelled():
                _drop(call.result())
            raise
        finally:
            self._stop_timer()
            if not call.done() or call.cancelled():
                self.close()

    def close(self) -> None:
        """Close at once."""
        self._keeps_alive = False
        self._let_go()
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        # The transports of uvloop are of no class of asyncio.
        self._transport = cast("asyncio.Transport", transport)
        self._keeps_alive = True

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`. A reply of no stated length ends with its connection."""
        self._keeps_alive = False
        self._transport = None
        if exc is None and self._has_head and not self._is_framed:
            self._end(self._answer())
        else:
            self._end(Broken.CONNECTION)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        size = self._size
        self._bare_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._end(Broken.CONNECTION)
            return
        if self._size > size:
            self._bare_bytes = 0
        elif self._bare_bytes > HEAD_BYTES_MAX:
            self._end(Broken.CONNECTION)

    def on_message_begin(self) -> None:
        """See `httptools`."""
        if self._call is None:
            # Nobody asked: what follows could not be told from the reply to the next call.
            self.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        """See `httptools`; only what is needed is kept."""
        name = name.lower()
        if name in {b"content-length", b"transfer-encoding"}:
            self._is_framed = True
        elif name == b"x-request-id":
            self._request_id = value.decode("latin-1")
        elif name == b"retry-after":
            self._retry_after = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """See `httptools`."""
        self._status = self._parser.get_status_code()
        self._has_head = self._status >= _INFORMATIONAL

    def on_body(self, body: bytes) -> None:
        """See `httptools`."""
        self._size += len(body)
        if self._size > self._bytes_max:
            self._end(Broken.TOO_LARGE)
            return
        self._body.append(body)
        if self._share is not None:
            self._count(len(body))
        elif self._size > SMALL_BYTES:
            self._share = self._replies.share(self._read_on, self._give_up)
            self._count(self._size)

    def on_message_complete(self) -> None:
        """See `httptools`."""
        if self._status < _INFORMATIONAL:
            # `100 Continue` and its like go before the reply.
            self._begin()
        else:
            self._keeps_alive = self._keeps_alive and self._parser.should_keep_alive()
            self._end(self._answer())

    def _begin(self) -> None:
        self._status = 0
        self._has_head = False
        self._is_framed = False
        self._bare_bytes = 0
        self._size = 0
        self._body = []
        self._request_id = None
        self._retry_after = None

    def _answer(self) -> Answer:
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        share, self._share = self._share, None
        if share is not None:
            share.finish()
        return Answer(self._status, body, self._request_id, self._retry_after, share)

    def _count(self, size: int) -> None:
        assert self._share is not None
        if not self._share.grow(size) and self._transport is not None and self._timer is not None:
            self._transport.pause_reading()
            self._is_paused = True
            self._seconds_left = self._timer.when() - self._loop.time()
            self._stop_timer()

    def _read_on(self) -> None:
        """There is room for more of the reply; the time that it has waited was not the server's."""
        if self._call is not None:
            self._timer = self._loop.call_later(self._seconds_left, self._end, Broken.TIMEOUT)
        self._unpause()

    def _unpause(self) -> None:
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()

    def _give_up(self) -> None:
        self._end(Broken.TIMEOUT)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _let_go(self) -> None:
        share, self._share = self._share, None
        if share is not None:
            share.close()

    def _end(self, outcome: Answer | Broken) -> None:
        """Hand over how the call ended; a connection whose call broke off is of no use any more."""
        call, self._call = self._call, None
        self._body = []
        if isinstance(outcome, Broken):
            self.close()
        else:
            self._unpause()
        if call is not None and not call.done():
            call.set_result(outcome)
        else:
            _drop(outcome)


def _drop(outcome: Answer | Broken) -> None:
    if isinstance(outcome, Answer) and outcome.share is not None:
        outcome.share.close()
