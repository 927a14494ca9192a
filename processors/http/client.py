"""The HTTP client: keeps connections to model servers, each for one call at a time."""

import asyncio
import json
import logging
import socket
import ssl
from collections import deque
from collections.abc import Callable, Container, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from msgspec import structs

from tidemill import __version__
from tidemill.configuration.security import load_certificate
from tidemill.processors.failures import Answer, FailureKind
from tidemill.processors.http import tunnel
from tidemill.processors.http.connection import NOTHING, Connection, OnEnd
from tidemill.processors.memory_budget import LargeReplies
from tidemill.schemas.bounds import REPLY_BYTES_MAX

CONNECT_SECONDS_MAX: Final = 10.0
IDLE_SECONDS_MAX: Final = 4.0
"""Common servers close an idle connection after 5 s: no call should use one that is closing."""
SECRET_CHARS_MIN: Final = 8
"""A shorter key is not redacted in replies."""
_KEYS: Final = frozenset({"authorization", "x-api-key", "api-key"})
"""Headers that carry the server's key: OpenAI's, Anthropic's and Azure's."""
REDACTED: Final = b"[redacted]"
_SHOWN_HEADERS: Final = ("request_id", "media_type", "location")
"""Fields of an answer with headers that its line may quote."""
_OWN: Final = {"user-agent": f"tidemill/{__version__}", "accept-encoding": "identity"}
"""Headers of every request: some gateways reject one without a user agent, and some compress by default."""
KEEPALIVE: Final = (
    ("TCP_KEEPIDLE", 60),
    ("TCP_KEEPALIVE", 60),
    ("TCP_KEEPINTVL", 15),
    ("TCP_KEEPCNT", 6),
)
"""Seconds of silence before the system probes a connection, seconds between probes, and unanswered probes that
end it. No byte passes while a server computes: without probes a call waits until its timeout for a server that
vanished, or for a connection that a firewall forgot. Platforms lack some options; macOS has another name for the
first."""
ROUTES_MAX: Final = 1_000
"""Request heads kept: one for each backend and endpoint."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Route:
    """A server, and the head that all calls of one address share."""

    peer: "Peer"
    idle: "_Idle"
    head: bytes
    secrets: tuple[bytes, ...]
    """The server's key, in each form in which a reply may repeat it."""


Origin = tuple[str, int]
"""Host and port."""


class Peer(NamedTuple):
    """The target of connections."""

    host: str
    """Name or address."""
    port: int
    tls_name: str | None
    """The name that the certificate must have; None without TLS."""


class Trust(NamedTuple):
    """The TLS settings of an origin, and the proxy on the way."""

    authorities: tuple[Path, ...] = ()
    """PEM files of the certificate authorities; the system's if there is none."""
    client: tuple[Path, Path | None] | None = None
    """Our certificate, and its key if that is in another file."""
    proxy: Origin | None = None
    """An HTTP proxy: it forwards calls without TLS, and tunnels the others."""


