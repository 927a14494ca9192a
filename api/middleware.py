"""Middleware of every request: an id, the headers of every answer, CORS, and an answer to unexpected faults."""

import logging
import re
import time
import traceback
from collections.abc import Iterable
from typing import Any, Final

from fastapi.middleware.cors import CORSMiddleware
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tidemill.api import error_bodies, error_handlers, errors
from tidemill.configuration.settings import Settings
from tidemill.schemas import ids

METHODS: Final = ("DELETE", "GET", "HEAD", "POST")
"""Methods that pages of other origins may use."""
EXPOSED_HEADERS: Final = (
    "content-disposition", "content-range", "etag", "request-id", "retry-after", "retry-after-ms",
    "x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests", "x-request-id",
    "x-should-retry",
)  # fmt: skip
"""Headers that such a page may read, beside the ones that browsers always allow."""
ERROR: Final = 400
SERVER_ERROR: Final = 500
Fields = tuple[tuple[bytes, bytes], ...]
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9_-]{1,64}\Z")
"""The audit trail has the same bound (`schemas/bounds.py`, Id)."""
_ALIAS: Final = re.compile(r"\A/openai(?:/v1|/deployments/[^/]+)?(?=/)")
"""Prefixes that Azure's clients use in place of `/v1`."""

_ALWAYS: Final = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))
_TRANSPORT: Final = (b"strict-transport-security", b"max-age=31536000")

_log = logging.getLogger(__name__)
_log.setLevel(logging.INFO)


def stack(settings: Settings) -> list[Middleware]:
    """The middleware of an app, the outermost first: answers to faults pass through CORS too."""
    cors = [Middleware(CORSMiddleware, **_cors_options(settings))] if settings.cors_origins else []
    return [Middleware(RequestMiddleware, has_aliases=settings.path_aliases), *cors, Middleware(FaultMiddleware)]


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
    """Gives each request an id, logs failed ones, and maps `HEAD` and the paths of Azure's clients."""

    def __init__(self, app: ASGIApp, *, has_aliases: bool = False) -> None:
        """Wrap an app; `has_aliases` maps the paths of Azure's clients to OpenAI's."""
        self._app = app
        self._has_aliases = has_aliases

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the app; its own headers stay."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})["request_id"] = request_id = _request_id(scope)
        routed = self._routed(scope)
        sender = _Sender(routed, send, is_head=scope["method"] == "HEAD")
        try:
            await self._app(routed, receive, sender.send)
        except _BodyNotWanted:
            pass
        except ClientDisconnect:
            _log.info("%s: the client disconnected", request_id)

    def _routed(self, scope: Scope) -> Scope:
        """The scope that routes see: `HEAD` becomes `GET`, an alias its path."""
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        path = _ALIAS.sub("/v1", scope["path"], 1) if self._has_aliases else scope["path"]
        return {**scope, "method": method, "path": path}


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
            # The text of an exception may quote the request, so the log has only the stack.
            places = "".join(traceback.format_tb(error.__traceback__))
            _log.error("%s: %s\n%s", scope["state"]["request_id"], type(error).__name__, places)
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

    async def send(self, message: Message) -> None:
        """Send a part of the answer; for `HEAD`, stop the app before it makes the body."""
        if message["type"] == "http.response.start":
            message["headers"] = self._headers(message.get("headers", ()))
            if message["status"] >= ERROR:
                _log_error(self._scope, message["status"], time.monotonic() - self._began_at)
        elif self._is_head:
            await self._send({"type": "http.response.body", "body": b""})
            raise _BodyNotWanted
        await self._send(message)

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


def _request_id(scope: Scope) -> str:
    """The caller's id for the request if it is valid, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.match(value):
            return str(value, "ascii")
    return ids.new_request_id()


def _log_error(scope: Scope, status: int, seconds: float) -> None:
    """Log a failed request; the line quotes nothing of the user."""
    state = scope["state"]
    path = getattr(scope.get("route"), "path", "no route")
    _log.log(
        logging.WARNING if status >= SERVER_ERROR else logging.INFO,
        f"request %s: {status} %s for %s %s in %.0f ms, project %s, key %s",
        state["request_id"], state.get("code") or "-", scope["method"], path, 1000 * seconds,
        state.get("project", "-"), state.get("key_id", "-"),
    )  # fmt: skip


def headers(request_id: str, *, is_secure: bool, anthropic: bool) -> Fields:
    """The headers of every answer: they forbid caching and guessing the content type."""
    named: Fields = ((b"x-request-id", request_id.encode()), *_ALWAYS)
    if anthropic:
        # The header that Anthropic's SDKs read.
        named = ((b"request-id", request_id.encode()), *named)
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
