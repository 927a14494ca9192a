"""The protocol of the server: uvicorn's, with bounds on what a connection may bring, and on how slowly.

uvicorn's protocol reads a head of any size, waits for it and for a body without end, and keeps what a client does
not take for as long as it lives. Here each of these has a bound:

- A head (request line and headers), a chunk's extensions, or trailers: `HEAD_BYTES_MAX`, `HEADERS_MAX`, and
  `URL_BYTES_MAX` for the URL; a head is whole after `head_seconds_max`.
- A body arrives with `bytes_per_second_min` at least. A client may fall behind that by `slow_seconds_max`, at any
  time and whatever it sent before. **Time counts only while the server reads**: not while an upload waits for its
  place unread (64 KiB of it are taken first), not before the server has sent `100 Continue`, and not while the
  store holds up what has arrived. So a route may let a body wait for as long as it likes, and needs no timeout of
  its own for a slow one: the stream that it reads raises `ClientDisconnect`, and the client is answered with 408.
- An answer is taken with the same rate at least, by the same account. All answers together wait in
  `UNSENT_BYTES_MAX` of memory (`server.py`).
- Of a body that goes on after its answer `LATE_BYTES_MAX` are read, since most clients hear an answer only once
  they have sent all; of all such bodies together `LATE_BYTES_PER_LOOK` between two looks.

The bounds are looked at once in `LOOK_SECONDS`, for all connections together; a request costs no timer.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from tidemill import metrics
from tidemill.api import error_handlers, errors, middleware
from tidemill.api.http import hosts
from tidemill.configuration.connections import Connections
from tidemill.runtime.connections import Connection, Room
from tidemill.schemas import ids
from tidemill.schemas.resources.error import ApiError

HEAD_BYTES_MAX: Final = 64 * 1024
HEADERS_MAX: Final = 100
URL_BYTES_MAX: Final = 8 * 1024
LINGER_BYTES_MAX: Final = 128 * 1024
"""What is read of a request, and let go, after it was refused."""
LATE_BYTES_MAX: Final = 1 << 30
LATE_BYTES_PER_LOOK: Final = 64 << 20
PIPELINED_MAX: Final = 16
"""Requests that a connection may send before the first of them is answered."""
LOOK_SECONDS: Final = 1.0
HEALTH: Final = (b"/livez", b"/readyz")
"""What is answered also where too much is being answered."""


@dataclass
class Late:
    """Bodies that go on after their answers, of all connections."""

    left: int = 0
    """Bytes that may still be read of them until the next look."""

    def renew(self) -> None:
        """Another look begins."""
        self.left = LATE_BYTES_PER_LOOK


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What all connections of a server have in common."""

    config: uvicorn.Config
    state: ServerState
    bounds: Connections
    room: Room
    is_ours: Callable[[hosts.Headers], bool]
    """Whether a request with these headers calls the server by a name of its own."""
    no_room: ASGIApp
    """Answers where too many requests are being answered."""
    misdirected: ASGIApp
    """Answers where `is_ours` says no."""
    cross_origin: middleware.CrossOrigin
    late: Late = field(default_factory=Late)