def origin(url: str) -> Origin:
    """The origin of a URL."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


class _Idle(deque[Connection]):
    """The connections to one peer that are idle."""

    is_kept = True
    """Whether connections are kept after their calls."""

    def close(self) -> None:
        """Close them, and the busy ones after their calls."""
        self.is_kept = False
        while self:
            self.pop().close()


class HttpUpstream:
    """Makes calls over HTTP/1.1 with keep-alive; opens as many connections as there are calls in flight."""

    def __init__(
        self,
        trusts: Mapping[Origin, Trust] | None = None,
        *,
        reply_bytes_max: int = REPLY_BYTES_MAX,
    ) -> None:
        """Connect nothing before the first call; origins without a trust use the system's authorities."""
        self._reply_bytes_max = reply_bytes_max
        self._trusts = trusts or {}
        self._replies = LargeReplies()
        self._routes: dict[tuple[Sequence[str], ...], _Route] = {}
        self._idle: dict[Peer, _Idle] = {}
        self._kept: Container[Origin] | None = None
        """Places whose idle connections are kept; None for all."""
        self._tls: dict[Trust, tuple[list[tuple[int, int]], ssl.SSLContext]] = {}
        """Contexts with the times and sizes of their files, which may be renewed."""

    def post(
        self, url: str, headers: dict[str, str], body: bytes | memoryview, seconds: float, more: bytes = b""
    ) -> Coroutine[Any, Any, Answer | FailureKind]:
        """Make a call within `seconds`; nothing that the server does raises.

        `more` are header lines of this call alone, each with its end.

        Raises:
            ValueError: The address or a header has invalid characters.
        """
        route = self._route("POST", url, headers)
        request, rest = _request(route, body, more)
        return self._send(route, request, seconds, self._reply_bytes_max, rest)

    def begin(
        self,
        url: str,
        headers: dict[str, str],
        body: bytes | memoryview,
        seconds: float,
        more: bytes,
        *,
        on_end: OnEnd,
    ) -> Callable[[], None] | None:
        """Make a call like `post` without a task, if a connection is open; returns what aborts the call.

        `on_end` gets what `post` returns, and never before this returns.

        Returns:
            None if no connection is open; then nothing was sent.

        Raises:
            ValueError: The address or a header has invalid characters.
        """
        route = self._route("POST", url, headers)
        if (connection := self._reused(route.idle, monotonic())) is None:
            return None
        request, rest = _request(route, body, more)

        def end(outcome: Answer | FailureKind) -> None:
            self._keep(connection, route.idle)
            on_end(outcome if isinstance(outcome, FailureKind) else _redacted(outcome, route.secrets))

        connection.begin(request, seconds, self._reply_bytes_max, end, rest)
        return connection.abort

    async def get(self, url: str, headers: dict[str, str], seconds: float, bytes_max: int) -> Answer | FailureKind:
        """Fetch a page of at most `bytes_max`; otherwise like `post`."""
        route = self._route("GET", url, headers)
        page = await self._send(route, route.head + b"\r\n", seconds, bytes_max)
        if isinstance(page, Answer) and page.share is not None:
            page.share.close()
        return page

    def follow(self, trusts: Mapping[Origin, Trust], places: Container[Origin]) -> None:
        """Follow changed settings: connections to other places close, as soon as they have no call.

        Args:
            trusts: See `__init__`.
            places: Hosts, or addresses, and ports of all servers.
        """
        for peer in list(self._idle):
            host, port, name = peer
            is_trusted = name is None or trusts.get((name, port)) == self._trusts.get((name, port))
            if (host, port) not in places or not is_trusted:
                self._idle[peer].close()
                del self._idle[peer]
        self._trusts = trusts
        self._kept = places
        self._routes.clear()
        trusted = set(trusts.values())
        self._tls = {trust: context for trust, context in self._tls.items() if trust in trusted}

    async def _send(
        self, route: _Route, request: bytes, seconds: float, bytes_max: int, body: memoryview = NOTHING
    ) -> Answer | FailureKind:
        start = monotonic()
        idle = route.idle
        if (connection := self._reused(idle, start)) is None:
            opened = await self._connect(route.peer, min(seconds, CONNECT_SECONDS_MAX))
            if isinstance(opened, FailureKind):
                return opened
            connection = opened
            seconds -= monotonic() - start
        outcome = await connection.call(request, seconds, bytes_max, body)
        self._keep(connection, idle)
        return outcome if isinstance(outcome, FailureKind) else _redacted(outcome, route.secrets)

    async def close(self) -> None:
        """Close all connections."""
        for idle in self._idle.values():
            idle.close()
        self._idle.clear()

    @staticmethod
    def _keep(connection: Connection, idle: _Idle) -> None:
        """Keep a connection for the next call, if it can be used again."""
        if connection.is_usable and idle.is_kept:
            connection.idle_since = monotonic()
            idle.append(connection)
        else:
            connection.close()

    @staticmethod
    def _reused(idle: deque[Connection], now: float) -> Connection | None:
        """The idle connection that was used last; closes those that were idle for too long."""
        while idle and (not idle[0].is_usable or idle[0].idle_since < now - IDLE_SECONDS_MAX):
            idle.popleft().close()
        while idle:
            if (connection := idle.pop()).is_usable:
                return connection
        return None

    async def _connect(self, peer: Peer, seconds: float) -> Connection | FailureKind:
        connection = Connection(self._replies)
        trust = self._trusts.get((peer.tls_name or "", peer.port), Trust())
        try:
            async with asyncio.timeout(seconds):
                if peer.tls_name is not None and trust.proxy is not None:
                    server = peer.host, peer.port
                    await tunnel.connect(connection, server, trust.proxy, self._context(trust), peer.tls_name)
                else:
                    await asyncio.get_running_loop().create_connection(
                        lambda: connection,
                        peer.host,
                        peer.port,
                        ssl=None if peer.tls_name is None else self._context(trust),
                        server_hostname=peer.tls_name,
                    )
        except (OSError, UnicodeError):
            # OSError: also a timeout, a failed handshake, a missing file. UnicodeError: a host like `host..local`.
            return FailureKind.CONNECT
        _probe(connection.socket)
        return connection

    def _context(self, trust: Trust) -> ssl.SSLContext:
        files = trust.authorities
        stamps = [_stamp(file) for file in (*files, *(trust.client or ())) if file is not None]
        known, context = self._tls.get(trust, (None, None))
        if context is None or known != stamps:
            context = _loaded(trust)
            self._tls[trust] = stamps, context
        return context

    def _route(self, method: str, url: str, headers: dict[str, str]) -> _Route:
        # Servers with one address may differ in keys, names, or any header by which a gateway tells them apart.
        key = (method, url, *headers.items())
        if (route := self._routes.get(key)) is None:
            if len(self._routes) >= ROUTES_MAX:
                self._routes.clear()
            route = self._routes[key] = self._new_route(method, url, headers)
        return route

    def _new_route(self, method: str, url: str, headers: dict[str, str]) -> _Route:
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        fields = {"host": parts.netloc.rpartition("@")[2], **_OWN, **headers}
        # The URL of a discovered server has an address; its certificate has a name.
        name = urlsplit(f"//{fields['host']}").hostname or ""
        peer = Peer(*origin(url), name if parts.scheme == "https" else None)
        proxy = self._trusts.get((name, peer.port), Trust()).proxy
        if proxy is not None and peer.tls_name is None:
            target, peer = f"http://{fields['host']}{target}", Peer(*proxy, None)
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        if any(not line.isprintable() for line in lines):
            raise ValueError("an address or a header has invalid characters")
        head = "".join(f"{line}\r\n" for line in lines).encode("latin-1")
        if (idle := self._idle.get(peer)) is None:
            idle = _Idle()
            if self._kept is None or (peer.host, peer.port) in self._kept:
                self._idle[peer] = idle
            else:
                idle.is_kept = False
        keys = [form for name, value in headers.items() if name.lower() in _KEYS for form in _secrets(value)]
        return _Route(peer, idle, head, tuple(keys))


