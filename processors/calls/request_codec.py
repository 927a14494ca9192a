"""An input line becomes an HTTP call, and what is answered becomes a result line.

Bodies pass through as bytes both ways. A reply is checked to be one JSON object, and of all it holds only the
token counts are read.
"""

import hashlib
import re
from dataclasses import dataclass, replace
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

import msgspec
import orjson

from tidemill.processors.calls import reply, reply_forms
from tidemill.processors.calls.reply import NO_TOKENS, Tokens
from tidemill.processors.failures import Answer, Broken, Kind, kind_of
from tidemill.schemas.jsonl import line as shapes
from tidemill.schemas.log.codec import LineMark

WORDS_BYTES_MAX: Final = 4096
"""What an error line quotes of an answer that is no JSON object."""
RETRY_AFTER_SECONDS_MAX: Final = 86_400.0

_FULL: Final = frozenset({429, 503})
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")
_SECONDS: Final = re.compile(r"\d{1,9}(\.\d{1,9})?\Z")


_MESSAGES: Final = {
    Broken.UNREACHABLE: "The backend could not be reached.",
    Broken.TIMEOUT: "The backend did not answer in time: it said nothing that could stand here.",
    Broken.CONNECTION: "The connection to the backend broke off before there was an answer.",
    Broken.TOO_LARGE: "The backend's reply is larger than the setting reply_bytes_max allows.",
    Broken.LENGTHS: "The backend's reply names two lengths that differ, so where it ends is not known.",
}
REFUSED: Final = "backend_error"
"""The code of a call that was answered with a status other than 2xx."""
ERROR_IN_REPLY: Final = "error_in_reply"
"""Of one that was answered with a 2xx that is an error by its content."""
INVALID: Final = "backend_reply_invalid"
"""Of one whose reply is no JSON object; another try may get one."""
UNSUPPORTED: Final = Broken.LENGTHS.value
"""Of one whose reply has a form that cannot be delivered; another try would get the same."""

_KINDS: Final = {
    Broken.UNREACHABLE.value: Kind.OUTAGE,
    "store_unavailable": Kind.OUTAGE,
    Broken.TIMEOUT.value: Kind.SUSPECT,
    Broken.CONNECTION.value: Kind.SUSPECT,
    INVALID: Kind.SUSPECT,
    "internal_error": Kind.SUSPECT,
}


@dataclass(frozen=True, slots=True)
class Success:
    """A call that was answered well."""

    answer: Answer
    body: bytes
    tokens: Tokens | None = NO_TOKENS
    """None where the server names counts that cannot be: nothing is billed then, and the line is delivered."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A call that was not: what happened, and what to say where the line ends with it."""

    code: str
    """The reason, in a word."""
    message: str
    status: int | None = None
    """What the server says of it: the status of its answer, or the one that an error in a 2xx names."""
    answer: Answer | None = None
    body: bytes = b""
    """What came with the answer, as a JSON object."""

    @property
    def kind(self) -> Kind:
        """What it says of the backend and of the line."""
        if self.status is None or self.code not in {REFUSED, ERROR_IN_REPLY}:
            return _KINDS.get(self.code, Kind.FINAL)
        return kind_of(self.status) or Kind.FINAL

    @property
    def is_full(self) -> bool:
        """Whether the backend says by it that it has too many calls."""
        return self.code == Broken.TIMEOUT or self.status in _FULL


def judge(outcome: Answer | Broken, endpoint: str) -> Success | Failure:
    """Say what a call came to.

    Args:
        outcome: What the HTTP client brought.
        endpoint: The path that was called, like `/v1/embeddings`.
    """
    if isinstance(outcome, Broken):
        return Failure(outcome.value, _MESSAGES[outcome])
    status = outcome.status
    if 200 <= status < 300 and outcome.encoding is None:  # noqa: PLR2004
        return _judged(outcome, endpoint)
    message = f"The backend answered with status {status}."
    code = REFUSED
    if outcome.encoding is not None:
        message = f"The backend's reply cannot be decompressed ({outcome.encoding}); none was asked for."
        code = UNSUPPORTED if 200 <= status < 300 else REFUSED  # noqa: PLR2004
    return Failure(code, message, status, outcome, _error_body(outcome, message))


