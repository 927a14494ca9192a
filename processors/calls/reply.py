"""Checks the body of a 2xx reply: whether it is a success, and its token counts.

The body passes through as bytes. Only the token counts and the signs of a failure are decoded: an `error`, a
choice that ended with one, a `status` other than that of an answer, and the fields that a good reply of the
endpoint must have. Other values are skipped: 32 MiB as a `dict` or a `list` would take a second and 500 MB.
"""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, Final

import msgspec

from tidemill.processors.failures import FailureKind
from tidemill.processors.memory_budget import SMALL_BYTES
from tidemill.schemas import UNREADABLE, decoded
from tidemill.schemas.bounds import TEXT_CHARS_MAX, TOKENS_MAX
from tidemill.schemas.endpoints import ENDPOINTS, UNKNOWN, Endpoint, ReplyRules
from tidemill.schemas.jsonl import nesting

Tokens = tuple[int, int, int, int]
"""Input tokens, cached ones of these, output tokens, reasoning tokens of these or units of the endpoint."""
NO_TOKENS: Final = (0, 0, 0, 0)

LEVELS_MAX: Final = 512
"""Levels of nesting in an error and in a normalized reply. Decoders stop at about 950 levels."""
_BROKEN: Final = frozenset({"error", "abort", "cancelled", "timeout"})
"""The `finish_reason` of choices that the server broke off. Source: vLLM has `error` after a transient fault of
its own; vLLM and SGLang have `abort` when they shut down or pause; TensorRT-LLM has the others."""
_OK: Final = 200
_SERVER_ERROR: Final = 500
_STATUS_DIGITS: Final = 3
_STATUSES: Final = range(400, 600)
_BY_TYPE: Final = {
    b'"authentication_error"': 401,
    b'"permission_error"': 403,
    b'"rate_limit_error"': 429,
    b'"api_error"': 500,
    b'"timeout_error"': 504,
    b'"overloaded_error"': 529,
    b'"server_error"': 500,
    b'"rate_limit_exceeded"': 429,
    b'"requests"': 429,
    b'"tokens"': 429,
}
"""The statuses that a retry may change, by the code or type of an error. Source: the API references of Anthropic,
"Errors", and of OpenAI, "Error codes" and "The response object"."""
_TYPES: Final = {b"[": list, b"{": dict, b'"': str, b"n": NoneType, b"": None}
"""The type of a JSON value by its first byte, None if it is absent; any other is a number or a boolean."""
_FALSY: Final = frozenset({b"null", b"false", b"0", b'""', b"{}", b"[]"})
_NONE: Final = frozenset({b"", b"null"})
_BLANK_LIST_BYTES_MAX: Final = 64
CHOICE_BYTES_MIN: Final = 32
"""Bytes of a choice; one without text has 43. As objects, smaller ones take many times the memory of a reply."""


@dataclass(frozen=True, slots=True)
class ReplyError:
    """A 2xx reply that is no answer."""

    status: int | None
    """The HTTP status that an error names or implies, if any; 200 if the reply has no `error`."""
    message: str
    kind: FailureKind = FailureKind.ERROR_IN_REPLY


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
    total_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    reasoning_tokens: int | None = None
    """SGLang's; others have it in the details."""


_ABSENT: Final = msgspec.Raw()


class _Choice(msgspec.Struct, gc=False):
    finish_reason: str | None = None
    error: msgspec.Raw = _ABSENT


_UNREAD: Final = [_Choice()]
"""In place of choices that are not read."""


class _Known(msgspec.Struct, gc=False):
    usage: _Usage | None = None
    error: msgspec.Raw = _ABSENT
    choices: list[_Choice] | None = None


class _OddKnown(msgspec.Struct):
    """A reply with fields of unexpected types."""

    usage: msgspec.Raw = _ABSENT
    error: msgspec.Raw = _ABSENT
    choices: msgspec.Raw = _ABSENT


def _read_by(rules: ReplyRules) -> Iterator[str]:
    yield from rules.fields
    yield from filter(None, (rules.filled, rules.ending, "status" if rules.statuses else None))


