"""The two shapes of an error: OpenAI's, and Anthropic's for the clients of Anthropic's API."""

from collections.abc import Iterable
from typing import Final

import orjson
from starlette.types import Scope

from tidemill.api import errors
from tidemill.schemas.resources.error import ApiError, ErrorEnvelope

MESSAGES: Final = "/v1/messages"
"""The path of Anthropic's API; so is everything below it."""
VERSION: Final = b"anthropic-version"
"""Anthropic's clients send this header with every request."""
OVERLOADED: Final = 529
KINDS: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    OVERLOADED: "overloaded_error",
}
"""The types of errors by status. Source: Anthropic's API reference, "Errors". Others are `invalid_request_error`
below 500, and `api_error` from there on."""
SERVER_ERROR: Final = 500
NO_KEY: Final = "x-api-key header is required"


def is_anthropic(path: str, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a request is one of Anthropic's API, by its path or its headers (with names in lower case)."""
    path = path.partition("?")[0]
    return path == MESSAGES or path.startswith(f"{MESSAGES}/") or any(name == VERSION for name, _ in headers)


def is_anthropic_scope(scope: Scope) -> bool:
    """`is_anthropic` of a request in an app."""
    return is_anthropic(scope["path"], scope["headers"])


def kind_of(status: int) -> str:
    """Anthropic's type for the errors of a status."""
    return KINDS.get(status, "invalid_request_error" if status < SERVER_ERROR else "api_error")


def render(error: ApiError, *, request_id: str, anthropic: bool) -> tuple[int, bytes]:
    """The status and the body of the answer to an error.

    Args:
        error: The error.
        request_id: The id of the request, which Anthropic's body repeats.
        anthropic: Whether the request is one of Anthropic's API.
    """
    if not anthropic:
        return error.status, ErrorEnvelope(error=error.body).model_dump_json().encode()
    # Anthropic has no 503: an overload is a 529, after which its SDKs retry, too.
    status = OVERLOADED if error.status == 503 else error.status  # noqa: PLR2004
    is_keyless = status == 401 and error.body.code != errors.INVALID_KEY  # noqa: PLR2004
    said = {"type": kind_of(status), "message": NO_KEY if is_keyless else error.body.message}
    return status, orjson.dumps({"type": "error", "error": said, "request_id": request_id})
