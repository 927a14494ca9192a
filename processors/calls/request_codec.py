"""Judges answers, and writes result lines and error lines. Bodies pass through as bytes."""

import functools
import hashlib
import re
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Final

import msgspec

from tidemill.processors.calls import reply, reply_normalization
from tidemill.processors.calls.reply import NO_TOKENS, Tokens
from tidemill.processors.failures import NOT_MADE, Answer, CallFailure, FailureKind
from tidemill.processors.memory_budget import ReplyBytes
from tidemill.schemas import UNREADABLE, decoded
from tidemill.schemas.jsonl import line as shapes
from tidemill.schemas.jsonl import nesting, server_error
from tidemill.schemas.jsonl.line import Call
from tidemill.schemas.log.codec import LineMark

RETRY_AFTER_SECONDS_MAX: Final = 86_400.0
BATCHES_KNOWN_MAX: Final = 1_000
PLAIN_CHARS_MAX: Final = 96
"""A batch id up to this length makes ids of calls with at most 128 characters."""


class _WithError(msgspec.Struct):
    error: msgspec.Raw = msgspec.Raw()


_ERROR: Final = re.compile(rb'\{\s*[^}\s]|"[^"]')
"""The beginning of an `error`: an object with a field, or a text."""
_objects: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_errors: Final = msgspec.json.Decoder(_WithError)
_values: Final = msgspec.json.Decoder(msgspec.Raw)
_LOCATION: Final = re.compile(r"[!-?A-~]{1,256}\Z")
"""Printable, and without a user or password before an `@`."""
_FORM: Final = re.compile(
    r"((audio|image|multipart|video)/|application/vnd\.)[\w.+-]{1,64}(?<!\+json)(?<!\+xml)\Z", re.ASCII
)
"""Media types of answers; a gateway may give any other one, `application/octet-stream` too, to a passing fault."""
_FILLED_LIST: Final = re.compile(rb"\s*+\[\s*+[^]\s]")
FIELDS_MAX: Final = 10_000
"""The body of an error with more fields does not keep them: a million take half a second."""
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")
_SECONDS: Final = re.compile(r"\d{1,9}(\.\d{1,9})?\Z")


UNANSWERED: Final = {
    FailureKind.CONNECT: "The backend could not be reached.",
    FailureKind.TIMEOUT: "The backend did not answer in time.",
    FailureKind.READ: "The connection to the backend broke off before the answer was complete.",
    FailureKind.TOO_LARGE: "The backend's reply is larger than the setting reply_bytes_max allows.",
    FailureKind.UNSUPPORTED_REPLY: ("The backend's reply names two different lengths, so its end is unknown."),
    FailureKind.INVALID_LINE: "The line cannot be read.",
    FailureKind.INPUT_GONE: "The input of this line is no longer in the store.",
    FailureKind.STORE: "The store could not be read.",
    FailureKind.KEY: "The key of the batch is unavailable.",
    FailureKind.INTERNAL: "The call could not be made.",
}
"""The message in the error line of a call without an answer."""


class Success(msgspec.Struct, frozen=True):
    """A call that succeeded."""

    answer: Answer
    body: bytes
    tokens: Tokens | None = NO_TOKENS
    """None if the server names impossible counts: the line is delivered and not billed."""

    @property
    def share(self) -> ReplyBytes | None:
        """The answer's share of the memory budget."""
        return self.answer.share


def judge(outcome: Answer | FailureKind, endpoint: str) -> Success | CallFailure:
    """Judge what the HTTP client returned for a call of an endpoint; `located` completes a failure."""
    if isinstance(outcome, FailureKind):
        return CallFailure(outcome, UNANSWERED[outcome])
    status = outcome.status
    if 200 <= status < 300 and outcome.encoding is None:  # noqa: PLR2004
        return _judged(outcome, endpoint)
    message = f"The backend answered with status {status}{_to(outcome)}."
    kind = FailureKind.STATUS
    if outcome.encoding is not None:
        message = f"The backend's reply cannot be decompressed ({outcome.encoding}); none was requested."
        kind = FailureKind.UNSUPPORTED_REPLY if 200 <= status < 300 else FailureKind.STATUS  # noqa: PLR2004
    return CallFailure(kind, message, status, outcome, _error_body(outcome, message))