# The lists of endpoints that only the settings name are decoded separately.
_NEEDED: Final = sorted({name for entry in ENDPOINTS.values() for name in _read_by(entry.reply)} - {"choices"})
_RAW_FIELDS: Final = [(name, msgspec.Raw, _ABSENT) for name in _NEEDED]
_Reply: Final[Any] = msgspec.defstruct("_Reply", _RAW_FIELDS, bases=(_Known,), gc=False)
_OddReply: Final[Any] = msgspec.defstruct("_OddReply", _RAW_FIELDS, bases=(_OddKnown,))


_ERROR_FIELDS: Final = ("message", "code", "status", "status_code", "type")
_Error: Final[Any] = msgspec.defstruct("_Error", [(name, msgspec.Raw, _ABSENT) for name in _ERROR_FIELDS])
_Object: Final[Any] = msgspec.defstruct("_Object", [])
_replies: Final = msgspec.json.Decoder(_Reply)
_choices: Final = msgspec.json.Decoder(list[_Choice])
_completions: Final = msgspec.json.Decoder(_Known)
"""Faster, and enough for endpoints whose replies need only choices."""
_odd_replies: Final = msgspec.json.Decoder(_OddReply)
_errors: Final = msgspec.json.Decoder(_Error)
_objects: Final = msgspec.json.Decoder(_Object)
_strings: Final = msgspec.json.Decoder(str)
_values: Final = msgspec.json.Decoder()


def is_object(body: bytes) -> bool:
    """Whether this is one JSON object by RFC 8259, in UTF-8, nested within `LEVELS_MAX`."""
    try:
        _objects.decode(body)
    except UNREADABLE:
        return False
    return is_utf8(body) and not nesting.exceeds(body, LEVELS_MAX)


def is_utf8(body: bytes) -> bool:
    """Whether the whole body is UTF-8."""
    # The decoder does not check strings that it skips.
    if body.isascii():
        return True
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def read(body: bytes, endpoint: str) -> Tokens | ReplyError | None:
    """The token counts of a reply, or its error: zeros if it has no counts, None if they are impossible.

    Audio costs tokens or seconds; a reply that reports neither has None.

    Args:
        body: The reply's body.
        endpoint: The path that was called, like `/v1/embeddings`.

    Raises:
        MsgspecError: The body is not a JSON object.
    """
    if not is_utf8(body):
        raise msgspec.DecodeError("the body is not UTF-8")
    entry = ENDPOINTS.get(endpoint, UNKNOWN)
    try:
        reply, tokens = _decoded(body, entry)
        failure = _error(reply, body, entry)
        if failure is None and entry.unit != "tokens":
            return _with_units(tokens, body, reply, entry)
    except RecursionError as error:
        raise msgspec.DecodeError("the body is nested too deeply") from error
    return failure or tokens


def _decoded(body: bytes, entry: Endpoint) -> tuple[Any, Tokens | None]:
    """The fields of a reply, and its token counts."""
    if len(body) <= SMALL_BYTES:
        try:
            reply = (_completions if entry.reply.filled == "choices" else _replies).decode(body)
            return reply, _elsewhere(body, entry) if reply.usage is None else _mapped(reply.usage, entry)
        except msgspec.ValidationError:
            pass  # an array, or an object with fields of unexpected types
    reply, usage = _odd(_odd_replies.decode(body))
    return reply, _elsewhere(body, entry) if bytes(usage) in _NONE else _odd_tokens(usage, entry)


def _with_units(tokens: Tokens | None, body: bytes, reply: Any, entry: Endpoint) -> Tokens | None:
    if tokens is None:
        return None
    if entry.unit == "images":
        images = bytes(reply.data)
        is_deep = nesting.exceeds(images, nesting.LEVELS_MAX)
        return None if is_deep else (*tokens[:3], nesting.elements(images))
    return tokens if tokens[0] or tokens[2] else _seconds(body)


def _seconds(body: bytes) -> Tokens | None:
    """The length of the audio in whole seconds, rounded up: of `usage`, else of `verbose_json`."""
    text = msgspec.Raw(body)
    found = bytes(field(field(text, "usage"), "seconds"))
    try:
        seconds = math.ceil(float((bytes(field(text, "duration")) if found in _NONE else found).strip(b'"')))
    except (ValueError, OverflowError):
        return None
    return (0, 0, 0, seconds) if 0 <= seconds <= TOKENS_MAX else None


