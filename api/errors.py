"""The errors of the API, in OpenAI's words."""

import errno
import functools
import math
from collections.abc import Iterable
from typing import Any

from tidemill.schemas.resources import access
from tidemill.schemas.resources.error import ApiError
from tidemill.wording import counted

RETRY_SECONDS = 2
"""How long a client should wait when the log, the store or the view does not answer."""
FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_RETRY_SECONDS = 60
"""How long a client should wait when the disk is full."""
INVALID_KEY = "invalid_api_key"
INVALID_SESSION = "invalid_session"
ENDED_SESSION = "session_ended"
ECHO_CHARS_MAX = 200
"""The most characters of a request that an answer repeats."""


def invalid(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    """The request is invalid; a fault of a field has the code `invalid_value`, unless there is a better one."""
    if param is not None:
        code = code or "invalid_value"
    return ApiError(400, message, param=param, code=code)


def invalid_param(param: str, fault: str, *, code: str = "invalid_value") -> ApiError:
    """A field has an invalid value; `fault` is a sentence."""
    return invalid(f"Invalid '{param}': {fault}", param=param, code=code)


def missing(param: str) -> ApiError:
    """A required field is missing."""
    return invalid(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")


def wrong_type(param: str, expected: str, value: Any) -> ApiError:
    """A field has another JSON type; `expected` comes with its article: `a string`."""
    message = f"Invalid type for '{param}': expected {expected}, but got {_type_name(value)} instead."
    return invalid(message, param=param, code="invalid_type")


def wrong_value(param: str, value: str, supported: Iterable[str]) -> ApiError:
    """A field has a value that is not supported."""
    message = f"Invalid value: '{shorten(value)}'. Supported values are: {_listed(tuple(supported))}."
    return invalid(message, param=param)


def _beyond(param: str, bound: int, value: int, *, code: str, fault: str) -> ApiError:
    """A field is beyond its bound; `value` is the number or the length that it has."""
    return invalid_param(param, fault.format(bound, value), code=code)


too_large = functools.partial(
    _beyond,
    code="integer_above_max_value",
    fault="integer above maximum value. Expected a value <= {}, but got {} instead.",
)
too_small = functools.partial(
    _beyond,
    code="integer_below_min_value",
    fault="integer below minimum value. Expected a value >= {}, but got {} instead.",
)
too_long = functools.partial(
    _beyond,
    code="string_above_max_length",
    fault="string too long. Expected a string with maximum length {}, but got a string with length {} instead.",
)
too_many = functools.partial(
    _beyond,
    code="object_above_max_properties",
    fault="too many properties. Expected an object with at most {} properties, "
    "but got an object with {} properties instead.",
)
array_too_long = functools.partial(
    _beyond,
    code="array_above_max_length",
    fault="array too long. Expected an array with maximum length {}, but got an array with length {} instead.",
)


def wrong_purpose(purpose: str) -> ApiError:
    """The purpose of an input file is not `batch`."""
    message = f"Invalid value for 'input_file_id': the file's purpose must be 'batch', but it is '{purpose}'."
    return invalid(message, param="input_file_id")


def unknown_cursor(cursor: str, *, param: str = "after") -> ApiError:
    """The cursor names no object of the list."""
    return invalid_param(param, f"no object with id '{shorten(cursor)}'.")


def unsatisfiable(size: int) -> ApiError:
    """A range lies beyond the file."""
    return ApiError(
        416,
        f"The requested range is not satisfiable: the file has {counted(size, 'byte')}.",
        headers={"content-range": f"bytes */{size}"},
    )


def _no_object(kind: str, param: str, object_id: str) -> ApiError:
    """No object of this kind in this project has the id."""
    return ApiError(404, f"No such {kind} object: {shorten(object_id)}", param=param)


no_file = functools.partial(_no_object, "File", "id")
no_upload = functools.partial(_no_object, "Upload", "upload_id")


def not_found(kind: str, object_id: str, *, param: str | None = None) -> ApiError:
    """The caller can see no object of this kind with the id."""
    return ApiError(404, f"No {kind} found with id '{shorten(object_id)}'.", param=param)


no_batch = functools.partial(not_found, "batch")
no_endpoint = functools.partial(not_found, "webhook endpoint")
no_delivery = functools.partial(not_found, "delivery")
no_letter = functools.partial(not_found, "dead letter")
no_key_with = functools.partial(not_found, "key")


def no_async_request(name: str) -> ApiError:
    """No endpoint has this path, or no asynchronous request of this project there has this id."""
    return ApiError(404, f"No endpoint or asynchronous request found: '{shorten(name)}'.")


def no_results(batch_id: str, why: str) -> ApiError:
    """A batch has no results."""
    return ApiError(404, f"The batch '{shorten(batch_id)}' has no results: {why}.")


class PartsMissing(ApiError):
    """The upload has no such parts, or no more: another process may have ended it and deleted them."""

    def __init__(self, message: str) -> None:
        super().__init__(400, message, param="part_ids", code="invalid_value")


def no_part(part_id: str) -> ApiError:
    """The upload has no such part."""
    return PartsMissing(f"No such part of the upload: '{shorten(part_id)}'.")


def no_model(model: str) -> ApiError:
    """No such model is configured."""
    return ApiError(404, f"The model '{shorten(model)}' does not exist", param="model", code="model_not_found")


def no_key() -> ApiError:
    """The request came without a key."""
    return _unauthorized(
        "You didn't provide an API key. You need to provide your API key in an Authorization header using "
        "Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
    )


def wrong_key(key: str) -> ApiError:
    """The key belongs to no project; the answer repeats the ends of a long key only."""
    shown = f"{key[:5]}***{key[-2:]}" if len(key) > 16 else "***"  # noqa: PLR2004  half of it stays hidden
    message = f"Incorrect API key provided: {shown}. Ask the operator of this server for a key."
    return _unauthorized(message, code=INVALID_KEY)


def ended_key(hint: str, how: str) -> ApiError:
    """The key has ended; `how` is `revoked` or `expired`."""
    message = f"The API key {hint} is {how}. Ask the operator of this server for a new one."
    return _unauthorized(message, code=INVALID_KEY)


def wrong_session() -> ApiError:
    """This service did not sign the cookie of the session."""
    return _unauthorized("Your session is invalid. Sign in again.", code=INVALID_SESSION)


def ended_session() -> ApiError:
    """The session has ended, or its key has."""
    return _unauthorized("Your session has ended. Sign in again.", code=ENDED_SESSION)


def no_session() -> ApiError:
    """The request has no session."""
    return _unauthorized("You are not signed in.", code="no_session")


def cross_origin(why: str) -> ApiError:
    """A request with the cookie of a session may come from another site; `why` is a clause."""
    return ApiError(403, f"The request is refused: {why}.", code="cross_origin_refused")


def forbidden(role: str, needed: str) -> ApiError:
    """The key is valid, but its role does not cover the request."""
    message = f"Your API key has the role '{role}'; this needs the role '{needed}'."
    return ApiError(403, message, code="insufficient_permissions")


def needs_key() -> ApiError:
    """A person without a key asks for an object that belongs to a key."""
    return ApiError(403, "A token belongs to a key, so a request with a key has to create it.", code="key_needed")


def unknown_parameter(param: str) -> ApiError:
    """The body has an unknown field."""
    shown = shorten(param)
    return invalid(f"Unknown parameter: '{shown}'.", param=shown, code="unknown_parameter")


def no_entry(name: str) -> ApiError:
    """No server or model has the name."""
    return ApiError(404, f"No server or model found with the name '{shorten(name)}'.")


def another_revision(name: str) -> ApiError:
    """The object has changed since the caller read it."""
    return ApiError(412, f"'{shorten(name)}' does not have this revision.", code="revision_mismatch")


def limit_reached(limit: str, message: str) -> ApiError:
    """A limit of the project, named by its setting, is reached; the message says how to make room.

    It lasts, so a header tells the SDKs not to retry.
    """
    return _limited(f"{message} (limit: {limit})", {"x-should-retry": "false"})


def rate_limited(per_second: float, wait_ms: int) -> ApiError:
    """The key makes too many requests; the SDKs wait for `Retry-After` and try again."""
    return _limited(
        f"Rate limit reached for requests: {per_second:g} per second. Please try again in {wait_ms} ms."
        " (limit: requests_per_second)",
        {"retry-after": str(-(-wait_ms // 1000)), "retry-after-ms": str(wait_ms)},
    )


def conflict(message: str, *, code: str | None = None) -> ApiError:
    """The state of the object forbids the request. It lasts, so a header tells the SDKs not to retry."""
    return ApiError(409, message, code=code, headers={"x-should-retry": "false"})


def key_reused() -> ApiError:
    """An idempotency key came with another request than before."""
    message = "The 'Idempotency-Key' was used for another request before. Use a new key for a new batch."
    return conflict(message, code="idempotency_key_reused")


def batch_deleted() -> ApiError:
    """An idempotency key names a batch that was deleted since."""
    message = "The batch that this 'Idempotency-Key' created is deleted. Use a new key for a new batch."
    return conflict(message, code="batch_deleted")


def sequence_gap(known: int) -> ApiError:
    """An append or a seal does not follow the appends that the batch has."""
    message = f"Invalid 'sequence': the batch has {known} appends; the next one is {known + 1}."
    return ApiError(409, message, param="sequence", code="sequence_gap", headers={"x-should-retry": "false"})


def body_too_large(maximum: int, *, param: str | None = None) -> ApiError:
    """The body, or the file in it, has too many bytes."""
    return ApiError(413, f"The request is too large: the maximum is {maximum} bytes.", param=param)


def record_too_large() -> ApiError:
    """Each field is within its bound, but together they exceed a record of the log."""
    return ApiError(413, "The request is too large for a record of the message log.")


def timed_out(part: str = "body") -> ApiError:
    """The client stopped sending its request, or sends too slowly; `part` is `head` or `body`."""
    return ApiError(408, f"The request {part} did not arrive in time.", headers={"connection": "close"})


def head_too_large() -> ApiError:
    """The request line and the headers are too large."""
    return ApiError(431, "The request's headers are too large.")


def url_too_long(maximum: int) -> ApiError:
    """The URL has too many bytes."""
    return ApiError(414, f"The URL is too long: the maximum is {maximum} bytes.")


def misdirected() -> ApiError:
    """The header `Host` does not name this server; the answer does not repeat it."""
    return ApiError(
        421,
        "This server does not answer to the host name of the request. The operator can add the name to "
        "'allowed_hosts'.",
    )


def busy() -> ApiError:
    """Too many requests are in progress."""
    return _failed(503, "The server has too many requests in progress. Please try again.", {"connection": "close"})


def unavailable(what: str) -> ApiError:
    """The log, the store or the view does not answer; the same request may succeed in a moment."""
    return _failed(503, f"The {what} is not available at the moment. Please try again.")


def foreign_store(fault: str) -> ApiError:
    """The store cannot be used until its operator acts."""
    return _failed(503, f"The file store cannot be used: {fault}. Its operator can run `tidemill doctor`.")


def share_taken(what: str, project: str) -> ApiError:
    """The project uses its whole share of a concurrency limit."""
    return _limited(
        f"Project '{project}' uses its whole share of concurrent {what}. "
        "Please send fewer at once, or try again in a moment.",
        {"retry-after": str(RETRY_SECONDS)},
    )


def too_many_streams(project: str) -> ApiError:
    """The project uses its whole share of the event streams of a process."""
    return _limited(
        f"Project '{project}' uses its whole share of streams of events. Close one, or share one among pages.",
        {"retry-after": str(FULL_RETRY_SECONDS), "x-should-retry": "false"},
    )


def no_stream_left() -> ApiError:
    """Other projects have all event streams of a process."""
    return _limited(
        "All streams of events of this server are taken; try again later.",
        {"retry-after": str(FULL_RETRY_SECONDS), "x-should-retry": "false"},
    )


def from_store(error: OSError) -> ApiError:
    """The store failed; 507 if it is full."""
    if error.errno not in FULL:
        return unavailable("file store")
    return _failed(
        507,
        "The server's disk is full; only deletions still work. Please delete files, or try again later.",
        {"retry-after": str(FULL_RETRY_SECONDS)},
        code="storage_full",
    )


def refused_too_often(seconds: float) -> ApiError:
    """Too many keys of an address were refused; it has to wait."""
    return _limited(
        f"Too many keys from your address were refused. Please try again in {math.ceil(seconds)} s.",
        {"retry-after": str(math.ceil(seconds)), "x-should-retry": "false"},
    )


def no_key_file() -> ApiError:
    """The installation has no key to encrypt secrets with."""
    return conflict(
        "This server cannot keep the secret of a webhook, since it has no encryption key. The operator can set "
        "'encryption_key_file'.",
        code="no_encryption_key",
    )


def internal() -> ApiError:
    """The server has a fault of its own."""
    return ApiError(500, "The server had an error while processing your request.", kind="server_error")


def shorten(text: str) -> str:
    """A text of any length, cut to `ECHO_CHARS_MAX` characters for an answer."""
    return text if len(text) <= ECHO_CHARS_MAX else f"{text[:ECHO_CHARS_MAX]}…"


def _unauthorized(message: str, *, code: str | None = None) -> ApiError:
    return ApiError(401, message, code=code, headers={"www-authenticate": access.CHALLENGE})


def _limited(message: str, headers: dict[str, str]) -> ApiError:
    return ApiError(429, message, kind="requests", code="rate_limit_exceeded", headers=headers)


def _failed(
    status: int, message: str, headers: dict[str, str] | None = None, *, code: str | None = None
) -> ApiError:
    headers = {"retry-after": str(RETRY_SECONDS)} | (headers or {})
    return ApiError(status, message, kind="server_error", code=code, headers=headers)


def _listed(values: tuple[str, ...]) -> str:
    *others, last = (f"'{value}'" for value in values)
    comma = "," if len(others) > 1 else ""
    return f"{', '.join(others)}{comma} and {last}" if others else last


def _type_name(value: Any) -> str:
    # A bool is an int to Python, so it comes first.
    kinds = {bool: "a boolean", int: "an integer", float: "a decimal", str: "a string", dict: "an object"}
    return next((name for kind, name in {**kinds, list: "an array"}.items() if isinstance(value, kind)), "null")
