"""Exception handlers of the app: they answer every fault with the error body of the client's API."""

import logging
import re
from collections.abc import Callable
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope

from tidemill.api import error_bodies, errors
from tidemill.api.view.sqlite import StateUnavailable
from tidemill.kafka.connection import LogUnavailable
from tidemill.schemas.endpoints import ENDPOINTS
from tidemill.schemas.ports import RecordTooLarge
from tidemill.schemas.resources.error import ApiError

NO_CONTENT = 204
NOT_FOUND = 404
METHOD_NOT_ALLOWED = 405
METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
ALIAS: Final = re.compile(r"\A/openai(?:/v1|/deployments/[^/]+)?(?=/)")
"""Prefixes that Azure's clients use in place of `/v1`."""
UNAVAILABLE: Final[dict[type[Exception], Callable[[], ApiError]]] = {
    LogUnavailable: lambda: errors.unavailable("message log"),
    StateUnavailable: lambda: errors.unavailable("server's state"),
    RecordTooLarge: errors.record_too_large,
}
"""The answers to faults of the log and of the view."""

_log = logging.getLogger(__name__)


def answer(error: ApiError, scope: Scope) -> Response:
    """The answer to an error of a request."""
    status, body = error_bodies.render(
        error, request_id=scope["state"]["request_id"], anthropic=error_bodies.is_anthropic_scope(scope)
    )
    return Response(body, status_code=status, headers=error.headers, media_type="application/json")


def install(app: FastAPI) -> None:
    """Replace the error answers of the framework."""
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    for fault in UNAVAILABLE:
        app.add_exception_handler(fault, _on_unavailable)


async def _on_api_error(request: Request, error: Any) -> Response:
    request.state.code = error.body.code
    return answer(error, request.scope)


async def _on_unavailable(request: Request, error: Any) -> Response:
    _log.warning("%s: %s", type(error).__name__, error)
    found = next(make() for fault, make in UNAVAILABLE.items() if isinstance(error, fault))
    return answer(found, request.scope)


async def _on_http_exception(request: Request, error: Any) -> Response:
    where = f"({request.method} {errors.shorten(request.url.path)})"
    if error.status_code == NOT_FOUND:
        return answer(ApiError(NOT_FOUND, f"Invalid URL {where}{_hint(request)}"), request.scope)
    if error.status_code == METHOD_NOT_ALLOWED and request.method == "OPTIONS":
        return Response(status_code=NO_CONTENT, headers={"allow": _allowed(request)})
    if error.status_code == METHOD_NOT_ALLOWED:
        message = f"Invalid method for URL {where}"
        return answer(ApiError(METHOD_NOT_ALLOWED, message, headers={"allow": _allowed(request)}), request.scope)
    found = ApiError(error.status_code, str(error.detail), headers=dict(error.headers or {}))
    return answer(found, request.scope)


def _hint(request: Request) -> str:
    """What may be wrong with a URL that is none of ours."""
    path = request.url.path
    if path in ENDPOINTS:
        batches = "/v1/messages/batches" if path == error_bodies.MESSAGES else "/v1/batches"
        return f". Tidemill runs batches ({batches}); send single calls to the inference server itself."
    if _is_path(request, f"/v1{path}"):
        return ". The address of the API ends in /v1."
    if path.startswith("/v1/v1/") and _is_path(request, path.removeprefix("/v1")):
        return ". The address has /v1 twice: some clients add it themselves."
    if ALIAS.match(path) and _is_path(request, ALIAS.sub("/v1", path, 1)):
        return ". The operator can serve Azure's paths with the setting 'path_aliases'."
    return ""


def _is_path(request: Request, path: str) -> bool:
    """Whether a route has this path, with any method."""
    scope = {**request.scope, "path": path}
    return any(route.matches(scope)[0] is not Match.NONE for route in request.app.routes)


def _allowed(request: Request) -> str:
    """The methods of all routes of a path; the framework names the methods of one route only."""
    return ", ".join(method for method in METHODS if _has_route(request, method))


def _has_route(request: Request, method: str) -> bool:
    if method == "OPTIONS":
        return True
    method = "GET" if method == "HEAD" else method
    scope = {**request.scope, "method": method}
    return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)
