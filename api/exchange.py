"""One request and its answer: every answer has a request id, and every fault OpenAI's error body."""

import logging
import traceback
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tidemill.api import errors
from tidemill.api.requests import faults
from tidemill.api.state.sqlite import StateUnavailable
from tidemill.kafka import LogUnavailable
from tidemill.schemas import ids
from tidemill.schemas.error import ApiError
from tidemill.schemas.ports import RecordTooLarge

NOT_FOUND = 404
METHOD_NOT_ALLOWED = 405
METHODS = ("DELETE", "GET", "PATCH", "POST", "PUT")

_ALWAYS = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))
_TRANSPORT = (b"strict-transport-security", b"max-age=31536000")

_log = logging.getLogger(__name__)


class Exchange:
    """Names each request, and answers one that met a fault of the server's own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the app answer; headers that it sets itself stay."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = ids.new_request_id()
        scope.setdefault("state", {})["request_id"] = request_id
        begun = False

        async def named(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                own = message.get("headers", ())
                names = [name for name, _ in own]
                ours = headers(request_id, is_secure=scope["scheme"] == "https")
                if told := scope["state"].get("headers"):
                    ours += tuple((name.encode(), value.encode()) for name, value in told.items())
                if told or b"cache-control" in names:
                    ours = tuple(field for field in ours if field[0] not in names)
                message["headers"] = [*own, *ours]
            await send(message)

        try:
            await self._app(scope, receive, named)
        except ClientDisconnect:
            _log.info("%s: the client went away", request_id)
        except Exception as error:  # noqa: BLE001  the last resort of every request
            # The text of an exception may quote what a user sent, so only the places are logged.
            places = "".join(traceback.format_tb(error.__traceback__))
            _log.error("%s: %s\n%s", request_id, type(error).__name__, places)
            # An answer that has begun can only be cut short: the server closes the connection.
            if not begun:
                await answer(errors.internal())(scope, receive, named)


def headers(request_id: str, *, is_secure: bool) -> tuple[tuple[bytes, bytes], ...]:
    """The headers of every answer: no cache keeps it, and no browser guesses another type."""
    named = ((b"x-request-id", request_id.encode()), *_ALWAYS)
    return (*named, _TRANSPORT) if is_secure else named


def answer(error: ApiError) -> Response:
    """An error as an answer."""
    return Response(
        errors.encode(error.body), status_code=error.status, headers=error.headers, media_type="application/json"
    )


def install(app: FastAPI) -> None:
    """Give an app these answers in place of its framework's."""
    app.add_middleware(Exchange)
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(LogUnavailable, _on_log_unavailable)
    app.add_exception_handler(RecordTooLarge, _on_record_too_large)
    app.add_exception_handler(StateUnavailable, _on_state_unavailable)


async def _on_api_error(request: Request, error: Any) -> Response:
    del request
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
    if error.status_code == METHOD_NOT_ALLOWED:
        message = f"Invalid method for URL {where}"
        return answer(ApiError(METHOD_NOT_ALLOWED, message, headers={"allow": _allowed(request)}))
    return answer(ApiError(error.status_code, str(error.detail), headers=dict(error.headers or {})))


def _allowed(request: Request) -> str:
    """The methods that the routes of a path have between them; the framework names at most those of one."""
    return ", ".join(method for method in METHODS if _takes(request, method))


def _takes(request: Request, method: str) -> bool:
    scope = {**request.scope, "method": method}
    return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)


async def _on_validation_error(request: Request, error: Any) -> Response:
    """An id in the path that can be none; bodies, queries and headers are read by the routes themselves."""
    del request
    return answer(faults.in_path(error.errors()[0]))
