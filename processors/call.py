"""An input line becomes an HTTP call, and what is answered becomes a result line.

Bodies pass through as bytes both ways. A reply is checked to be one JSON object, and of all it holds only the
token counts are read.
"""

import hashlib
import re
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any, Final

import msgspec
import orjson

from tidemill.processors.budget import Share
from tidemill.processors.retry import Kind, kind_of
from tidemill.schemas import line as shapes
from tidemill.schemas.bounds import TOKENS_MAX
from tidemill.schemas.codec import LineMark

REPLY_BYTES_MAX: Final = 32 << 20
RETRY_AFTER_SECONDS_MAX: Final = 86_400.0

Tokens = tuple[int, int, int, int]
"""Input, cached of these, output, reasoning of these."""
NO_TOKENS: Final = (0, 0, 0, 0)

_FULL: Final = frozenset({429, 503})
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")
_SECONDS: Final = re.compile(r"\d{1,9}(\.\d{1,9})?\Z")


class Broken(StrEnum):
    """Why a call brought no answer at all; the value is the code of the error line."""

    UNREACHABLE = "backend_unreachable"
    TIMEOUT = "backend_timeout"
    CONNECTION = "backend_connection_lost"
    TOO_LARGE = "backend_reply_too_large"


_KINDS: Final = {
    Broken.UNREACHABLE: Kind.OUTAGE,
    Broken.TIMEOUT: Kind.SUSPECT,
    Broken.CONNECTION: Kind.SUSPECT,
    Broken.TOO_LARGE: Kind.FINAL,
}
_MESSAGES: Final = {
    Broken.UNREACHABLE: "The backend could not be reached.",
    Broken.TIMEOUT: "The backend did not answer in time.",
    Broken.CONNECTION: "The connection to the backend broke off during the call.",
    Broken.TOO_LARGE: f"The backend's reply is larger than {REPLY_BYTES_MAX} bytes.",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a backend sent; `retry_after` and `request_id` are headers as they came."""

    status: int
    body: bytes
    request_id: str | None = None
    retry_after: str | None = None
    share: Share | None = field(default=None, compare=False)
    """Of the budget of replies, where it is a large one; whoever has the answer closes it in the end."""


@dataclass(frozen=True, slots=True)
class Success:
    """A call that ended in an answer for the line, which may be a 4xx."""

    answer: Answer
    body: bytes
    tokens: Tokens | None = NO_TOKENS
    """None where the server names counts that cannot be: nothing is billed then, and the line is delivered."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A call that may be made again; the rest is what to say where it is not.

    `body` is the JSON object that came with an error status, if one did.
    """

    kind: Kind
    code: str
    message: str
    answer: Answer | None = None
    body: bytes | None = None

    @property
    def is_full(self) -> bool:
        """Whether the backend says by it that it has too many calls."""
        if self.answer is None:
            return self.code == Broken.TIMEOUT
        return self.answer.status in _FULL


class _Details(msgspec.Struct):
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None


class _Reply(msgspec.Struct):
    usage: _Usage | None = None


class _OddReply(msgspec.Struct):
    usage: object = None


class _Object(msgspec.Struct):
    pass


_replies: Final = msgspec.json.Decoder(_Reply)
_odd_replies: Final = msgspec.json.Decoder(_OddReply)
_objects: Final = msgspec.json.Decoder(_Object)


def judge(outcome: Answer | Broken) -> Success | Failure:
    """Say what a call came to."""
    if isinstance(outcome, Broken):
        return Failure(_KINDS[outcome], outcome.value, _MESSAGES[outcome])
    status = outcome.status
    if 200 <= status < 300:  # noqa: PLR2004
        try:
            return Success(outcome, outcome.body, _tokens(outcome.body))
        except msgspec.MsgspecError:
            return Failure(
                Kind.SUSPECT, "backend_reply_invalid", "The backend's reply is not a JSON object.", outcome
            )
    body = outcome.body if is_object(outcome.body) else None
    if (kind := kind_of(status)) is None:
        return Success(outcome, body or _error_body(status))
    return Failure(kind, "backend_error", f"The backend answered with status {status}.", outcome, body)


def unserved(endpoint: str) -> Failure:
    """The end of a line that asks for what no backend of its model has."""
    return Failure(Kind.FINAL, "endpoint_not_served", f"The model's backend does not serve {endpoint}.")


def is_object(body: bytes) -> bool:
    """Whether this is one JSON object in UTF-8, as strictly as RFC 8259 has it."""
    try:
        _objects.decode(body)
    except (msgspec.MsgspecError, RecursionError):
        return False
    return _is_utf8(body)


def result(batch_id: str, index: int, custom_id: bytes, end: Success, attempts: int) -> tuple[bytes, LineMark]:
    """The result line of a call that was answered, and what the fold is told of it."""
    status = end.answer.status
    text = shapes.answered(
        batch_id,
        index,
        custom_id,
        status=status,
        request_id=request_id(end.answer.request_id, batch_id, index),
        body=end.body,
    )
    failed = not 200 <= status < 300  # noqa: PLR2004
    return text, LineMark(index, len(text), failed, end.tokens, attempts)


def failed(batch_id: str, index: int, custom_id: bytes, end: Failure, attempts: int) -> tuple[bytes, LineMark]:
    """The result line of a call that was given up, and what the fold is told of it.

    A status that came with a JSON body is handed on as the answer that it is.
    """
    if end.answer is not None and end.body is not None:
        return result(batch_id, index, custom_id, Success(end.answer, end.body), attempts)
    text = shapes.unanswered(batch_id, index, custom_id, code=end.code, message=end.message)
    return text, LineMark(index, len(text), failed=True, attempts=attempts)


def request_id(given: str | None, batch_id: str, index: int) -> str:
    """The backend's name for the request, if it is a sane one, else one derived from the line's place."""
    if given is not None and _REQUEST_ID.match(given) is not None:
        return given
    return "req_" + hashlib.blake2b(f"{batch_id}/{index}/request".encode(), digest_size=16).hexdigest()


def wait_seconds(retry_after: str | None, now: float) -> float | None:
    """What a `Retry-After` header asks for: seconds, or a date; None where it says nothing that can be read.

    Args:
        retry_after: The header's value.
        now: Unix time.
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


def _tokens(body: bytes) -> Tokens | None:
    """The token counts of a reply: zeros where it names none, None where it names what cannot be.

    Raises:
        MsgspecError: It is no JSON object.
    """
    try:
        usage = _replies.decode(body).usage
    except msgspec.MsgspecError:
        # Not of the shape: an array, or an object whose `usage` is odd, or has what the decoder does not read.
        if not is_object(body):
            raise
        return _odd_tokens(body)
    except RecursionError as error:
        raise msgspec.DecodeError("it is nested too deeply") from error
    if not _is_utf8(body):
        raise msgspec.DecodeError("it is not UTF-8")
    return NO_TOKENS if usage is None else _mapped(usage)


def _odd_tokens(body: bytes) -> Tokens | None:
    """Of a `usage` that is not as it should be, what can be made out; None where that is not both counts."""
    try:
        usage = _odd_replies.decode(body).usage
    except (msgspec.MsgspecError, RecursionError):
        return None
    if not isinstance(usage, dict):
        return None
    fields: dict[str, Any] = {}
    for name in _Usage.__struct_fields__:
        value = usage.get(name)
        if name.endswith("_details"):
            details = value if isinstance(value, dict) else {}
            fields[name] = _Details(*(_whole(details.get(part)) for part in _Details.__struct_fields__))
        else:
            fields[name] = _whole(value)
    return _mapped(_Usage(**fields))


def _whole(value: object) -> int | None:
    """A number as a whole one; -1, which no count can be, where it is anything else."""
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else -1


def _is_utf8(body: bytes) -> bool:
    # The decoder does not look into strings that nobody asked for.
    if body.isascii():
        return True
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def _mapped(usage: _Usage) -> Tokens | None:
    """Chat and embeddings speak of prompt and completion, responses of input and output."""
    given = usage.prompt_tokens if usage.input_tokens is None else usage.input_tokens
    made = usage.completion_tokens if usage.output_tokens is None else usage.output_tokens
    given, made = given or 0, made or 0
    if not (0 <= given <= TOKENS_MAX and 0 <= made <= TOKENS_MAX):
        return None
    given_details = usage.input_tokens_details or usage.prompt_tokens_details
    made_details = usage.output_tokens_details or usage.completion_tokens_details
    return (
        given,
        _part(given_details.cached_tokens if given_details else None, given),
        made,
        _part(made_details.reasoning_tokens if made_details else None, made),
    )


def _part(number: int | None, whole: int) -> int:
    """A count of some of the tokens; it bills nothing, so one that cannot be is none."""
    return number if number is not None and 0 <= number <= whole else 0


def _error_body(status: int) -> bytes:
    return orjson.dumps(
        {
            "error": {
                "message": f"The backend answered with status {status} and no JSON body.",
                "type": "backend_error",
                "param": None,
                "code": None,
            }
        }
    )
