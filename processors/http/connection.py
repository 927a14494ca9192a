"""One HTTP/1.1 connection: one call at a time, the reply parsed by llhttp.

It costs a quarter of the CPU time of aiohttp, which also handles redirects, cookies, proxies and streams
(docs/decisions/0021-own-http-client.md). `client.py` keeps the connections.
"""

import asyncio
import math
from collections.abc import Callable
from typing import Any, Final, cast

import httptools

from tidemill.processors.failures import Answer, FailureKind
from tidemill.processors.http import reply_body
from tidemill.processors.http.reply_body import PIECES_MAX, PartialReply
from tidemill.processors.memory_budget import SMALL_BYTES, LargeReplies, ReplyBytes

HEAD_BYTES_MAX: Final = 64 << 10
"""Bytes of a reply outside of its body: the head, the trailer, and chunk extensions."""

LATE_SECONDS_MAX: Final = 1.0
"""If a time limit is looked at later than this, this process stood still, and the reply may lie in the socket."""

_INFORMATIONAL: Final = 200
NOTHING: Final = memoryview(b"")
_HEAD_END: Final = b"\r\n\r\n"
_KEPT: Final = {
    b"x-request-id": "request_id", b"retry-after": "retry_after", b"content-type": "media_type",
    b"location": "location",
}  # fmt: skip
"""The headers that an answer keeps, and its fields."""
_NO_PARSER: Final = httptools.HttpResponseParser(object())

OnEnd = Callable[[Answer | FailureKind], None]
"""Gets the outcome of a call, once."""


