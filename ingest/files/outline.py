"""Decodes the few fields of a long line that the check needs, and skips the rest."""

import functools
import re
from collections.abc import Iterable
from typing import Any, Final

import msgspec
import orjson

from tidemill.ingest.files.verdict import LineFault
from tidemill.schemas.endpoints import Endpoint
from tidemill.schemas.jsonl import nesting

FIELDS_MAX: Final = 10_000
"""Fields of a body. Processors read them into a `dict` to add those of the settings: a million would hold up their
event loop for half a second."""


def _struct(name: str, fields: Iterable[str], **others: Any) -> type[msgspec.Struct]:
    """A struct that keeps these fields as raw JSON; a field may have a name that no attribute can have."""
    names = {f"field_{number}": field for number, field in enumerate(fields)}
    kept = [
        (attribute, others.get(field, msgspec.Raw) | msgspec.UnsetType, msgspec.UNSET)
        for attribute, field in names.items()
    ]
    return msgspec.defstruct(name, kept, rename=names)


_FIELDS = ("custom_id", "method", "url", "body")
_LARGE = ("tools",)
"""Fields that may have many values, beside those that the check needs."""
_lines = msgspec.json.Decoder(_struct("_Line", _FIELDS))
_valid = msgspec.json.Decoder(msgspec.Raw)
_STARTS_WITH_INTEGER = re.compile(rb"\[\s*+(?:\]|-?\d++(?![.eE]))")


class _Decoders:
    """The decoders of one endpoint's lines."""

    def __init__(self, names: tuple[str, ...]) -> None:
        body = _struct("_Body", dict.fromkeys(("model", *names, "dimensions", "encoding_format", *_LARGE)))
        self.requests = msgspec.json.Decoder(_struct("_Request", _FIELDS, body=body))
        self.bodies = msgspec.json.Decoder(body)


_decoders = functools.cache(_Decoders)


def outlined(data: bytes, endpoint: Endpoint) -> object:
    """The fields of a line that the check needs; deeper values cost no memory.

    Lists of embedding inputs, and fields with files that are not text, stay raw JSON.

    Raises:
        LineFault: The body has too many fields.
        msgspec.DecodeError: The line is not JSON.
        UnicodeDecodeError: The line is not UTF-8; the decoder does not validate the text that it skips.
        orjson.JSONDecodeError: The line is not JSON.
    """
    if not data.isascii():
        data.decode()
    names = (name for form in endpoint.forms for name in form)
    decoders = _decoders((*names, *endpoint.refused, *endpoint.files, *endpoint.choices))
    try:
        # One pass over the line: the decoder holds the GIL all the time.
        line = _fields(decoders.requests.decode(data))
    except msgspec.ValidationError:
        return _odd(data, endpoint, decoders)
    _check_fields(data, _fields(line["body"]).values() if "body" in line else ())
    return {name: _body(value, endpoint) if name == "body" else _value(value) for name, value in line.items()}


def _check_fields(data: bytes, known: Iterable[msgspec.Raw]) -> None:
    """Refuse a request whose body has too many fields: each has quotes, and a colon outside of known values."""
    colons = data.count(b":")
    if colons <= FIELDS_MAX or data.count(b'"') // 2 <= FIELDS_MAX:
        return
    if colons - sum(bytes(value).count(b":") for value in known) <= FIELDS_MAX:
        return
    body = bytes(_fields(_lines.decode(data)).get("body", b""))
    if nesting.elements(body) > FIELDS_MAX:
        raise LineFault("invalid_request", f"The body has more than {FIELDS_MAX:,} fields.", "body")


def count_of_inputs(given: object) -> int:
    """The number of texts to embed; a list of integers is one text, as tokens."""
    if type(given) is msgspec.Raw:
        text = bytes(given)
        return 1 if _STARTS_WITH_INTEGER.match(text) else nesting.elements(text)
    if type(given) is list and given and type(given[0]) is not int:
        return len(given)
    return 1


def _odd(data: bytes, endpoint: Endpoint, decoders: _Decoders) -> object:
    """`outlined` for a line that is not a request: it, or its body, is not an object."""
    try:
        line = _fields(_lines.decode(data))
    except msgspec.ValidationError:
        return _value(_valid.decode(data))
    is_object = _first(line.get("body", msgspec.Raw())) == b"{"
    if is_object:
        line["body"] = decoders.bodies.decode(line["body"])
    return {
        name: _body(raw, endpoint) if is_object and name == "body" else _value(raw) for name, raw in line.items()
    }


def _body(body: msgspec.Struct, endpoint: Endpoint) -> dict[str, object]:
    return {name: raw if _is_kept(name, raw, endpoint) else _value(raw) for name, raw in _fields(body).items()}


def _is_kept(name: str, raw: msgspec.Raw, endpoint: Endpoint) -> bool:
    if name in endpoint.files:
        return _first(raw) in {b"[", b"{"}
    return endpoint.embeds and name == endpoint.prompt and _first(raw) == b"["


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
    named = zip(found.__struct_encode_fields__, msgspec.structs.astuple(found), strict=True)
    return {name: raw for name, raw in named if raw is not msgspec.UNSET}
