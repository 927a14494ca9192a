"""What a client asks for when it begins an upload in parts, and when it completes it; checked field by field."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from tidemill.api import draft, errors
from tidemill.schemas.file import BATCH_FILE_LIFE_SECONDS, PURPOSES_UPLOADED

PARTS_MAX = 10_000
FILENAME_CHARS_MAX = 1024
MIME_CHARS_MAX = 255

_MD5 = re.compile(r"[0-9a-fA-F]{32}\Z")


class Deposit(BaseModel):
    """An upload in parts as it was asked for."""

    model_config = ConfigDict(frozen=True)

    filename: str
    purpose: str
    bytes: int
    life_seconds: int | None
    """How long the file is kept; None is for good."""


class Order(BaseModel):
    """How an upload is to be put together."""

    model_config = ConfigDict(frozen=True)

    part_ids: tuple[str, ...]
    md5: str | None = None


def parse(body: bytes, *, bytes_max: int) -> Deposit:
    """Read the body of a create.

    Raises:
        ApiError: 400 with the field's name.
    """
    fields = draft.json_object(body)
    filename = draft.text(fields, "filename")
    if len(filename) > FILENAME_CHARS_MAX:
        raise errors.too_long("filename", FILENAME_CHARS_MAX, len(filename))
    purpose = draft.choice(fields, "purpose", PURPOSES_UPLOADED)
    if len(mime_type := draft.text(fields, "mime_type")) > MIME_CHARS_MAX:
        raise errors.too_long("mime_type", MIME_CHARS_MAX, len(mime_type))
    size = draft.integer(fields, "bytes")
    if size < 1:
        raise errors.too_small("bytes", 1, size)
    if size > bytes_max:
        raise errors.too_large("bytes", bytes_max, size)
    life = draft.expires_after(fields, "expires_after")
    life_seconds = life.seconds if life else BATCH_FILE_LIFE_SECONDS if purpose == "batch" else None
    return Deposit(filename=filename, purpose=purpose, bytes=size, life_seconds=life_seconds)


def order(body: bytes) -> Order:
    """Read the body of a completion.

    Raises:
        ApiError: 400 with the field's name.
    """
    fields = draft.json_object(body)
    return Order(part_ids=_part_ids(fields), md5=_md5(fields))


def _part_ids(fields: Mapping[str, Any]) -> tuple[str, ...]:
    param = "part_ids"
    if (value := fields.get(param)) is None:
        raise errors.missing(param)
    if not isinstance(value, list):
        raise errors.wrong_type(param, "an array of strings", value)
    if not value:
        raise errors.invalid(f"Invalid '{param}': at least one part is needed.", param=param, code="empty_array")
    if len(value) > PARTS_MAX:
        raise errors.array_too_long(param, PARTS_MAX, len(value))
    for index, part_id in enumerate(value):
        if not isinstance(part_id, str):
            raise errors.wrong_type(f"{param}[{index}]", "a string", part_id)
    if len(set(value)) != len(value):
        raise errors.invalid(f"Invalid '{param}': a part is named twice.", param=param, code="invalid_value")
    return tuple(value)


def _md5(fields: Mapping[str, Any]) -> str | None:
    value = fields.get("md5")
    if value is None:
        return None
    if not isinstance(value, str):
        raise errors.wrong_type("md5", "a string", value)
    if _MD5.match(value) is None:
        raise errors.invalid("Invalid 'md5': it must be 32 hexadecimal digits.", param="md5", code="invalid_value")
    return value.lower()