def _elsewhere(body: bytes, entry: Endpoint) -> Tokens | None:
    """The token counts of a reply without `usage`."""
    for place in entry.reply.usage[1:]:
        found = msgspec.Raw(body)
        for name in place.split("."):
            found = field(found, name)
        if bytes(memoryview(found)[:1]) == b"{" and bytes(found) not in _FALSY:
            return _odd_tokens(found, entry)
    return NO_TOKENS


def _odd(reply: Any) -> tuple[Any, msgspec.Raw]:
    """The valid parts of a reply with fields of unexpected types, and its `usage`."""
    choices = None
    if not _is_empty(reply.choices):
        is_unread = _has_small_choices(bytes(reply.choices))
        choices = _UNREAD if is_unread else decoded(_choices, reply.choices) or [_Choice()]
    fields = {name: getattr(reply, name) for name in _NEEDED}
    return _Reply(error=reply.error, choices=choices, **fields), reply.usage


def _field_of(reply: Any, body: bytes, name: str) -> msgspec.Raw:
    if name in _NEEDED:
        found: msgspec.Raw = getattr(reply, name)
        return found
    return field(msgspec.Raw(body), name)


def _error(reply: Any, body: bytes, entry: Endpoint) -> ReplyError | None:
    ended = _ended(reply.status, entry.reply.statuses) if entry.reply.statuses else None
    if reply.error is not _ABSENT and bytes(reply.error) not in _FALSY:
        status, words = _status(reply.error), _message(reply.error) or "The reply is an error without a message."
        is_broken_off = ended is not None and ended.kind is FailureKind.BROKEN_OFF and status == _SERVER_ERROR
        return _broken_off(words) if is_broken_off else ReplyError(status, words)
    if ended is not None:
        return ended
    if entry.reply.filled == "choices" and (failure := _error_of(reply.choices or ())) is not None:
        return failure
    if (name := _missing(reply, body, entry)) is not None:
        return ReplyError(_status(msgspec.Raw(body)) or _OK, f"The reply has no {name}.")
    if (name := entry.reply.ending) is not None and bytes(_field_of(reply, body, name)) in _NONE:
        return _broken_off(f"The reply has no {name}.")
    return None


def _error_of(choices: Sequence[_Choice]) -> ReplyError | None:
    if choices is _UNREAD:
        words = f"The reply has many choices of less than {CHOICE_BYTES_MIN} bytes."
        return ReplyError(None, words, FailureKind.UNSUPPORTED_REPLY)
    for choice in choices:
        if choice.finish_reason in _BROKEN:
            words = _message(choice.error) or f"A choice ended with the finish_reason {choice.finish_reason}."
            status = _status(choice.error)
            return _broken_off(words) if status is None else ReplyError(status, words)
    return None


def _broken_off(why: str) -> ReplyError:
    return ReplyError(None, f"The server broke its answer off: {why}", FailureKind.BROKEN_OFF)


def _ended(status: msgspec.Raw, statuses: Mapping[str, bool]) -> ReplyError | None:
    """Why a reply with a `status` is no answer."""
    word = bytes(status).strip(b'"').decode(errors="replace")[:TEXT_CHARS_MAX]
    is_answer = bytes(status) in _NONE or statuses.get(word)
    if is_answer:
        return None
    words = f"The reply has the status {word}."
    return ReplyError(None, words, FailureKind.UNSUPPORTED_REPLY) if is_answer is None else _broken_off(words)


def _missing(reply: Any, body: bytes, entry: Endpoint) -> str | None:
    """A field that a good reply has, and this one has not."""
    if (name := entry.reply.filled) is not None and (
        not reply.choices if name == "choices" else _is_empty(_field_of(reply, body, name))
    ):
        return name
    for name, kinds in entry.reply.fields.items():
        if _TYPES.get(bytes(memoryview(_field_of(reply, body, name))[:1]), int) not in kinds:
            return name
    return None


