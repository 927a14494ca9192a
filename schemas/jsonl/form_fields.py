"""The fields of the form (`multipart/form-data`) that a server gets for a body with files, and their bounds.

A form has the full name of a field before each item of a list and each value of an object, so a body of 100 KB
could become a form of 500 MB: its size is the product of the names and the items.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

import msgspec

from tidemill.schemas import UNREADABLE, T
from tidemill.schemas.jsonl import nesting
from tidemill.schemas.jsonl.attachments import AttachmentError

PARTS_MAX: Final = 4096
"""Arrays, objects, keys and commas of a body; servers that read forms with Starlette take 1,000 fields."""
GROWTH_BYTES_MAX: Final = 1 << 20
"""Bytes by which the fields without files may be larger than the whole body."""
FIELD_BYTES: Final = 96
"""Bytes around the name and the value of a field: the boundary, the head and the ends of lines."""

_bodies: Final = msgspec.json.Decoder(dict[str, Any])
_values: Final = msgspec.json.Decoder()
_names: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class FormError(AttachmentError):
    """A body cannot be a form; the text says why, `field` is empty if that is no single field."""


def decoded(body: bytes | memoryview | msgspec.Raw, files: Collection[str]) -> tuple[dict[str, Any], int]:
    """The fields of a body, and the bytes of those that are not in `files`, as a form.

    Raises:
        FormError: The body has too many values, its form would be too large, or a number is out of range.
    """
    _check_parts(memoryview(body))
    fields = _read(_bodies, body)
    size = _checked_size({name: value for name, value in fields.items() if name not in files}, body)
    return fields, size


def check(body: bytes | memoryview | msgspec.Raw, files: Collection[str]) -> None:
    """Check what `decoded` does, without decoding the fields in `files`: they may have many MiB.

    Raises:
        FormError: As `decoded`.
    """
    _check_parts(memoryview(body))
    texts = _read(_names, body)
    _checked_size({name: _read(_values, text) for name, text in texts.items() if name not in files}, body)


def _check_parts(body: memoryview) -> None:
    if len(body) > PARTS_MAX and nesting.parts(text := bytes(body)) > PARTS_MAX:
        raise FormError(f"it has more values than a form may have ({PARTS_MAX} with names)", _fullest(text))


def _read(decoder: msgspec.json.Decoder[T], text: bytes | memoryview | msgspec.Raw) -> T:
    try:
        return decoder.decode(text)
    except UNREADABLE as error:
        raise FormError(f"it cannot be a form: {error}") from None


def _checked_size(fields: Mapping[str, Any], body: bytes | memoryview | msgspec.Raw) -> int:
    sizes = {name: _size(_name_size(name), value) for name, value in fields.items()}
    size = sum(sizes.values())
    if size > len(memoryview(body)) + GROWTH_BYTES_MAX:
        largest = max(sizes, key=lambda name: sizes[name])
        raise FormError(
            f"as a form, which repeats the name for each item, it would have {sizes[largest]} bytes", largest
        )
    return size


def flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """The names and texts of a value; null has none."""
    match value:
        case None:
            return
        case str():
            yield name, value
        case list():
            for each in value:
                yield from flat(f"{name}[]", each)
        case dict():
            for key, each in value.items():
                yield from flat(f"{name}[{key}]", each)
        case _:
            yield name, msgspec.json.encode(value).decode()


def _size(name: int, value: Any) -> int:
    """The bytes of what `flat` makes of a value, and of the names on the way; `name` has so many bytes."""
    match value:
        case None:
            return name
        case str():
            return FIELD_BYTES + name + len(value.encode(errors="replace"))
        case list():
            return name + sum(_size(name + len("[]"), each) for each in value)
        case dict():
            return name + sum(_size(name + len("[]") + _name_size(key), each) for key, each in value.items())
        case _:
            return FIELD_BYTES + name + len(msgspec.json.encode(value))


def _name_size(name: str) -> int:
    """Bytes of a name in the head of a field, where an escape has three bytes (`%22`)."""
    return len(name.encode(errors="replace")) + 2 * sum(map(name.count, '"\r\n'))


def _fullest(text: bytes) -> str:
    """The field with the most values; empty if the body has too many fields."""
    if nesting.exceeds(text, nesting.DEPTH_MAX) or nesting.elements(text) > PARTS_MAX:
        return ""
    try:
        fields: Mapping[str, msgspec.Raw] = _names.decode(text)
    except UNREADABLE:
        return ""
    return max(fields, key=lambda name: nesting.parts(bytes(fields[name])), default="")
