"""Decodes the few fields of a long line that the check needs, and skips the rest."""

from collections.abc import Iterable
from typing import Any

import msgspec
import orjson

from tidemill.schemas.endpoints import ENDPOINTS


def _struct(name: str, fields: Iterable[str], **others: Any) -> type[msgspec.Struct]:
    """A struct that keeps these fields as raw JSON."""
    kept = [(field, others.get(field, msgspec.Raw) | msgspec.UnsetType, msgspec.UNSET) for field in fields]
    return msgspec.defstruct(name, kept)


_FIELDS = ("custom_id", "method", "url", "body")
_REQUIRED = {name: None for entry in ENDPOINTS.values() for form in entry.forms for name in form}
_OPTIONAL = {name: None for entry in ENDPOINTS.values() for name in (*entry.files, *entry.choices)}
_COUNTED = {entry.prompt for entry in ENDPOINTS.values() if entry.embeds}
_FILES = {name for entry in ENDPOINTS.values() for name in entry.files}
_Body = _struct(
    "_Body", dict.fromkeys(("stream", "model", *_REQUIRED, *_OPTIONAL, "dimensions", "encoding_format"))
)
_requests = msgspec.json.Decoder(_struct("_Request", _FIELDS, body=_Body))
_lines = msgspec.json.Decoder(_struct("_Line", _FIELDS))
_bodies = msgspec.json.Decoder(_Body)
_valid = msgspec.json.Decoder(msgspec.Raw)


def outlined(data: bytes) -> object:
    """The fields of a line that the check needs; deeper values cost no memory.

    Lists of embedding inputs, and fields with files that are no text, stay raw JSON.

    Raises:
        msgspec.DecodeError: The line is not JSON.
        UnicodeDecodeError: The line is not UTF-8; the decoder does not validate the text that it skips.
        orjson.JSONDecodeError: The line is not JSON.
    """
    if not data.isascii():
        data.decode()
    try:
        # One pass over the line: the decoder holds the GIL all the time.
        line = _fields(_requests.decode(data))
    except msgspec.ValidationError:
        return _odd(data)
    return {name: _body(value) if name == "body" else _value(value) for name, value in line.items()}


def _odd(data: bytes) -> object:
    """`outlined` for a line that is not a request: it, or its body, is not an object."""
    try:
        line = _fields(_lines.decode(data))
    except msgspec.ValidationError:
        return _valid.decode(data)
    is_object = _first(line.get("body", msgspec.Raw())) == b"{"
    if is_object:
        line["body"] = _bodies.decode(line["body"])
    return {name: _body(raw) if is_object and name == "body" else _value(raw) for name, raw in line.items()}


def _body(body: msgspec.Struct) -> dict[str, object]:
    fields = _fields(body)
    return {
        name: raw
        if (name in _COUNTED and _first(raw) == b"[") or (name in _FILES and _first(raw) in {b"[", b"{"})
        else _value(raw)
        for name, raw in fields.items()
    }


def _value(raw: msgspec.Raw) -> object:
    """A decoded value; an array or object only keeps its kind, and whether it is empty."""
    text = bytes(raw)
    if text[:1] == b"[":
        return [None] if text[1:-1].strip() else []
    if text[:1] == b"{":
        return {"": None} if text[1:-1].strip() else {}
    return orjson.loads(text)


def _first(raw: msgspec.Raw) -> bytes:
    return bytes(memoryview(raw)[:1])


def _fields(found: msgspec.Struct) -> dict[str, Any]:
    """The fields that are set."""
    return {name: raw for name, raw in msgspec.structs.asdict(found).items() if raw is not msgspec.UNSET}
