"""The door to the model servers: one request, one answer or the reason why there is none."""

import asyncio
import json
import ssl
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

from tidemill import __version__
from tidemill.processors.failures import Answer, FailureKind
from tidemill.processors.http.connection import Connection
from tidemill.processors.memory_budget import LargeReplies
from tidemill.schemas.bounds import REPLY_BYTES_MAX

CONNECT_SECONDS_MAX: Final = 10.0
IDLE_SECONDS_MAX: Final = 4.0
"""Shorter than the 5 s after which common servers close an idle connection, so that no call meets one closing."""
SECRET_CHARS_MIN: Final = 8
"""A shorter key is not looked for in replies."""
REDACTED: Final = b"[redacted]"
_NOTHING: Final = memoryview(b"")
_OWN: Final = {"user-agent": f"tidemill/{__version__}", "accept-encoding": "identity"}
"""Of every request: some gateways refuse one without a name, and some compress what nobody said how to take."""
ROUTES_MAX: Final = 1_000
"""Addresses whose request heads are remembered; there are as many as backends and endpoints."""


class Upstream(Protocol):
    """What the stage needs of an HTTP client."""

    async def post(
        self, url: str, headers: dict[str, str], body: bytes | memoryview, seconds: float, request_id: str = ""
    ) -> Answer | FailureKind:
        """Make a call; it ends within `seconds`, and never raises for what the other side does.

        `request_id` is the server's name for it (`call.sent_id`); without one none is sent.
        """
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


@dataclass(frozen=True, slots=True)
class _Route:
    """Where a call goes, and its head but for what says how long its body is."""

    host: str
    port: int
    is_tls: bool
    head: bytes
    secrets: tuple[bytes, ...]
    """The key that goes with it, in each way that a reply may repeat it."""


Origin = tuple[str, int]
"""Host and port."""


