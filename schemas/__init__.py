"""Schemas and rules of records, objects and answers, without I/O."""

import json
from typing import Final, TypeVar

import msgspec

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