def _is_empty(items: msgspec.Raw) -> bool:
    """Whether this is not a list with an item."""
    view = memoryview(items)
    if bytes(view[:1]) != b"[":
        return True
    return len(view) <= _BLANK_LIST_BYTES_MAX and not bytes(view[1:-1]).strip(b" \t\r\n")


def _has_small_choices(text: bytes) -> bool:
    """Whether a list has too many choices for its size, or for their nesting cannot be counted."""
    if len(text) <= SMALL_BYTES or text.count(b"{") * CHOICE_BYTES_MIN <= len(text):
        return False
    return nesting.exceeds(text, nesting.LEVELS_MAX) or nesting.elements(text) * CHOICE_BYTES_MIN > len(text)


@functools.cache
def _holder(name: str) -> msgspec.json.Decoder[Any]:
    fields = [("value", msgspec.Raw, _ABSENT)]
    return msgspec.json.Decoder(msgspec.defstruct("_Holder", fields, rename={"value": name}))


def field(text: msgspec.Raw, name: str) -> msgspec.Raw:
    """A field of an object; the values of others are skipped."""
    found = decoded(_holder(name), text)
    return _ABSENT if found is None else found.value


def _status(error: msgspec.Raw) -> int | None:
    """The HTTP status in an error, as a number or as text, or by its code or type."""
    fields = decoded(_errors, error) or _Error()
    for found in (fields.code, fields.status, fields.status_code):
        text = bytes(found).strip(b'"')
        if len(text) == _STATUS_DIGITS and text.isdigit() and int(text) in _STATUSES:
            return int(text)
    return _BY_TYPE.get(bytes(fields.code)) or _BY_TYPE.get(bytes(fields.type))


def _message(error: msgspec.Raw) -> str:
    """The message of an error, or the error itself if it has none."""
    if error is _ABSENT:
        return ""
    found = decoded(_errors, error)
    message = error if found is None or found.message is _ABSENT else found.message
    words = decoded(_strings, message)
    return (bytes(message).decode(errors="replace") if words is None else words)[:TEXT_CHARS_MAX]


def _odd_tokens(text: msgspec.Raw, entry: Endpoint) -> Tokens | None:
    """The counts of a `usage` with unexpected types; None if a count is impossible."""
    usage = decoded(_values, text) if len(memoryview(text)) <= SMALL_BYTES else None
    if not isinstance(usage, dict):
        return None
    fields: dict[str, Any] = {}
    for name in _Usage.__struct_fields__:
        value = usage.get(name)
        if name.endswith("_details"):
            if isinstance(value, dict):
                fields[name] = _Details(*(_whole(value.get(part)) for part in _Details.__struct_fields__))
        else:
            fields[name] = _whole(value)
    return _mapped(_Usage(**fields), entry)


def _whole(value: object) -> int | None:
    """A whole number; -1 for anything else."""
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else -1


def _mapped(usage: _Usage, entry: Endpoint) -> Tokens | None:
    """Map both names: prompt and completion (chat, embeddings), or input and output (responses, messages)."""
    given = usage.prompt_tokens if usage.input_tokens is None else usage.input_tokens
    made = usage.completion_tokens if usage.output_tokens is None else usage.output_tokens
    if given is None and not entry.generates:
        given = usage.total_tokens
    given, made = given or 0, made or 0
    given_details = usage.input_tokens_details or usage.prompt_tokens_details
    made_details = usage.output_tokens_details or usage.completion_tokens_details
    cached = given_details.cached_tokens if given_details else None
    if entry.is_anthropics:
        cached, written = usage.cache_read_input_tokens or 0, usage.cache_creation_input_tokens or 0
        given = given + cached + written if min(given, cached, written) >= 0 else -1
    if not (0 <= given <= TOKENS_MAX and 0 <= made <= TOKENS_MAX):
        return None
    reasoning = made_details.reasoning_tokens if made_details else None
    if reasoning is None:
        reasoning = usage.reasoning_tokens
    return given, _part(cached, given), made, _part(reasoning, made)


def _part(number: int | None, whole: int) -> int:
    """A count of part of the tokens; 0 if it is impossible, since nothing is billed by it."""
    return number if number is not None and 0 <= number <= whole else 0