def located(failure: CallFailure, **fields: Any) -> CallFailure:
    """A copy of the failure with other values in some fields."""
    return msgspec.structs.replace(failure, **fields)


def unserved(failure: CallFailure, endpoint: str) -> CallFailure:
    """The failure of a line whose endpoint no backend of its model serves, with the server's answer."""
    message = f"The model's backend does not serve {endpoint}."
    return msgspec.structs.replace(failure, kind=FailureKind.NOT_SERVED, message=message)


def unfit(end: Success, fault: str) -> CallFailure:
    """The failure of a call whose answer does not fit the JSON Schema of its batch."""
    message = f"The answer does not fit the schema of the batch: {fault}"
    return CallFailure(FailureKind.INVALID_OUTPUT, message, end.answer.status, end.answer, end.body)


def _judged(answer: Answer, endpoint: str) -> Success | CallFailure:
    """Judge a 2xx reply by its content."""
    body = answer.body
    try:
        found = reply.read(body, endpoint)
    except UNREADABLE:
        try:
            normalized = reply_normalization.normalized(body)
        except reply_normalization.UnsupportedFormError as error:
            return _unusable(FailureKind.UNSUPPORTED_REPLY, str(error), answer)
        if normalized is None:
            return _unusable(*_unreadable(answer), answer)
        found, body = reply.read(normalized, endpoint), normalized
    if isinstance(found, reply.ReplyError):
        status = found.status if found.kind is FailureKind.ERROR_IN_REPLY else answer.status
        return CallFailure(found.kind, found.message, status, answer, body)
    return Success(answer, body, found)


def _to(answer: Answer) -> str:
    """Where an answer redirects to, as the end of a sentence; without its query, which may have a secret."""
    found = re.split("[?#]", answer.location or "", maxsplit=1)[0]
    is_shown = 300 <= answer.status < 400 and _LOCATION.match(found) is not None  # noqa: PLR2004
    return f" and redirects to {found}, which Tidemill does not follow" if is_shown else ""


def _unreadable(answer: Answer) -> tuple[FailureKind, str]:
    """Why a reply that is no JSON object cannot be delivered, and whether a retry would get the same form."""
    if is_filled_list(answer.body):
        return FailureKind.UNSUPPORTED_REPLY, "The backend's reply is a JSON array, not an object."
    name = (answer.media_type or "").partition(";")[0].strip().lower()
    if answer.body and _FORM.match(name) is not None:
        return FailureKind.UNSUPPORTED_REPLY, f"The backend's reply is not JSON, but {name}."
    return FailureKind.INVALID_REPLY, "The backend's reply is not a JSON object."


def is_filled_list(body: bytes) -> bool:
    """Whether this is a JSON array with an item."""
    return _FILLED_LIST.match(body) is not None and decoded(_values, body) is not None


def _unusable(kind: FailureKind, message: str, answer: Answer) -> CallFailure:
    return CallFailure(kind, message, answer.status, answer, _error_body(answer, message))


def result(batch_id: str, index: int, custom_id: bytes, end: Success, call: Call) -> tuple[bytes, LineMark]:
    """The result line of a successful call, and its mark for the record's headers."""
    answer = end.answer
    if end.tokens is not None:
        call = call._replace(tokens=end.tokens[::2])
    name = request_id(answer.request_id, batch_id, index, call.attempts)
    text = shapes.answered(
        batch_id, index, custom_id, status=answer.status, request_id=name, body=end.body, call=call
    )
    return text, LineMark(index, len(text), False, end.tokens, call.attempts)


