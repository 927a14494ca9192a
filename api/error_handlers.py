"""Exception handlers of the app: they answer every fault with OpenAI's error body."""

import logging
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.routing import Match

from tidemill.api import errors
from tidemill.api.view.sqlite import StateUnavailable
from tidemill.kafka.connection import LogUnavailable
from tidemill.schemas.ports import RecordTooLarge
from tidemill.schemas.resources.error import ApiError

NO_CONTENT = 204
NOT_FOUND = 404
METHOD_NOT_ALLOWED = 405
METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")

_log = logging.getLogger(__name__)


def answer(error: ApiError) -> Response:
    """An error as an answer."""
    return Response(
        errors.encode(error.body), status_code=error.status, headers=error.headers, media_type="application/json"
    )


def install(app: FastAPI) -> None:
    """Replace the error answers of the framework."""
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
    _log.warning("the log did not acknowledge a record (%s)", error)
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
    """The methods of all routes of a path; the framework names those of one route only."""
    return ", ".join(method for method in METHODS if _takes(request, method))


def _takes(request: Request, method: str) -> bool:
    if method == "OPTIONS":
        return True
    method = "GET" if method == "HEAD" else method
    scope = {**request.scope, "method": method}
    return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)
