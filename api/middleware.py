"""Middleware of every request: an id, the headers of every answer, CORS, and an answer to unexpected faults."""

import functools
import logging
import re
import time
from collections.abc import Iterable
from typing import Any, Final

from fastapi.middleware.cors import CORSMiddleware
from fastapi.telemetry import TelemetryConfig
from prometheus_client import Counter, Histogram
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tidemill import metrics
from tidemill.api import error_bodies, error_handlers, errors
from tidemill.configuration.settings import Settings
from tidemill.schemas import ids, traces
from tidemill.telemetry import context, tracing
from tidemill.telemetry.log_dedup import ACCESS

CHANGES: Final = ("DELETE", "POST")
METHODS: Final = ("DELETE", "GET", "HEAD", "POST")
"""Methods that pages of other origins may use."""
EXPOSED_HEADERS: Final = (
    "content-disposition", "content-range", "etag", "request-id", "retry-after", "retry-after-ms",
    "x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests", "x-request-id",
    "x-should-retry",
)  # fmt: skip
"""Headers that such a page may read, beside the ones that browsers always allow."""
GET_HEADERS: Final = (b"range", b"if-range")
"""Headers that mean something for `GET` alone. Source: RFC 9110, 14.2."""
ERROR: Final = 400
SERVER_ERROR: Final = 500
CLIENT_GONE: Final = 499
"""The status, in metrics, of a request whose client disconnected before the answer."""
Fields = tuple[tuple[bytes, bytes], ...]
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9_-]{1,64}\Z")
"""The audit trail has the same bound (`schemas/bounds.py`, Id)."""
TRACED: Final[TelemetryConfig] = {
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
    "exclude": lambda scope: scope.get("method") not in CHANGES,
}
"""Options of spans, for requests that change something; clients poll with others, whose queries may have text."""

_ALWAYS: Final = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))
_TRANSPORT: Final = (b"strict-transport-security", b"max-age=31536000")

_log = logging.getLogger(__name__)
_access_log = logging.getLogger(ACCESS)


def stack(settings: Settings) -> list[Middleware]:
    """The middleware of an app, the outermost first: answers to faults pass through CORS too."""
    cors = [Middleware(CORSMiddleware, **_cors_options(settings))] if settings.cors_origins else []
    requests = Middleware(RequestMiddleware, has_aliases=settings.path_aliases, has_access_log=settings.log.access)
    return [requests, *cors, Middleware(FaultMiddleware)]


def _cors_options(settings: Settings) -> dict[str, Any]:
    return {
        "allow_origins": settings.cors_origins,
        "allow_methods": METHODS,
        "allow_headers": ["*"],
        "expose_headers": EXPOSED_HEADERS,
    }


def wrapped(app: ASGIApp, settings: Settings) -> ASGIApp:
    """Wrap an app that answers in place of the API in the same middleware."""
    for each in reversed(stack(settings)):
        app = each.cls(app, *each.args, **each.kwargs)
    return app


class RequestMiddleware:
    """Gives each request an id, logs it, and maps `HEAD` and the paths of Azure's clients."""

    def __init__(self, app: ASGIApp, *, has_aliases: bool = False, has_access_log: bool = False) -> None:
        """Wrap an app.

        `has_aliases` maps the paths of Azure's clients to OpenAI's. Without `has_access_log` only requests that
        fail are logged.
        """
        self._app = app
        self._has_aliases = has_aliases
        self._has_access_log = has_access_log
        self._in_flight = 0
        metrics.REQUESTS_IN_FLIGHT.sample(lambda: {(): self._in_flight})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the app; its own headers stay."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        found = request_id(scope["headers"])
        scope.setdefault("state", {})["request_id"] = found
        routed = self._routed(scope)
        sender = _Sender(routed, send, is_head=scope["method"] == "HEAD")
        self._in_flight += 1
        with context.bound(request_id=found), tracing.continued(_traceparent(scope)):
            try:
                await self._app(routed, receive, sender.send)
            except _BodyNotWanted:
                pass
            except ClientDisconnect:
                _log.info("the client disconnected")
            finally:
                self._in_flight -= 1
                sender.count()
                sender.log(is_wanted=self._has_access_log)

    def _routed(self, scope: Scope) -> Scope:
        """The scope that routes see: `HEAD` becomes a `GET` of the whole, an alias its path."""
        path = error_handlers.ALIAS.sub("/v1", scope["path"], 1) if self._has_aliases else scope["path"]
        if scope["method"] != "HEAD":
            return {**scope, "path": path}
        scope["state"]["is_head"] = True
        fields = [field for field in scope["headers"] if field[0] not in GET_HEADERS]
        return {**scope, "method": "GET", "path": path, "headers": fields}