class Protocol(HttpToolsProtocol):
    """One connection.

    Args:
        shared: What it has in common with others.
        connection: Its place in the room.
    """

    def __init__(self, shared: Shared, connection: Connection) -> None:
        super().__init__(shared.config, shared.state, {})
        self._shared = shared
        self._bounds = shared.bounds
        self._room = shared.room
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
        self._brought = 0
        """Bytes of a body since the last look."""
        self._late = 0
        """Bytes of a body since it was answered: the app reads none of them."""
        self._is_held = False
        """Whether such a body is not read on until the next look."""
        self._behind_reading = 0.0
        self._behind_writing = 0.0
        self._unsent = self._taken = 0

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._connection.drop = transport.abort

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave."""
        super().connection_lost(exc)
        # Without this a connection that was reset is kept in memory by its timer.
        self._unset_keepalive_if_required()
        self._room.leave(self._connection)

    def abandon(self) -> None:
        """Leave, where opening failed: the loop may have told of the connection, and does not tell of its end."""
        if self.transport is None:
            self._room.leave(self._connection)
        else:
            self.connection_lost(None)

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived, in pieces that no head can hide in."""
        while data and not self._is_refused and not self.transport.is_closing():
            left = HEAD_BYTES_MAX - self._framing
            piece, data = (data, b"") if len(data) <= left else (data[:left], data[left:])
            self._framing += len(piece)
            HttpToolsProtocol.data_received(self, piece)
            if self._framing >= HEAD_BYTES_MAX and not self._is_refused:
                self._refuse(errors.head_too_large(), "invalid")
        if self._is_refused:
            # Some more is read so that an honest client hears the answer; a flood would only slow others down.
            self._framing += len(data)
            if self._framing > LINGER_BYTES_MAX:
                self.transport.abort()

    def on_url(self, url: bytes) -> None:
        """A part of the URL has come."""
        self.url += url
        if len(self.url) > URL_BYTES_MAX:
            raise self._faulty(errors.url_too_long(URL_BYTES_MAX))

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header has come, or a trailer."""
        # As uvicorn has it, which a call of its own would cost more than all of it.
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))
        if len(self.headers) > HEADERS_MAX:
            raise self._faulty(errors.head_too_large())

    def on_headers_complete(self) -> None:
        """Begin to answer, be it that there is no room."""
        self._in_head = self._is_new = False
        self._framing = self._late = 0
        self._head_seconds = self._behind_reading = 0.0
        if len(self.pipeline) >= PIPELINED_MAX:
            raise self._faulty(errors.invalid("Too many requests were sent ahead."))
        is_health = self.url in HEALTH
        if not self._room.work(self._connection, at_any_rate=is_health):
            self.app = self._shared.no_room
        elif is_health or self._shared.is_ours(self.headers):
            self.app = self._served
        else:
            self.app = self._shared.misdirected
        HttpToolsProtocol.on_headers_complete(self)

    def on_body(self, body: bytes) -> None:
        """A piece of a body has come."""
        self._framing = 0
        self._brought += len(body)
        if self.cycle.response_complete:
            self._let_go(len(body))
        else:
            super().on_body(body)

    def _let_go(self, size: int) -> None:
        self._late += size
        self._shared.late.left -= size
        if self._late > LATE_BYTES_MAX:
            self._drop("late")
        elif self._shared.late.left <= 0:
            self._is_held = True
            self.flow.pause_reading()

    def on_message_complete(self) -> None:
        """The body is whole."""
        self._in_head = True
        self._framing = 0
        HttpToolsProtocol.on_message_complete(self)

    def on_response_complete(self) -> None:
        """Wait for the next request, where none has come already."""
        HttpToolsProtocol.on_response_complete(self)
        if self.cycle.response_complete:
            self._room.wait(self._connection)

    def look(self) -> None:
        """End what is too slow; called once in `LOOK_SECONDS`."""
        if self._is_refused:
            self._linger()
        elif self._is_held:
            self._is_held = False
            self._brought = 0
            self.flow.resume_reading()
        elif not self._in_head:
            self._look_at_body()
        elif not self._is_answering and (self._is_new or self._framing):
            self._head_seconds += LOOK_SECONDS
            if self._head_seconds > self._bounds.head_seconds_max:
                self._refuse(errors.timed_out("head"), "head")
        if self._unsent or self.transport.get_write_buffer_size():
            self._look_at_answer()

    @property
    def unsent_bytes(self) -> int:
        """What the client has not taken yet of its answers."""
        return self.transport.get_write_buffer_size()

    @property
    def seconds_left(self) -> float:
        """How long the client will need for the rest, as fast as it was at the last look."""
        return self._unsent / max(self._taken, 1) if self._unsent else LOOK_SECONDS

    def crowd_out(self) -> None:
        """Close the connection, so that the answers of all take less memory."""
        self._drop("unsent")

    def _look_at_body(self) -> None:
        got, self._brought = self._brought, 0
        if not self.flow.read_paused and not self.cycle.waiting_for_100_continue:
            self._behind_reading = self._behind(self._behind_reading, got)
            if self._behind_reading > self._bounds.slow_seconds_max:
                self._refuse(errors.timed_out("body"), "body")

    def _look_at_answer(self) -> None:
        before, self._unsent = self._unsent, self.transport.get_write_buffer_size()
        # Where there is more than before, the app has written, which it does once most of the rest was taken.
        self._taken = before - self._unsent if self._unsent <= before else self._unsent
        self._behind_writing = self._behind(self._behind_writing, self._taken)
        if self._behind_writing > self._bounds.slow_seconds_max:
            self._drop("answer")

    def _behind(self, seconds: float, moved: int) -> float:
        """By how much a client is behind the least rate, after a look at which so many bytes had moved."""
        return max(0.0, seconds + LOOK_SECONDS - moved / self._bounds.bytes_per_second_min)

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _faulty(self, fault: ApiError) -> Exception:
        """Remember what is wrong with a request; the parser ends at the exception."""
        self._fault = fault
        return ValueError(fault.status)

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no HTTP; the reason may quote them and is not said."""
        del msg
        self._refuse(self._fault or errors.invalid("The request is not valid HTTP."), "invalid")

    def _refuse(self, error: ApiError, reason: str) -> None:
        """Answer a request that is not whole, and close the connection; without such a request only close it."""
        if not self._is_answerable:
            self._drop(reason)
            return
        metrics.CONNECTIONS_CLOSED.labels(reason).inc()
        self._is_refused = True
        if self._is_answering:
            # What the app still says is not sent after this, and what it reads is the end of the connection.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        content = errors.encode(error.body)
        fields = (
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(content)),
            (b"connection", b"close"),
            *middleware.headers(ids.new_request_id(), is_secure=self.scheme == "https"),
            *self._shared.cross_origin.headers(self.headers),
        )
        head = b"".join(b"%b: %b\r\n" % field for field in fields)
        self.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[error.status], head, content))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        # A client that still sends would be told of a reset, and never read the answer.
        self.flow.resume_reading()

    @property
    def _is_answerable(self) -> bool:
        """Whether a request has begun that is not whole, and of whose answer nothing has been sent."""
        if self._in_head:
            return self._framing > 0 and not self._is_answering
        return self._is_answering and not self.cycle.response_started and not self.pipeline

    def _linger(self) -> None:
        """Close a refused connection at the second look after its answer."""
        if self.transport.is_closing():
            return
        if self._has_lingered:
            self.transport.abort()
        self._has_lingered = True

    def _drop(self, reason: str) -> None:
        metrics.CONNECTIONS_CLOSED.labels(reason).inc()
        self.transport.abort()


async def no_room(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request that comes while too many are being answered."""
    metrics.CONNECTIONS_CLOSED.labels("full").inc()
    await error_handlers.answer(errors.busy())(scope, receive, send)