class Connection(asyncio.Protocol):
    """A connection to a server, used for one call at a time."""

    def __init__(self, replies: LargeReplies) -> None:
        self.idle_since = 0.0
        """When its last call ended, on the monotonic clock."""
        self._replies = replies
        self._share: ReplyBytes | None = None
        self._is_paused = False
        """Whether reading is paused until the memory budget has room."""
        self._began_at = 0.0
        """When the call was sent, by the event loop's clock."""
        self._ends_at = math.inf
        """When the call has taken too long, by the event loop's clock."""
        self._timer: asyncio.TimerHandle | None = None
        """Checks that; it may be due earlier, so that the next call need not set it again."""
        self._is_extended = False
        """Whether a freeze has moved the end of the call: if the process is always late, it still ends."""
        self._seconds_left = 0.0
        """The rest of the call's time while reading is paused."""
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._on_end: OnEnd | None = None
        """The callback of the call in flight."""
        self._is_parsing = False
        self._ended: tuple[OnEnd, Answer | FailureKind] | None = None
        """A call that ended while bytes are parsed: another one may begin only afterwards."""
        self._keeps_alive = False
        self._bytes_max = 0
        self._head = b""
        """The part of the head that has arrived."""
        self._is_refused = False
        """Whether the parser refused the head."""
        self._bare_bytes = 0
        """Bytes received since the body last grew."""
        self._begin()

    @property
    def is_usable(self) -> bool:
        """Whether another call may be made."""
        return self._keeps_alive and self._transport is not None and not self._transport.is_closing()

    @property
    def socket(self) -> Any:
        """The socket, or an object like one; None if there is no connection."""
        return None if self._transport is None else self._transport.get_extra_info("socket")

    def begin(
        self, request: bytes, seconds: float, bytes_max: int, on_end: OnEnd, body: memoryview = NOTHING
    ) -> None:
        """Send a request; `on_end` gets its reply, whose body may have `bytes_max`, and never before this returns.

        `request` is the head and a small body; a large `body` is not copied.
        """
        transport, self._on_end = self._transport, on_end
        if transport is None or transport.is_closing():
            self._loop.call_soon(self._end, FailureKind.READ)
            return
        self._begin()
        self._bytes_max = bytes_max
        self._end_within(seconds)
        self._began_at = self._ends_at - seconds
        transport.write(request)
        if body:
            transport.write(body)

    async def call(
        self, request: bytes, seconds: float, bytes_max: int, body: memoryview = NOTHING
    ) -> Answer | FailureKind:
        """Like `begin`, and wait for the reply."""
        call: asyncio.Future[Answer | FailureKind] = self._loop.create_future()

        def end(outcome: Answer | FailureKind) -> None:
            if call.done():
                _drop(outcome)
            else:
                call.set_result(outcome)

        self.begin(request, seconds, bytes_max, end, body)
        try:
            return await call
        except BaseException:
            if call.done() and not call.cancelled():
                _drop(call.result())
            self.abort()
            raise

    def abort(self) -> None:
        """End the call without calling `on_end`."""
        self._on_end = None
        self.close()

    def close(self) -> None:
        """Close at once."""
        self._keeps_alive = False
        self._stop_timer()
        self._let_go()
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        # The transports of uvloop are not instances of asyncio's classes.
        self._transport = cast("asyncio.Transport", transport)
        self._keeps_alive = True

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`. The end of the connection ends a reply without a length."""
        self._keeps_alive = False
        self._transport = None
        self._parser = _NO_PARSER  # The old one refers to this connection: only a full collection would free both.
        self._stop_timer()
        if exc is None and self._reply.has_head and not self._reply.is_framed:
            self._end(self._answer())
        else:
            self._end(FailureKind.READ)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._is_parsing = True
        try:
            self._parse(data)
        finally:
            self._is_parsing = False
        if self._ended is not None:
            (on_end, outcome), self._ended = self._ended, None
            on_end(outcome)

    def _parse(self, data: bytes) -> None:
        size = self._reply.size
        self._bare_bytes += len(data)
        try:
            self._feed(data)
        except reply_body.LengthsError:
            self._end(FailureKind.UNSUPPORTED_REPLY)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._end(FailureKind.READ)
        else:
            if self._reply.size > size:
                self._bare_bytes = 0
            elif self._bare_bytes > HEAD_BYTES_MAX:
                self._end(FailureKind.READ)

    def _feed(self, data: bytes) -> None:
        """Parse bytes; if the parser refuses a head with two equal lengths, parses it again with one."""
        if self._reply.has_head:
            self._parser.feed_data(data)
            return
        self._head += data
        if not self._is_refused:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserError:
                if self._reply.has_head:
                    raise
                self._is_refused = True
            else:
                return
        head, end, rest = self._head.partition(_HEAD_END)
        if not end:
            return
        head = reply_body.with_one_length(head + end)
        self._begin()
        self._parser = httptools.HttpResponseParser(self)
        # The server may have meant another end of the body.
        self._keeps_alive = False
        self._parser.feed_data(head + rest)

    def on_message_begin(self) -> None:
        """See `httptools`."""
        if self._on_end is None:
            # No call is in flight: the next call could take this for its reply.
            self.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        """See `httptools`."""
        name = name.lower()
        if name in {b"content-length", b"transfer-encoding"}:
            self._reply.is_framed = True
        elif name == b"content-encoding":
            self._reply.encoded(value.decode("latin-1"))
        elif (kept := _KEPT.get(name)) is not None:
            self._reply.headers[kept] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """See `httptools`."""
        self._head = b""
        self._reply.status = self._parser.get_status_code()
        self._reply.has_head = self._reply.status >= _INFORMATIONAL
        self._reply.first_byte = self._loop.time() - self._began_at

    def on_body(self, body: bytes) -> None:
        """See `httptools`."""
        self._reply.has_body = True
        if self._reply.encoding is None:
            self._take(body)
        elif self._reply.decoder is None:
            self._take(body, is_kept=False)
        else:
            try:
                for piece in self._reply.decoder.feed(body):
                    self._take(piece)
                    if self._on_end is None:
                        return
            except reply_body.CodingError:
                self._reply.decoder = None

    def _take(self, body: bytes, *, is_kept: bool = True) -> None:
        reply = self._reply
        reply.size += len(body)
        if reply.size > self._bytes_max:
            self._end(FailureKind.TOO_LARGE)
            return
        if not is_kept:
            return
        reply.pieces.append(body)
        if len(reply.pieces) - reply.joined > PIECES_MAX:
            reply.join()
        if self._share is not None:
            self._count(len(body))
        elif reply.size > SMALL_BYTES:
            self._share = self._replies.share(self._read_on, self._give_up)
            self._count(reply.size)

    def on_message_complete(self) -> None:
        """See `httptools`."""
        if self._reply.status < _INFORMATIONAL:
            # An informational status like `100 Continue`: the reply follows.
            self._begin()
        else:
            self._keeps_alive = self._keeps_alive and self._parser.should_keep_alive()
            self._end(self._answer())

    def _begin(self) -> None:
        self._reply = PartialReply()
        self._head = b""
        self._is_refused = False
        self._bare_bytes = 0

    def _answer(self) -> Answer:
        reply = self._reply
        unread = reply.unread
        body = b"" if unread else reply.pieces[0] if len(reply.pieces) == 1 else b"".join(reply.pieces)
        reply.pieces = []
        share, self._share = self._share, None
        if share is not None:
            share.finish()
        return Answer(
            reply.status, body, encoding=unread, share=share, first_byte=reply.first_byte, **reply.headers
        )

    def _count(self, size: int) -> None:
        assert self._share is not None
        if not self._share.grow(size) and self._transport is not None and not self._is_paused:
            self._transport.pause_reading()
            self._is_paused = True
            self._seconds_left = self._ends_at - self._loop.time()
            self._stop_timer()

    def _read_on(self) -> None:
        """Resume reading; the pause does not count against the server's time."""
        if self._on_end is not None:
            self._end_within(self._seconds_left)
        self._unpause()

    def _unpause(self) -> None:
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()

    def _give_up(self) -> None:
        self._end(FailureKind.TIMEOUT)

    def _end_within(self, seconds: float) -> None:
        """Set the time limit of the call."""
        self._is_extended = False
        self._ends_at = at = self._loop.time() + seconds
        if self._timer is None or self._timer.when() > at:
            self._stop_timer()
            self._timer = self._loop.call_at(at, self._look)

    def _look(self) -> None:
        """End the call if its time is over.

        Timers run before the socket is read, so a call that a freeze has outlasted is looked at once more.
        """
        timer, self._timer = self._timer, None
        if self._on_end is None or timer is None:
            return
        now = self._loop.time()
        if now >= self._ends_at and (late := now - timer.when()) > LATE_SECONDS_MAX and not self._is_extended:
            self._is_extended = True
            self._ends_at = max(self._ends_at + late, now + LATE_SECONDS_MAX)
        if now < self._ends_at:
            self._timer = self._loop.call_at(self._ends_at, self._look)
        else:
            self._end(FailureKind.TIMEOUT)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _let_go(self) -> None:
        share, self._share = self._share, None
        if share is not None:
            share.close()

    def _end(self, outcome: Answer | FailureKind) -> None:
        """End the call; close the connection if it failed."""
        on_end, self._on_end = self._on_end, None
        self._reply.pieces = []
        if isinstance(outcome, FailureKind):
            self.close()
        else:
            self._unpause()
        if on_end is None:
            _drop(outcome)
        elif self._is_parsing:
            self._ended = on_end, outcome
        else:
            on_end(outcome)


def _drop(outcome: Answer | FailureKind) -> None:
    if isinstance(outcome, Answer) and outcome.share is not None:
        outcome.share.close()
