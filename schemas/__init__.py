"""Schemas and rules of records, objects and answers, without I/O."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec
import orjson

T = TypeVar("T")

UNREADABLE: Final = (msgspec.MsgspecError, json.JSONDecodeError, UnicodeError, RecursionError)
"""Errors that decoders raise at bytes from outside.

msgspec raises one of its own errors at JSON of another shape, but `UnicodeDecodeError` at a string that is not
UTF-8, and `RecursionError` at JSON with too many levels. orjson raises `JSONDecodeError`.
"""


def decoded(decoder: msgspec.json.Decoder[T], text: bytes | msgspec.Raw) -> T | None:
    """The value of JSON text; None if it is not JSON, or of another shape."""
    try:
        return decoder.decode(text)
    except UNREADABLE:
        return None


def fingerprint_of(fields: Mapping[str, Any]) -> str:
    """A SHA-256 of fields, in hex; equal fields have equal ones, in any order."""
    return hashlib.sha256(orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)).hexdigest()
