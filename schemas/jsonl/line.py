"""The three JSONL shapes: a line of the input, of the output file and of the error file.

Bodies pass through as bytes. The characters U+2028, U+2029 and U+0085, which may occur in strings of JSON, are
escaped, because many readers take them for the end of a line (`str.splitlines`).
"""

import functools
import hashlib
import re
from typing import NamedTuple

import msgspec
import orjson

from tidemill.schemas import UNREADABLE, ids
from tidemill.schemas.bounds import CUSTOM_ID_CHARS_MAX

EXPIRED = ("batch_expired", "This request could not be executed before the completion window expired.")
CANCELLED = ("batch_cancelled", "This request was not executed because the batch was cancelled.")

REFUSALS = frozenset({
    "invalid_json_line", "line_too_long", "missing_required_parameter", "invalid_type", "invalid_method",
    "invalid_url", "invalid_request", "empty_string", "string_above_max_length", "duplicate_custom_id",
    "streaming_unsupported", "model_not_found", "model_not_supported", "mismatched_model",
    "reply_too_large", "invalid_file",
})  # fmt: skip
"""Error codes of lines that ingest rejects in streams, and in files whose lines fail alone (`Endpoint`)."""


class InputLine(msgspec.Struct, frozen=True):
    """An input line that ingest has checked; `custom_id` and `body` are the JSON text as it was written."""

    custom_id: msgspec.Raw
    body: msgspec.Raw


class Call(NamedTuple):
    """How a line got its result."""

    attempts: int
    """Calls made for it."""
    server: bytes
    """The name of the server of the last one, as JSON."""
    seconds: float
    """How long that took."""
    tokens: tuple[int, int] | None = None
    """Input and output tokens that the batch counts for the line, so that no reader has to interpret the usage in
    the body; None if it failed, or they are unknown."""


_SEPARATORS = (("\u2028", rb"\u2028"), ("\u2029", rb"\u2029"), ("\u0085", rb"\u0085"))
"""With their escapes in JSON."""
_CALL = b',"tidemill":{"attempts":%d,"server":%b,"seconds":%.3f}'
_COUNTED = b',"tidemill":{"attempts":%d,"server":%b,"seconds":%.3f,"input_tokens":%d,"output_tokens":%d}'
_inputs = msgspec.json.Decoder(InputLine)


class _Named(msgspec.Struct):
    custom_id: msgspec.Raw


_named = msgspec.json.Decoder(_Named)


class _Body(msgspec.Struct):
    model: str


class _Modelled(msgspec.Struct):
    body: _Body


_modelled = msgspec.json.Decoder(_Modelled)


_BODY = b'"body"'
_MODEL = b'"model"'
_first_model = re.compile(rb'\{\s*"model"\s*:\s*("(?:[^"\\]|\\.)*")', re.DOTALL)


class _Result(msgspec.Struct):
    custom_id: msgspec.Raw
    response: msgspec.Raw
    error: msgspec.Raw
    tidemill: dict[str, msgspec.Raw] = {}


_results = msgspec.json.Decoder(_Result)
_encoder = msgspec.json.Encoder()


def parse(line: bytes) -> InputLine:
    """Split a checked input line without decoding its body.

    Raises:
        msgspec.MsgspecError: The line is not a JSON object, or lacks a field.
    """
    return _inputs.decode(line)


def custom_id_of(line: bytes) -> bytes:
    """The `custom_id` of any input line, as its JSON text; null if the line has no valid one."""
    try:
        found = _named.decode(line).custom_id
        text = msgspec.json.decode(found, type=str)
    except UNREADABLE:
        return b"null"
    return bytes(found) if 0 < len(text) <= CUSTOM_ID_CHARS_MAX else b"null"


def name_digest(custom_id: str | bytes) -> bytes:
    """A hash of a `custom_id`, 16 bytes."""
    data = custom_id if isinstance(custom_id, bytes) else custom_id.encode(errors="surrogatepass")
    return hashlib.blake2b(data, digest_size=16).digest()


