"""One request and its answer: every answer has a request id, and every fault OpenAI's error body."""

import logging
import re
import time
import traceback
from collections.abc import Iterable
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tidemill.api import errors
from tidemill.api.view.sqlite import StateUnavailable
from tidemill.kafka.connection import LogUnavailable
from tidemill.schemas import ids
from tidemill.schemas.ports import RecordTooLarge
from tidemill.schemas.resources.error import ApiError

NO_CONTENT = 204
NOT_FOUND = 404
METHOD_NOT_ALLOWED = 405
METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
ERROR = 400
SERVER_ERROR = 500
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9_-]{1,64}\Z")
"""What the audit trail takes as well (`schemas/bounds.py`, Id)."""
_ALIAS: Final = re.compile(r"\A/openai(?:/v1|/deployments/[^/]+)?(?=/)")
"""What stands in place of `/v1` in the paths of Azure's clients."""

_ALWAYS = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))
_TRANSPORT = (b"strict-transport-security", b"max-age=31536000")

_log = logging.getLogger(__name__)


class Exchange:
    """Names each request, logs what was refused, and answers what met a fault of the server's own."""

    def __init__(self, app: ASGIApp, *, has_aliases: bool = False) -> None:
        """Wrap an app.

        Args:
            app: What answers.
            has_aliases: Whether the paths of Azure's clients lead to those of OpenAI's.
        """
        self._app = app
        self._has_aliases = has_aliases

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the app answer; headers that it sets itself stay."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})["request_id"] = request_id = _request_id(scope)
        routed = self._routed(scope)
        answering = _Answering(routed, send, is_head=scope["method"] == "HEAD")
        try:
            await self._app(routed, receive, answering.send)
        except _Told:
            pass
        except ClientDisconnect:
            _log.info("%s: the client went away", request_id)
        except Exception as error:  # noqa: BLE001  the last resort of every request
            # The text of an exception may quote what a user sent, so only the places are logged.
            places = "".join(traceback.format_tb(error.__traceback__))
            _log.error("%s: %s\n%s", request_id, type(error).__name__, places)
            # An answer that has begun can only be cut short: the server closes the connection.
            if not answering.has_begun:
                await answer(errors.internal())(scope, receive, answering.send)

    def _routed(self, scope: Scope) -> Scope:
        """The request as the routes know it: `HEAD` is a `GET` whose body is not sent."""
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        path = _ALIAS.sub("/v1", scope["path"], 1) if self._has_aliases else scope["path"]
        return {**scope, "method": method, "path": path}


class _Told(Exception):
    """The head of an answer is sent, and its body is not wanted."""


class _Answering:
    """Sends one answer, with the headers that every answer has."""

    def __init__(self, scope: Scope, send: Send, *, is_head: bool) -> None:
        self._scope = scope
        self._is_head = is_head
        self._send = send
        self._asked_at = time.monotonic()
        self.has_begun = False

    async def send(self, message: Message) -> None:
        """Send a part of it; of the body of an answer to `HEAD` nothing is sent, nor made."""
        if message["type"] == "http.response.start":
            self.has_begun = True
            message["headers"] = self._headers(message.get("headers", ()))
            if message["status"] >= ERROR:
                _note(self._scope, message["status"], time.monotonic() - self._asked_at)
        elif self._is_head:
            await self._send({"type": "http.response.body", "body": b""})
            raise _Told
        await self._send(message)

    def _headers(self, own: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        state = self._scope["state"]
        names = [name for name, _ in own]
        ours = headers(state["request_id"], is_secure=self._scope["scheme"] == "https")
        if told := state.get("headers"):
            ours += tuple((name.encode(), value.encode()) for name, value in told.items())
        if told or b"cache-control" in names:
            ours = tuple(field for field in ours if field[0] not in names)
        return [*own, *ours]


def _request_id(scope: Scope) -> str:
    """The caller's name for the request, if it is a sane one, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.match(value):
            return str(value, "ascii")
    return ids.new_request_id()


def _note(scope: Scope, status: int, seconds: float) -> None:
    """Log a request that is answered with an error, and nothing that the user wrote; `hush` thins the lines."""
    state = scope["state"]
    path = getattr(scope.get("route"), "path", "no route")
    _log.log(
        logging.WARNING if status >= SERVER_ERROR else logging.INFO,
        f"request %s: {status} %s for %s %s in %.0f ms, project %s, key %s",
        state["request_id"], state.get("code") or "-", scope["method"], path, 1000 * seconds,
        state.get("project", "-"), state.get("key_id", "-"),
    )  # fmt: skip


def headers(request_id: str, *, is_secure: bool) -> tuple[tuple[bytes, bytes], ...]:
    """The headers of every answer: no cache keeps it, and no browser guesses another type."""
    named = ((b"x-request-id", request_id.encode()), *_ALWAYS)
    return (*named, _TRANSPORT) if is_secure else named


def answer(error: ApiError) -> Response:
    """An error as an answer."""
    return Response(
        errors.encode(error.body), status_code=error.status, headers=error.headers, media_type="application/json"
    )


def install(app: FastAPI, *, has_aliases: bool = False) -> None:
    """Give an app these answers in place of its framework's."""
    _log.setLevel(logging.INFO)
    app.add_middleware(Exchange, has_aliases=has_aliases)
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(LogUnavailable, _on_log_unavailable)
    app.add_exception_handler(RecordTooLarge, _on_record_too_large)
    app.add_exception_handler(StateUnavailable, _on_state_unavailable)


async def _on_api_error(request: Request, error: Any) -> Response:
    request.state.code = error.body.code
    return answer(error)


async def _on_log_unavailable(request: Request, error: Any) -> Response:
    del request
    _log.warning("the log does not acknowledge (%s)", error)
    return answer(errors.unavailable("message log"))


async def _on_record_too_large(request: Request, error: Any) -> Response:
    del request
    _log.warning("%s", error)
    return answer(errors.record_too_large())


async def _on_state_unavailable(request: Request, error: Any) -> Response:
    del request
    _log.warning("the view cannot be written (%s)", error)
    return answer(errors.unavailable("server's state"))


async def _on_http_exception(request: Request, error: Any) -> Response:
    where = f"({request.method} {errors.shorten(request.url.path)})"
    if error.status_code == NOT_FOUND:
        return answer(ApiError(NOT_FOUND, f"Invalid URL {where}"))
    if error.status_code == METHOD_NOT_ALLOWED and request.method == "OPTIONS":
        return Response(status_code=NO_CONTENT, headers={"allow": _allowed(request)})
    if error.status_code == METHOD_NOT_ALLOWED:
        message = f"Invalid method for URL {where}"
        return answer(ApiError(METHOD_NOT_ALLOWED, message, headers={"allow": _allowed(request)}))
    return answer(ApiError(error.status_code, str(error.detail), headers=dict(error.headers or {})))


def _allowed(request: Request) -> str:
    """The methods that the routes of a path have between them; the framework names at most those of one."""
    return ", ".join(method for method in METHODS if _takes(request, method))


def _takes(request: Request, method: str) -> bool:
    if method == "OPTIONS":
        return True
    method = "GET" if method == "HEAD" else method
    scope = {**request.scope, "method": method}
    return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)
