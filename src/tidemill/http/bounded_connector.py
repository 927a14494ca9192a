"""Bounds the bytes that a connection of aiohttp receives for one request, whatever they are.

The library bounds a line and the number of headers, and its readers bound a body. But it reads informational
replies (`103 Early Hints`) without a bound, and lets no other task run while more of them have arrived: a server
that sends them without an end would keep the event loop to itself. The framing of chunks may be many times as long
as the body.
"""

from functools import partial
from typing import Any, cast

from aiohttp import ClientConnectionError, TCPConnector
from aiohttp.client_proto import ResponseHandler
from aiohttp.streams import EMPTY_PAYLOAD


class BoundedConnector(TCPConnector):
    """A connector of which a connection receives `received_max` bytes for a request, and is closed at more."""

    def __init__(self, received_max: int, **options: Any) -> None:
        """Connect nothing yet; `options` are those of the base class."""
        super().__init__(**options)
        # The library has no public hook; `tests/unit/http/test_bounded_connector.py` fails if this one goes.
        self._factory = cast("partial[ResponseHandler]", partial(_BoundedHandler, received_max, loop=self._loop))


class _BoundedHandler(ResponseHandler):
    """The protocol of a connection, with a bound.

    Above it the reply ends: with `ClientConnectionError` before its head, and as a shorter body after it.
    """

    def __init__(self, received_max: int, **options: Any) -> None:
        super().__init__(**options)
        self._received_max = received_max
        self._left = received_max

    def set_response_params(self, **params: Any) -> None:
        """Begin a request, which has all bytes again."""
        self._left = self._received_max
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        """Take bytes as far as the bound allows."""
        if (is_above := len(data) > self._left) and self._left < 0:
            return
        taken = data[: self._left] if is_above else data
        self._left -= len(data)
        super().data_received(taken)
        if is_above:
            self._end()

    def _end(self) -> None:
        payload = self._payload
        self.force_close()
        self.abort()
        if payload is None or payload is EMPTY_PAYLOAD:
            self.set_exception(ClientConnectionError("a reply of too many bytes"))
        else:
            payload.feed_eof()