def _request(route: _Route, body: bytes | memoryview, more: bytes) -> tuple[bytes, memoryview]:
    """The head with a small body, and a large body."""
    if isinstance(body, memoryview):
        return b"%b%bcontent-length: %d\r\n\r\n" % (route.head, more, len(body)), body
    return b"%b%bcontent-length: %d\r\n\r\n%b" % (route.head, more, len(body), body), NOTHING


def _loaded(trust: Trust) -> ssl.SSLContext:
    """The context of a trust; raises `OSError`, and logs why, if a file cannot be used: the call says nothing."""
    files = trust.authorities
    try:
        context = ssl.create_default_context(cafile=files[0] if files else None)
        for file in files[1:]:
            context.load_verify_locations(file)
        if trust.client is not None:
            load_certificate(context, *trust.client)
    except OSError as error:
        _log.warning("calls fail, since a TLS file of their server cannot be used: %s", error)
        raise
    return context


def _probe(found: Any) -> None:
    """Have the system probe an idle connection."""
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE:
            if (option := getattr(socket, name, None)) is not None:
                found.setsockopt(socket.IPPROTO_TCP, option, value)
    except (AttributeError, OSError):
        # The connection has ended; the call says so itself.
        pass


def _stamp(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_mtime_ns, found.st_size


def _secrets(value: str) -> tuple[bytes, ...]:
    """The key in a header as text and in JSON, with and without escaped slashes.

    Short keys and numbers are not redacted: a reply may contain them by chance.
    """
    key = value.rpartition(" ")[2]
    if len(key) < SECRET_CHARS_MIN or key.isdigit():
        return ()
    forms = dict.fromkeys((key, json.dumps(key)[1:-1], json.dumps(key)[1:-1].replace("/", "\\/")))
    return tuple(form.encode() for form in forms)


def _redacted(answer: Answer, secrets: tuple[bytes, ...]) -> Answer:
    """The answer without our key, which a server may repeat: the line's project can read the answer."""
    for secret in secrets:
        if secret in answer.body:
            answer = structs.replace(answer, body=answer.body.replace(secret, REDACTED))
        for name in _SHOWN_HEADERS:
            if secret.decode() in (getattr(answer, name) or ""):
                answer = structs.replace(answer, **{name: None})
    return answer
