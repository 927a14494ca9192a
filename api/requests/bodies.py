"""Request bodies of batches and uploads; a body of a single route is defined beside the route."""

import re
from typing import Annotated, Any, Final, get_args

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from tidemill.api.requests import faults
from tidemill.api.requests.fields import Endpoint, Expiry, Id, Metadata, OneOf, Purpose, Window
from tidemill.api.requests.reading import Body, settings_of
from tidemill.schemas.bounds import NUMBER_MAX, UPLOAD_PARTS_MAX, Filename, Url
from tidemill.schemas.resources.batch import Dedupe

MIME_CHARS_MAX: Final = 255
MD5: Final = "[0-9a-fA-F]{32}"


def _check_size(size: int, info: ValidationInfo) -> int:
    if size > (maximum := settings_of(info).assembled_bytes_max):
        raise faults.above(maximum)
    return size


def _check_parts(part_ids: list[str]) -> list[str]:
    if not part_ids:
        raise faults.wrong("empty_array", "at least one part is needed.")
    if len(set(part_ids)) != len(part_ids):
        raise faults.wrong("invalid_value", "a part is named twice.")
    return part_ids


def _check_md5(md5: str) -> str:
    if re.fullmatch(MD5, md5) is None:
        raise faults.wrong("invalid_value", "it must be 32 hexadecimal digits.")
    return md5.lower()


class NewBatch(Body):
    """The body of a create; unknown fields are ignored."""

    endpoint: Endpoint
    """The endpoint of every line of the file."""
    completion_window: Window
    """How long the batch may take; one of the windows of the installation, which may have a default."""
    input_file_id: Id
    """A file of the purpose `batch`."""
    metadata: Metadata | None = None
    """Up to 16 pairs; lists can be filtered by them."""
    output_expires_after: Expiry | None = None
    """How long the output and error files are kept."""
    dedupe: Annotated[str, OneOf(get_args(Dedupe))] | None = None
    """Equal lines to ask once: `none`, `batch` if their answer is deterministic, `all` in any case. By default the
    model of the first line decides."""
    callback_url: Annotated[Url, Field(min_length=1)] | None = None
    """Gets the event of the batch's end; signed with the secret of the project's callbacks."""

    @model_validator(mode="before")
    @classmethod
    def _with_window(cls, fields: Any, info: ValidationInfo) -> Any:
        default = settings_of(info).default_window
        if default is None or not isinstance(fields, dict) or fields.get("completion_window") is not None:
            return fields
        return fields | {"completion_window": default}


class NewUpload(Body):
    """The body of an upload in parts."""

    filename: Filename
    purpose: Purpose
    mime_type: Annotated[str, Field(max_length=MIME_CHARS_MAX)]
    bytes: Annotated[int, Field(ge=1, le=NUMBER_MAX), AfterValidator(_check_size)]
    """The size of all parts together; the installation bounds it."""
    expires_after: Expiry | None = None
    """How long the file is kept."""


class Completion(Body):
    """The body that completes an upload."""

    part_ids: Annotated[
        list[Id], Field(max_length=UPLOAD_PARTS_MAX, fail_fast=True, json_schema_extra={"minItems": 1}),
        AfterValidator(_check_parts),
    ]  # fmt: skip
    """The parts in order, each once."""
    md5: Annotated[str, Field(json_schema_extra={"pattern": f"^{MD5}$"}), AfterValidator(_check_md5)] | None = None
    """The MD5 of the whole file, in hexadecimal."""
