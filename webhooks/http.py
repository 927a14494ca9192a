"""Calls webhooks. Each connection checks its address with `addresses.is_reachable`, after the name is resolved.

The library calls `socket_factory` with the address that it then connects to, for names and for addresses in URLs,
so no second look-up can lead elsewhere. It follows no redirect, uses no proxy and no cookies, and reads little of
a reply. `http://` leads only into networks that the operator allows.
"""

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
from opentelemetry.trace import SpanKind

from tidemill.http.bounded_connector import BoundedConnector
from tidemill.schemas.webhooks.addresses import Network, UrlRefused, checked_url, is_reachable
from tidemill.schemas.webhooks.messages import Delivery
from tidemill.telemetry import tracing

SECONDS_MAX: Final = 15.0
"""How long a call may take, with the connection and the reply."""
REPLY_BYTES_MAX: Final = 16 << 10
"""Bytes of a reply that are read, so that the connection can be used again."""
LINE_BYTES_MAX: Final = 8 << 10
RECEIVED_MAX: Final = (64 << 10) + REPLY_BYTES_MAX
"""Bytes that a call receives at most: also those of informational replies, and the framing of chunks."""
CONNECTIONS_MAX: Final = 512
KEEP_SECONDS: Final = 15.0
OK: Final = range(200, 300)
REFUSED: Final = "refused_address"
SPANS_MAX: Final = 8
"""Attempts of one delivery that have spans."""
AGENT: Final = "Tidemill-Webhooks/1"


class _Refused(OSError):
    """The address of a connection must not be reached."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The end of an attempt."""

    seconds: float
    status: int | None = None
    error: str | None = None
    """Why there was no reply."""

    @property
    def is_good(self) -> bool:
        """Whether the receiver has taken the event."""
        return self.status in OK

    @property
    def label(self) -> str:
        """Its value of the label `result` in metrics."""
        return f"{self.status // 100}xx" if self.status is not None else self.error or "connection"


@contextmanager
def traced(delivery: Delivery) -> Iterator[Callable[[Outcome], Outcome]]:
    """A span of the block, if the batch has a trace; the block passes it the outcome of the call."""
    if delivery.traceparent is None or delivery.attempts >= SPANS_MAX:
        yield lambda outcome: outcome
        return
    attributes: tracing.Attributes = {
        tracing.BATCH_ID: delivery.event.batch_id,
        "tidemill.delivery.id": delivery.id,
        "http.request.method": "POST",
        "http.request.resend_count": delivery.attempts,
    }
    name, parent = f"deliver {delivery.event.type}", tracing.context_of(delivery.traceparent)
    with tracing.span(name, SpanKind.CLIENT, attributes, parent=parent) as made:

        def ended(outcome: Outcome) -> Outcome:
            if outcome.status is not None:
                made.set_attribute("http.response.status_code", outcome.status)
            if not outcome.is_good:
                tracing.failed(made, str(outcome.status or outcome.error or "connection"))
            return outcome

        yield ended


class Client:
    """Calls webhooks; `start` it in the event loop."""

    def __init__(self, allowed: tuple[Network, ...]) -> None:
        """Connect nothing yet; `allowed` are otherwise unreachable networks."""
        self._allowed = allowed
        self._sessions: dict[str, aiohttp.ClientSession] = {}

    async def start(self) -> None:
        """Open the connection pools."""
        self._sessions = {"https": self._session(is_plain=False), "http": self._session(is_plain=True)}

    async def stop(self) -> None:
        """Close all connections."""
        for session in self._sessions.values():
            await session.close()

    async def post(self, url: str, headers: dict[str, str], body: bytes) -> Outcome:
        """Make one call."""
        began = time.monotonic()

        def ended(**found: Any) -> Outcome:
            return Outcome(seconds=time.monotonic() - began, **found)

        try:
            # The operator may have removed an allowed network since the URL was set.
            session = self._sessions[urlsplit(checked_url(url, self._allowed)).scheme]
            async with (
                asyncio.timeout(SECONDS_MAX),
                session.post(url, data=body, headers=headers, allow_redirects=False) as reply,
            ):
                await _drain(reply)
                return ended(status=reply.status)
        except TimeoutError:
            return ended(error="timeout")
        except UrlRefused:
            return ended(error=REFUSED)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return ended(error=REFUSED if _is_refusal(error) else "connection")

    def _session(self, *, is_plain: bool) -> aiohttp.ClientSession:
        def connection(info: Any) -> socket.socket:
            family, kind, protocol, _, address = info
            if not is_reachable(address[0], self._allowed, public=not is_plain):
                raise _Refused(REFUSED)
            return socket.socket(family=family, type=kind, proto=protocol)

        return aiohttp.ClientSession(
            connector=BoundedConnector(
                RECEIVED_MAX, limit=CONNECTIONS_MAX, keepalive_timeout=KEEP_SECONDS, socket_factory=connection
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"user-agent": AGENT, "content-type": "application/json", "accept-encoding": "identity"},
            timeout=aiohttp.ClientTimeout(total=SECONDS_MAX),
            max_line_size=LINE_BYTES_MAX,
            max_field_size=LINE_BYTES_MAX,
            auto_decompress=False,
            trust_env=False,
        )


async def _drain(reply: aiohttp.ClientResponse) -> None:
    """Read a short body, so that the connection can be used again; a longer one closes it."""
    size = 0
    async for chunk in reply.content.iter_any():
        size += len(chunk)
        if size > REPLY_BYTES_MAX:
            reply.close()
            return


def _is_refusal(error: Exception) -> bool:
    # If a name has several addresses, the library quotes the error of each.
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    return isinstance(cause, _Refused) or REFUSED in str(cause)