def failed(batch_id: str, index: int, custom_id: bytes, end: CallFailure, call: Call) -> tuple[bytes, LineMark]:
    """The error line of a line that is given up, and its mark for the record's headers.

    It quotes the server's status and body, if there was an answer, in addition to our own error.
    """
    ours, answer = {"code": end.kind.value, "message": end.message}, end.answer
    if answer is None:
        was_called = end.kind not in NOT_MADE
        text = shapes.unanswered(batch_id, index, custom_id, **ours, call=call if was_called else None)
    else:
        error = None if end.kind is FailureKind.STATUS else ours
        name = request_id(answer.request_id, batch_id, index, call.attempts)
        text = shapes.answered(
            batch_id,
            index,
            custom_id,
            status=answer.status,
            request_id=name,
            body=end.body,
            call=call,
            error=error,
        )
    return text, LineMark(index, len(text), failed=True, attempts=call.attempts)


def request_id(given: str | None, batch_id: str, index: int, attempts: int) -> str:
    """The id that the backend gave the request, if it is well-formed, else the id that it was sent."""
    if given is not None and _REQUEST_ID.match(given) is not None:
        return given
    return sent_id(batch_id, index, attempts)


def sent_id(batch_id: str, index: int, attempts: int) -> str:
    """The id of a call: `batch_…-17-1` is the first call of line 17, counted from 0."""
    name = f"{batch_id}-{index}-{attempts}"
    if _is_plain(batch_id) or _REQUEST_ID.match(name) is not None:
        return name
    # A foreign writer of the topic may have chosen the batch id.
    return "req_" + hashlib.blake2b(name.encode(), digest_size=16).hexdigest()


@functools.lru_cache(maxsize=BATCHES_KNOWN_MAX)
def _is_plain(batch_id: str) -> bool:
    """Whether the ids of all calls of a batch are well-formed."""
    return len(batch_id) <= PLAIN_CHARS_MAX and _REQUEST_ID.match(batch_id) is not None


def wait_seconds(retry_after: str | None, now: float) -> float | None:
    """The seconds that a `Retry-After` header, a number or a date, asks to wait; None if it is malformed.

    `now` is a Unix time.
    """
    if retry_after is None:
        return None
    text = retry_after.strip()
    if _SECONDS.match(text):
        return min(float(text), RETRY_AFTER_SECONDS_MAX)
    try:
        date = parsedate_to_datetime(text)
        if date.tzinfo is None:
            date = date.replace(tzinfo=UTC)
        return min(max(date.timestamp() - now, 0.0), RETRY_AFTER_SECONDS_MAX)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _error_body(answer: Answer, message: str) -> bytes:
    """The body of an error as a JSON object with an `error`: the server's own, or one in OpenAI's shape."""
    own = _object(answer.body)
    body = answer.body if own is None else own
    # What is no object, or not in UTF-8, is quoted; its fields would make the line malformed, too.
    if own is not None and (given := decoded(_errors, own)) is not None and _ERROR.match(given.error):
        return body
    fields = {} if own is None or _has_many_fields(own) else decoded(_objects, own) or {}
    found = server_error.read(body)
    kind, code, param = (one if isinstance(one, str) else None for one in (found.type, found.code, found.param))
    error = {
        "message": found.message or ("" if body == b"{}" else server_error.quoted(body)) or message,
        "type": kind or FailureKind.STATUS.value,
        "param": param,
        "code": code,
    }
    return msgspec.json.encode({**fields, "error": error})


def _has_many_fields(body: bytes) -> bool:
    """Whether an object has too many fields, or for its nesting they cannot be counted."""
    if body.count(b":") <= FIELDS_MAX:
        return False
    return nesting.exceeds(body, nesting.LEVELS_MAX) or nesting.elements(body) > FIELDS_MAX


def _object(body: bytes) -> bytes | None:
    """A body as a JSON object; None if it cannot be one."""
    if reply.is_object(body):
        return body
    try:
        return reply_normalization.normalized(body)
    except reply_normalization.UnsupportedFormError:
        return None
