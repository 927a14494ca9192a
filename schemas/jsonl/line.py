"""The three JSONL shapes: a line of the input, of the output file and of the error file.

A body passes through as the bytes it came in. Where a shape is written, it is put together from such bytes, and
what many readers take for the end of a line (`str.splitlines`) is escaped: U+2028, U+2029 and U+0085 may stand in
JSON, and they can only stand inside its strings.
"""

import msgspec
import orjson

from tidemill.schemas import ids

EXPIRED = ("batch_expired", "This request could not be executed before the completion window expired.")
CANCELLED = ("batch_cancelled", "This request was not executed because the batch was cancelled.")

REFUSALS = frozenset({
    "invalid_json_line", "line_too_long", "missing_required_parameter", "invalid_type", "invalid_method",
    "invalid_url", "invalid_request", "string_below_min_length", "string_above_max_length", "duplicate_custom_id",
    "streaming_unsupported", "model_not_found", "model_not_supported", "mismatched_model",
    "reply_too_large",
})  # fmt: skip
"""What ingest says of a line of a stream that cannot be run; of a file it fails the batch."""


class InputLine(msgspec.Struct, frozen=True):
    """An input line that ingest has checked; `custom_id` and `body` are the JSON text as it was written."""

    custom_id: msgspec.Raw
    body: msgspec.Raw


_SEPARATORS = (("\u2028", rb"\u2028"), ("\u2029", rb"\u2029"), ("\u0085", rb"\u0085"))
"""And their escapes in JSON."""
_inputs = msgspec.json.Decoder(InputLine)


def parse(line: bytes) -> InputLine:
    """Take a checked input line apart without decoding its body.

    Raises:
        msgspec.MsgspecError: It is no JSON object, or a field is missing.
    """
    return _inputs.decode(line)


def answered(
    batch_id: str,
    index: int,
    custom_id: bytes,
    *,
    status: int,
    request_id: str,
    body: bytes,
    error: dict[str, str] | None = None,
) -> bytes:
    """The line of a call that was answered, whatever the status: for the output file where it was answered well.

    Args:
        batch_id: The batch.
        index: The line's place in it, from 0.
        custom_id: The JSON string as the user wrote it, quotes included.
        status: The HTTP status of the answer.
        request_id: The id of the request at the backend.
        body: The JSON object that was answered.
        error: Code and message of what is concluded from it, for the error file.

    Returns:
        One line, its newline included. A newline inside `body` can only stand between two tokens, so it is
        made a space.
    """
    if b"\n" in body or b"\r" in body:
        body = body.replace(b"\n", b" ").replace(b"\r", b" ")
    text = b'{"id":"%b","custom_id":%b,"response":{"status_code":%d,"request_id":%b,"body":%b},"error":%b}\n' % (
        ids.line_id(batch_id, index).encode(),
        custom_id,
        status,
        orjson.dumps(request_id),
        body,
        b"null" if error is None else orjson.dumps(error),
    )
    return _escaped(text)


def unanswered(batch_id: str, index: int, custom_id: bytes, *, code: str, message: str) -> bytes:
    """The line of a request that has no answer: it was never run, or every try broke off. For the error file."""
    text = b'{"id":"%b","custom_id":%b,"response":null,"error":%b}\n' % (
        ids.line_id(batch_id, index).encode(),
        custom_id,
        orjson.dumps({"code": code, "message": message}),
    )
    return _escaped(text)


def _escaped(text: bytes) -> bytes:
    # A byte is found at the speed of memory, a character of three bytes only at a tenth of it: most text that is
    # not ASCII is done with the first test.
    if text.isascii() or not _may_separate(text):
        return text
    characters = text.decode(errors="replace")
    for separator, escape in _SEPARATORS:
        if separator in characters:
            text = text.replace(separator.encode(), escape)
    return text


def _may_separate(text: bytes) -> bool:
    """Whether there are the bytes that the separators begin and end with."""
    return (b"\xe2" in text and (b"\xa8" in text or b"\xa9" in text)) or (b"\xc2" in text and b"\x85" in text)
