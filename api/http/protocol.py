"""uvicorn's HTTP protocol with bounds on what a client may send, and on how slowly it may send and read.

uvicorn's protocol reads a head of any size, waits for a head or a body without end, and keeps the unread part of
an answer for as long as the client lives. Here each of these has a bound:

- A head (request line and headers), a chunk's extensions, or trailers: `HEAD_BYTES_MAX`, `HEADERS_MAX`, and
  `URL_BYTES_MAX` for the URL; a head is whole after `head_seconds_max`.
- A client must send a body at `bytes_per_second_min` at least. It may fall behind that by `slow_seconds_max`, at
  any time, even after fast sending. **Time counts only while the server reads**: not while an upload waits for its
  place unread (the server reads 64 KiB of it first), not before the server has sent `100 Continue`, and not while
  the store delays what has arrived. So a route may let a body wait, and needs no timeout of its own for a slow
  one: the stream that it reads raises `ClientDisconnect`, and the client gets a 408.
- A client must read its answer at the same minimum rate, measured in the same way. All unread answers together
  take at most `UNSENT_BYTES_MAX` of memory (`server.py`).
- The server reads up to `LATE_BYTES_MAX` of a body that goes on after its answer, since most clients read an
  answer only once they have sent all; between two checks it reads
  `LATE_BYTES_PER_CHECK` of all such bodies together.

The server checks all connections once in `CHECK_SECONDS`; a request costs no timer.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from tidemill import metrics
from tidemill.api import error_bodies, error_handlers, errors, middleware
from tidemill.api.http import hosts
from tidemill.configuration.connections import Connections
from tidemill.runtime.connections import Connection, ConnectionTable
from tidemill.schemas.resources.error import ApiError

HEAD_BYTES_MAX: Final = 64 * 1024
HEADERS_MAX: Final = 100
URL_BYTES_MAX: Final = 8 * 1024
LINGER_BYTES_MAX: Final = 128 * 1024
"""Bytes of a refused request that the server reads and discards."""
LATE_BYTES_MAX: Final = 1 << 30
LATE_BYTES_PER_CHECK: Final = 64 << 20
PIPELINED_MAX: Final = 16
"""Requests that a connection may send before the first of them is answered."""
CHECK_SECONDS: Final = 1.0
HEALTH: Final = (b"/livez", b"/readyz")
"""Paths that the server answers even if too many connections are busy."""


@dataclass
class LateBodies:
    """The bodies of all connections that go on after their answers."""

    left: int = 0
    """Bytes of them that the server still reads before the next check."""

    def renew(self) -> None:
        """Start a new period."""
        self.left = LATE_BYTES_PER_CHECK


@dataclass(frozen=True, kw_only=True)
class Shared:
    """Shared by all connections of a server."""

    config: uvicorn.Config
    state: ServerState
    bounds: Connections
    table: ConnectionTable
    is_allowed: Callable[[hosts.Headers], bool]
    """Whether the header `Host` names this server."""
    too_busy: ASGIApp
    """Answers if too many connections are busy."""
    misdirected: ASGIApp
    """Answers if `is_allowed` returns False."""
    cross_origin: middleware.CrossOrigin
    late: LateBodies = field(default_factory=LateBodies)


class Protocol(HttpToolsProtocol):
    """The protocol of one connection, with the connection's entry in the table."""

    def __init__(self, shared: Shared, connection: Connection) -> None:
        super().__init__(shared.config, shared.state, {})
        self._shared = shared
        self._bounds = shared.bounds
        self._table = shared.table
        self._connection = connection
        self._served = self.app
        self._fault: ApiError | None = None
        self._is_refused = False
        self._has_lingered = False
        self._in_head = True
        self._is_new = True
        self._head_seconds = 0.0
        self._framing = 0
        """Bytes since the last one of a body: of a head, of a chunk's size and extensions, of trailers."""
        self._received = 0
        """Bytes of a body since the last check."""
        self._late = 0
        """Bytes of a body since its answer; the app reads none of them."""
        self._is_paused = False
        """Whether reading such a body is paused until the next check."""
        self._behind_reading = 0.0
        self._behind_writing = 0.0
        self._unsent = self._sent = 0

    def connection_made(self, transport: Any) -> None:
        """Wait for a request."""
        super().connection_made(transport)
        self._connection.close = transport.abort

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove the connection from the table."""
        super().connection_lost(exc)
        # Its timer would keep a reset connection in memory.
        self._unset_keepalive_if_required()
        self._table.remove(self._connection)

    def abandon(self) -> None:
        """Remove the connection after a failure to open it: `connection_lost` may never be called."""
        if self.transport is None:
            self._table.remove(self._connection)
        else:
            self.connection_lost(None)

    def data_received(self, data: bytes) -> None:
        """Parse data, in pieces so small that no head above the bound passes."""
        while data and not self._is_refused and not self.transport.is_closing():
            left = HEAD_BYTES_MAX - self._framing
            piece, data = (data, b"") if len(data) <= left else (data[:left], data[left:])
            self._framing += len(piece)
            HttpToolsProtocol.data_received(self, piece)
            if self._framing >= HEAD_BYTES_MAX and not self._is_refused:
                self._refuse(errors.head_too_large(), "invalid")
        if self._is_refused:
            # An honest client gets the answer if the server reads some more; a flood would only slow others down.
            self._framing += len(data)
            if self._framing > LINGER_BYTES_MAX:
                self.transport.abort()

    def on_url(self, url: bytes) -> None:
        """Collect a part of the URL."""
        self.url += url
        if len(self.url) > URL_BYTES_MAX:
            raise self._fail_parsing(errors.url_too_long(URL_BYTES_MAX))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header or a trailer."""
        # Copied from uvicorn: a call of its method would cost more than the rest of this one.
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))
        if len(self.headers) > HEADERS_MAX:
            raise self._fail_parsing(errors.head_too_large())

    def on_headers_complete(self) -> None:
        """Start the app, or answer 503 or 421 instead."""
        self._in_head = self._is_new = False
        self._framing = self._late = 0
        self._head_seconds = self._behind_reading = 0.0
        if len(self.pipeline) >= PIPELINED_MAX:
            raise self._fail_parsing(errors.invalid("Too many requests were sent ahead."))
        is_health = self.url in HEALTH
        if not self._table.set_busy(self._connection, is_exempt=is_health):
            self.app = self._shared.too_busy
        elif is_health or self._shared.is_allowed(self.headers):
            self.app = self._served
        else:
            self.app = self._shared.misdirected
        HttpToolsProtocol.on_headers_complete(self)

    def on_body(self, body: bytes) -> None:
        """Give a part of a body to the app, or discard it after the answer."""
        self._framing = 0
        self._received += len(body)
        if self.cycle.response_complete:
            self._discard(len(body))
        else:
            super().on_body(body)

    def _discard(self, size: int) -> None:
        self._late += size
        self._shared.late.left -= size
        if self._late > LATE_BYTES_MAX:
            self._close("late")
        elif self._shared.late.left <= 0:
            self._is_paused = True
            self.flow.pause_reading()

    def on_message_complete(self) -> None:
        """End the body."""
        self._in_head = True
        self._framing = 0
        HttpToolsProtocol.on_message_complete(self)

    def on_response_complete(self) -> None:
        """Wait for the next request, unless it has already arrived."""
        HttpToolsProtocol.on_response_complete(self)
        if self.cycle.response_complete:
            self._table.set_idle(self._connection)

    def check(self) -> None:
        """Close the connection if the client is too slow; called once in `CHECK_SECONDS`."""
        if self._is_refused:
            self._linger()
        elif self._is_paused:
            self._is_paused = False
            self._received = 0
            self.flow.resume_reading()
        elif not self._in_head:
            self._check_body()
        elif not self._is_answering and (self._is_new or self._framing):
            self._head_seconds += CHECK_SECONDS
            if self._head_seconds > self._bounds.head_seconds_max:
                self._refuse(errors.timed_out("head"), "head")
        if self._unsent or self.transport.get_write_buffer_size():
            self._check_answer()

    @property
    def unsent_bytes(self) -> int:
        """Bytes of answers that the client has not read."""
        return self.transport.get_write_buffer_size()

    @property
    def seconds_left(self) -> float:
        """Seconds that the client needs for the rest at its latest rate."""
        return self._unsent / max(self._sent, 1) if self._unsent else CHECK_SECONDS

    def close_unread(self) -> None:
        """Close the connection to free the memory of its unread answers."""
        self._close("unsent")

    def _check_body(self) -> None:
        got, self._received = self._received, 0
        if not self.flow.read_paused and not self.cycle.waiting_for_100_continue:
            self._behind_reading = self._behind(self._behind_reading, got)
            if self._behind_reading > self._bounds.slow_seconds_max:
                self._refuse(errors.timed_out("body"), "body")

    def _check_answer(self) -> None:
        before, self._unsent = self._unsent, self.transport.get_write_buffer_size()
        # If there is more than before, the app has written, which it does once most of the rest is sent.
        self._sent = before - self._unsent if self._unsent <= before else self._unsent
        self._behind_writing = self._behind(self._behind_writing, self._sent)
        if self._behind_writing > self._bounds.slow_seconds_max:
            self._close("answer")

    def _behind(self, seconds: float, moved: int) -> float:
        """Seconds that a client is behind the minimum rate, after a period that transferred `moved` bytes."""
        return max(0.0, seconds + CHECK_SECONDS - moved / self._bounds.bytes_per_second_min)

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _fail_parsing(self, fault: ApiError) -> Exception:
        """Keep the error for the answer; the exception ends the parser."""
        self._fault = fault
        return ValueError(fault.status)

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no HTTP; the answer leaves out the parser's message, which may quote them."""
        del msg
        # The end of a body in the same piece, after its answer, has set this to zero.
        self._framing = max(self._framing, 1)
        self._refuse(self._fault or errors.invalid("The request is not valid HTTP."), "invalid")

    def _refuse(self, error: ApiError, reason: str) -> None:
        """Answer an incomplete request and close the connection; without such a request only close it."""
        if not self._is_answerable:
            self._close(reason)
            return
        metrics.CONNECTIONS_CLOSED.labels(reason).inc()
        self._is_refused = True
        if self._is_answering:
            # Nothing that the app sends goes out after this, and it reads the end of the connection.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        request_id = middleware.request_id(self.headers)
        is_anthropic = error_bodies.is_anthropic(self.url.decode("latin-1"), self.headers)
        status, content = error_bodies.render(error, request_id=request_id, anthropic=is_anthropic)
        fields = (
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(content)),
            (b"connection", b"close"),
            *middleware.headers(request_id, is_secure=self.scheme == "https", anthropic=is_anthropic),
            *self._shared.cross_origin.headers(self.headers),
        )
        head = b"".join(b"%b: %b\r\n" % field for field in fields)
        self.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[status], head, content))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        # A client that still sends would get a reset and never read the answer.
        self.flow.resume_reading()

    @property
    def _is_answerable(self) -> bool:
        """Whether an incomplete request has begun, and no byte of its answer has been sent."""
        if self._in_head:
            return self._framing > 0 and not self._is_answering
        return self._is_answering and not self.cycle.response_started and not self.pipeline

    def _linger(self) -> None:
        """Close a refused connection at the second check after its answer."""
        if self.transport.is_closing():
            return
        if self._has_lingered:
            self.transport.abort()
        self._has_lingered = True

    def _close(self, reason: str) -> None:
        metrics.CONNECTIONS_CLOSED.labels(reason).inc()
        self.transport.abort()


async def too_busy(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer 503, since too many connections are busy."""
    metrics.CONNECTIONS_CLOSED.labels("full").inc()
    await error_handlers.answer(errors.busy(), scope)(scope, receive, send)