def model_of(line: bytes) -> str | None:
    """The model that any input line names; None if it names none."""
    try:
        return _modelled.decode(line).body.model
    except UNREADABLE:
        return None


def begins_with_another_model(line: bytes, model: str) -> bool:
    """Whether the body of a valid input line begins with another model than `model`, its last one.

    Parsers take the last one, and processors compare the beginning of a body.
    """
    if line.startswith(_after_model(model), line.find(_MODEL, line.find(_BODY)) + len(_MODEL)):
        return False
    found = _first_model.match(_inputs.decode(line).body)
    return found is not None and msgspec.json.decode(found[1]) != model


@functools.lru_cache(maxsize=1024)
def _after_model(model: str) -> tuple[bytes, ...]:
    """How the text of a line goes on after the key of this model, as most encoders write it."""
    quoted = orjson.dumps(model)
    texts = quoted, quoted.replace(b"/", rb"\/")
    return tuple(b":%b%b" % (space, text) for text in texts for space in (b"", b" "))


def answered(
    batch_id: str,
    index: int,
    custom_id: bytes,
    *,
    status: int,
    request_id: str,
    body: bytes,
    call: Call | None = None,
    error: dict[str, str] | None = None,
) -> bytes:
    """The result line of a call with an answer, for the output file, or with an `error` for the error file.

    The `custom_id` is the JSON string of the input, with its quotes. The body is a JSON object; its newlines,
    which can only be whitespace, become spaces. An error is a code and a message. `call` goes into the field
    `tidemill`.
    """
    if b"\n" in body or b"\r" in body:
        body = body.replace(b"\n", b" ").replace(b"\r", b" ")
    text = b'{"id":"%b","custom_id":%b,"response":{"status_code":%d,"request_id":%b,"body":%b},"error":%b%b}\n' % (
        ids.line_id(batch_id, index).encode(),
        custom_id,
        status,
        orjson.dumps(request_id),
        body,
        b"null" if error is None else orjson.dumps(error),
        b"" if call is None else _extras(call),
    )
    return escaped(text)


def unanswered(
    batch_id: str, index: int, custom_id: bytes, *, code: str, message: str, call: Call | None = None
) -> bytes:
    """The error line of a request without an answer."""
    text = b'{"id":"%b","custom_id":%b,"response":null,"error":%b%b}\n' % (
        ids.line_id(batch_id, index).encode(),
        custom_id,
        orjson.dumps({"code": code, "message": message}),
        b"" if call is None else _extras(call),
    )
    return escaped(text)


def _extras(call: Call) -> bytes:
    return _CALL % call[:3] if call.tokens is None else _COUNTED % (*call[:3], *call.tokens)


def copied(batch_id: str, index: int, custom_id: bytes, original: bytes, *, is_billed: bool = False) -> bytes:
    """The result line of a request that gets the answer to an equal one; it names that line's `custom_id`.

    It says so if its tokens are billed, and else counts none.

    Raises:
        msgspec.MsgspecError: The original is not a result line.
    """
    found = _results.decode(original)
    counted = {"billed": True} if is_billed else {name: 0 for name in found.tidemill if name.endswith("_tokens")}
    extras = _encoder.encode(found.tidemill | {"copy_of": found.custom_id, **counted})
    return b'{"id":"%b","custom_id":%b,"response":%b,"error":%b,"tidemill":%b}\n' % (
        ids.line_id(batch_id, index).encode(),
        escaped(custom_id),
        found.response,
        found.error,
        extras,
    )


def escaped(text: bytes) -> bytes:
    """A JSON text in which characters that many readers take for the end of a line are escaped."""
    # Searching for one byte is ten times as fast as for three; few texts pass the first test.
    if text.isascii() or not _may_separate(text):
        return text
    characters = text.decode(errors="replace")
    for separator, escape in _SEPARATORS:
        if separator in characters:
            text = text.replace(separator.encode(), escape)
    return text


def _may_separate(text: bytes) -> bool:
    """Whether the text has the first and last bytes of a separator."""
    return (b"\xe2" in text and (b"\xa8" in text or b"\xa9" in text)) or (b"\xc2" in text and b"\x85" in text)