def origin(url: str) -> Origin:
    """Where an address leads to."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


class HttpUpstream:
    """Calls over HTTP/1.1, on connections that are kept for the next call. It opens as many as there are calls."""

    def __init__(
        self,
        authorities: Mapping[Origin, Sequence[Path]] | None = None,
        *,
        reply_bytes_max: int = REPLY_BYTES_MAX,
    ) -> None:
        """Nothing is connected before the first call.

        Args:
            authorities: PEM files of those to trust at an origin; elsewhere the system's are.
            reply_bytes_max: Of the body of what answers a post.
        """
        self._reply_bytes_max = reply_bytes_max
        self._authorities = authorities or {}
        self._replies = LargeReplies()
        self._routes: dict[tuple[str, str, str], _Route] = {}
        self._idle: defaultdict[tuple[str, int, bool], deque[Connection]] = defaultdict(deque)
        self._tls: dict[tuple[Path, ...], ssl.SSLContext] = {}

    async def post(
        self, url: str, headers: dict[str, str], body: bytes | memoryview, seconds: float, request_id: str = ""
    ) -> Answer | FailureKind:
        """See `Upstream`.

        Raises:
            ValueError: The address or a header cannot be written.
        """
        route = self._route("POST", url, headers)
        named = b"x-request-id: %b\r\n" % request_id.encode() if request_id else b""
        head = b"%b%bcontent-length: %d\r\n\r\n" % (route.head, named, len(body))
        if isinstance(body, memoryview):
            return await self._send(route, head, seconds, self._reply_bytes_max, body)
        return await self._send(route, head + body, seconds, self._reply_bytes_max)

    async def get(self, url: str, headers: dict[str, str], seconds: float, bytes_max: int) -> Answer | FailureKind:
        """Read a page; like `post`.

        Args:
            url: Its address.
            headers: To go with the request.
            seconds: How long that may take.
            bytes_max: A larger page is none.

        Raises:
            ValueError: The address or a header cannot be written.
        """
        route = self._route("GET", url, headers)
        page = await self._send(route, route.head + b"\r\n", seconds, bytes_max)
        if isinstance(page, Answer) and page.share is not None:
            page.share.close()
        return page

    async def _send(
        self, route: _Route, request: bytes, seconds: float, bytes_max: int, body: memoryview = _NOTHING
    ) -> Answer | FailureKind:
        loop = asyncio.get_running_loop()
        start = loop.time()
        idle = self._idle[route.host, route.port, route.is_tls]
        if (connection := self._kept(idle, start)) is None:
            opened = await self._connect(route, min(seconds, CONNECT_SECONDS_MAX))
            if isinstance(opened, FailureKind):
                return opened
            connection = opened
            seconds -= loop.time() - start
        outcome = await connection.call(request, seconds, bytes_max, body)
        if connection.is_usable:
            connection.idle_since = loop.time()
            idle.append(connection)
        else:
            connection.close()
        return outcome if isinstance(outcome, FailureKind) else _redacted(outcome, route.secrets)

    async def close(self) -> None:
        """See `Upstream`."""
        for idle in self._idle.values():
            for connection in idle:
                connection.close()
        self._idle.clear()

    @staticmethod
    def _kept(idle: deque[Connection], now: float) -> Connection | None:
        """The connection that was used last, if it is fresh; the oldest are given up meanwhile."""
        while idle and (not idle[0].is_usable or idle[0].idle_since < now - IDLE_SECONDS_MAX):
            idle.popleft().close()
        while idle:
            if (connection := idle.pop()).is_usable:
                return connection
        return None

    async def _connect(self, route: _Route, seconds: float) -> Connection | FailureKind:
        try:
            async with asyncio.timeout(seconds):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: Connection(self._replies),
                    route.host,
                    route.port,
                    ssl=self._trust(route) if route.is_tls else None,
                )
        except (OSError, UnicodeError):
            # A time-out, an unknown name, a failed handshake and a file that is gone are all of the one kind, a
            # name that cannot be one (`host..local`) is of the other.
            return FailureKind.CONNECT
        return connection

    def _trust(self, route: _Route) -> ssl.SSLContext:
        files = tuple(self._authorities.get((route.host, route.port), ()))
        if (context := self._tls.get(files)) is None:
            context = ssl.create_default_context(cafile=files[0] if files else None)
            for file in files[1:]:
                context.load_verify_locations(file)
            self._tls[files] = context
        return context

    def _route(self, method: str, url: str, headers: dict[str, str]) -> _Route:
        # Two backends at one address may differ by their keys.
        key = (method, url, headers.get("authorization", ""))
        if (route := self._routes.get(key)) is None:
            if len(self._routes) >= ROUTES_MAX:
                self._routes.clear()
            route = self._routes[key] = _made(method, url, headers)
        return route


def _made(method: str, url: str, headers: dict[str, str]) -> _Route:
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    fields = {"host": parts.netloc.rpartition("@")[2], **_OWN, **headers}
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    if any(not line.isprintable() for line in lines):
        raise ValueError("an address or a header holds what a request may not hold")
    head = "".join(f"{line}\r\n" for line in lines).encode("latin-1")
    return _Route(*origin(url), parts.scheme == "https", head, _secrets(headers.get("authorization", "")))


def _secrets(authorization: str) -> tuple[bytes, ...]:
    """A key as it is, and as JSON writes it with slashes escaped.

    A key that could be a number, or a word that stands in any text, is left alone: to look for it would damage
    replies, and it protects nothing.
    """
    key = authorization.rpartition(" ")[2]
    if len(key) < SECRET_CHARS_MIN or key.isdigit():
        return ()
    forms = dict.fromkeys((key, json.dumps(key)[1:-1], json.dumps(key)[1:-1].replace("/", "\\/")))
    return tuple(form.encode() for form in forms)


def _redacted(answer: Answer, secrets: tuple[bytes, ...]) -> Answer:
    """The answer without our key: what a server repeats goes into the files of whoever sent the line."""
    for secret in secrets:
        if secret in answer.body:
            answer = replace(answer, body=answer.body.replace(secret, REDACTED))
        if answer.request_id is not None and secret.decode() in answer.request_id:
            answer = replace(answer, request_id=None)
    return answer