class FaultMiddleware:
    """Answers unexpected exceptions with a 500, and logs their stacks."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the app. If it fails after the answer has begun, the server closes the connection."""
        has_begun = False

        async def sending(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except (_BodyNotWanted, ClientDisconnect):
            raise
        except Exception as error:  # noqa: BLE001  the last resort of every request
            _log.error("a request failed unexpectedly", exc_info=error)
            if not has_begun:
                await error_handlers.answer(errors.internal(), scope)(scope, receive, send)


class _BodyNotWanted(Exception):
    """The headers of an answer to `HEAD` are sent, so the app can stop."""


class _Sender:
    """Sends one answer with the headers of every answer; logs errors."""

    def __init__(self, scope: Scope, send: Send, *, is_head: bool) -> None:
        self._scope = scope
        self._is_head = is_head
        self._send = send
        self._began_at = time.monotonic()
        self._status = CLIENT_GONE
        self._seconds = 0.0
        self._bytes = 0

    async def send(self, message: Message) -> None:
        """Send a part of the answer; for `HEAD`, stop the app before it makes the body."""
        if message["type"] == "http.response.start":
            message["headers"] = self._headers(message.get("headers", ()))
            self._status, self._seconds = message["status"], time.monotonic() - self._began_at
        elif self._is_head:
            await self._send({"type": "http.response.body", "body": b""})
            raise _BodyNotWanted
        else:
            self._bytes += len(message.get("body", b""))
        await self._send(message)

    def count(self) -> None:
        """Count the request; paths without a route, and unknown methods, share a label."""
        route = getattr(self._scope.get("route"), "path", metrics.OTHER)
        method = self._scope["method"] if self._scope["method"] in METHODS else metrics.OTHER
        is_answered = self._status != CLIENT_GONE
        status = f"{self._status // 100}xx" if is_answered else str(CLIENT_GONE)
        counter, duration = _counters(method, route, status)
        counter.inc()
        if is_answered:
            duration.observe(self._seconds)

    def log(self, *, is_wanted: bool) -> None:
        """Log the request if it failed, or all are wanted; the line quotes nothing of the user."""
        has_failed = self._status >= ERROR
        if not (is_wanted or has_failed):
            return
        state = self._scope["state"]
        route = getattr(self._scope.get("route"), "path", "no route")
        method = self._scope["method"] if self._scope["method"] in METHODS else metrics.OTHER
        milliseconds = round(1000 * (time.monotonic() - self._began_at), 1)
        code = f" {state['code']}" if state.get("code") else ""
        (_access_log if is_wanted else _log).log(
            logging.WARNING if self._status >= SERVER_ERROR else logging.INFO,
            # A flood of one status leaves the lines of others.
            f"{self._status}{code} for %s %s",
            method, route,
            extra={
                "method": method, "route": route, "status": self._status, "code": state.get("code"),
                "duration_ms": milliseconds, "bytes": self._bytes, "project": state.get("project"),
                "key_id": state.get("key_id"), "batch_id": _batch_id(self._scope),
            },
        )  # fmt: skip

    def _headers(self, own: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        state = self._scope["state"]
        names = [name for name, _ in own]
        shared = headers(
            state["request_id"],
            is_secure=self._scope["scheme"] == "https",
            anthropic=error_bodies.is_anthropic_scope(self._scope),
        )
        if added := state.get("headers"):
            shared += tuple((name.encode(), value.encode()) for name, value in added.items())
        if added or b"cache-control" in names:
            shared = tuple(field for field in shared if field[0] not in names)
        return [*own, *shared]


@functools.lru_cache(maxsize=1024)
def _counters(method: str, route: str, status: str) -> tuple[Counter, Histogram]:
    return metrics.REQUESTS.labels(method, route, status), metrics.REQUEST_DURATION.labels(method, route)


def request_id(given: Iterable[tuple[bytes, bytes]]) -> str:
    """The caller's id for a request with these headers if it is valid, else a new one."""
    for name, value in given:
        if name == b"x-request-id" and _REQUEST_ID.match(value):
            return str(value, "ascii")
    return ids.new_request_id()


def _traceparent(scope: Scope) -> str | None:
    """The trace of the caller, if the request names one."""
    return traces.parsed(next((value for name, value in scope["headers"] if name == b"traceparent"), None))


def _batch_id(scope: Scope) -> str | None:
    """The batch that the path of a request names."""
    found = str(scope.get("path_params", {}).get("batch_id", ""))
    return found if ids.is_batch_id(found) else None


def headers(named_id: str, *, is_secure: bool, anthropic: bool) -> Fields:
    """The headers of every answer: they forbid caching and guessing the content type."""
    named: Fields = ((b"x-request-id", named_id.encode()), *_ALWAYS)
    if anthropic:
        # The header that Anthropic's SDKs read.
        named = ((b"request-id", named_id.encode()), *named)
    return (*named, _TRANSPORT) if is_secure else named


class CrossOrigin:
    """The CORS headers of answers without an app, like those to malformed requests."""

    def __init__(self, settings: Settings) -> None:
        self._cors = CORSMiddleware(_no_app, **_cors_options(settings)) if settings.cors_origins else None

    def headers(self, request: Iterable[tuple[bytes, bytes]]) -> Fields:
        """The CORS headers for the answer to a request with these headers."""
        origin = next((value.decode("latin-1") for name, value in request if name == b"origin"), None)
        if self._cors is None or origin is None:
            return ()
        found = MutableHeaders(self._cors.simple_headers)
        if not self._cors.allow_all_origins and self._cors.is_allowed_origin(origin):
            self._cors.allow_explicit_origin(found, origin)
        return tuple(found.raw)


async def _no_app(scope: Scope, receive: Receive, send: Send) -> None:
    """Satisfy `CORSMiddleware`, which takes an app: only its headers are used here."""
    raise NotImplementedError