def _judged(answer: Answer, endpoint: str) -> Success | Failure:
    """Say what a 2xx is."""
    body = answer.body
    try:
        found = reply.read(body, endpoint)
    except msgspec.MsgspecError:
        try:
            mended = reply_forms.mended(body)
        except reply_forms.UnsupportedFormError as error:
            return _unusable(UNSUPPORTED, str(error), answer)
        if mended is None:
            return _unusable(INVALID, "The backend's reply is not a JSON object.", answer)
        found, body = reply.read(mended, endpoint), mended
    if isinstance(found, reply.Fault):
        return Failure(ERROR_IN_REPLY, found.words, found.status, answer, body)
    return Success(answer, body, found)


def _unusable(code: str, message: str, answer: Answer) -> Failure:
    return Failure(code, message, answer.status, answer, _error_body(answer, message))


def unserved(end: Failure, endpoint: str) -> Failure:
    """The end of a line that asks for what no backend of its model has, with what it was answered."""
    return replace(end, code="endpoint_not_served", message=f"The model's backend does not serve {endpoint}.")


def result(batch_id: str, index: int, custom_id: bytes, end: Success, attempts: int) -> tuple[bytes, LineMark]:
    """The result line of a call that was answered well, and what the fold is told of it."""
    text = _line(batch_id, index, custom_id, answer=end.answer, body=end.body, attempts=attempts)
    return text, LineMark(index, len(text), False, end.tokens, attempts)


def failed(batch_id: str, index: int, custom_id: bytes, end: Failure, attempts: int) -> tuple[bytes, LineMark]:
    """The result line of a call that was given up, and what the fold is told of it.

    What the server said stands in it wherever there was an answer; what we make of it stands beside that.
    """
    told = {"code": end.code, "message": end.message}
    if end.answer is None:
        text = shapes.unanswered(batch_id, index, custom_id, **told)
    else:
        error = None if end.code == REFUSED else told
        text = _line(batch_id, index, custom_id, answer=end.answer, body=end.body, error=error, attempts=attempts)
    return text, LineMark(index, len(text), failed=True, attempts=attempts)


def _line(
    batch_id: str,
    index: int,
    custom_id: bytes,
    *,
    answer: Answer,
    body: bytes,
    attempts: int,
    error: dict[str, str] | None = None,
) -> bytes:
    return shapes.answered(
        batch_id,
        index,
        custom_id,
        status=answer.status,
        request_id=request_id(answer.request_id, batch_id, index, attempts),
        body=body,
        error=error,
    )


def request_id(given: str | None, batch_id: str, index: int, attempts: int) -> str:
    """The backend's name for the request, if it is a sane one, else the one that it was sent."""
    if given is not None and _REQUEST_ID.match(given) is not None:
        return given
    return sent_id(batch_id, index, attempts)


def sent_id(batch_id: str, index: int, attempts: int) -> str:
    """What a call is named by: `batch_…-17-1` is the first try of line 17, counted from 0."""
    name = f"{batch_id}-{index}-{attempts}"
    if _REQUEST_ID.match(name) is not None:
        return name
    # Another writer of the topic has chosen the batch's id.
    return "req_" + hashlib.blake2b(name.encode(), digest_size=16).hexdigest()


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


def _error_body(answer: Answer, message: str) -> bytes:
    """What a server said with an error, as a JSON object: its own, or its words in OpenAI's shape."""
    if reply.is_object(answer.body):
        return answer.body
    try:
        if (mended := reply_forms.mended(answer.body)) is not None:
            return mended
    except reply_forms.UnsupportedFormError:
        pass
    text = answer.body[: WORDS_BYTES_MAX + 1].decode(errors="replace").strip()
    if len(answer.body) > WORDS_BYTES_MAX:
        text = f"{text[:-1]}…"
    error = {"message": text or message, "type": REFUSED, "param": None, "code": None}
    return orjson.dumps({"error": error})
