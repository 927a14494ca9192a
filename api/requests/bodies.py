"""Request bodies of batches and uploads; a body of a single route is defined beside the route."""

import re
from typing import Annotated, Any, Final, Self, get_args

from pydantic import AfterValidator, ConfigDict, Field, JsonValue, ValidationInfo, WithJsonSchema, model_validator

from tidemill.api import errors
from tidemill.api.requests import faults
from tidemill.api.requests.fields import (
    Endpoint,
    Expiry,
    Id,
    InputFile,
    Metadata,
    OneOf,
    OutputUri,
    Purpose,
    Window,
)
from tidemill.api.requests.inline import InlineBody, Requests
from tidemill.api.requests.reading import Body, settings_of
from tidemill.schemas.bounds import NUMBER_MAX, UPLOAD_PARTS_MAX, Filename, Url
from tidemill.schemas.buckets import Format
from tidemill.schemas.resources.batch import Dedupe

MIME_CHARS_MAX: Final = 255
_GIVEN: Final[JsonValue] = {"not": {"type": "null"}}
_INPUTS: Final[dict[str, JsonValue]] = {"input_file_id": _GIVEN, "requests": _GIVEN, "open": {"const": True}}
"""The fields of which a create has one, with their schemas; null counts as absent."""
_OBJECT: Final = {"type": "object", "x-opaque": True}
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


class Validation(Body):
    """A check of the answers of a batch."""

    answer_schema: Annotated[dict[str, Any], Field(alias="schema"), WithJsonSchema(_OBJECT)]
    """The JSON Schema that the text of each answer must fit, which is then JSON."""


class NewBatch(InlineBody):
    """The body of a create; unknown fields are ignored."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [{"required": [name], "properties": {name: value}} for name, value in _INPUTS.items()]
        }
    )

    endpoint: Endpoint
    """The endpoint of every line of the file."""
    completion_window: Window
    """How long the batch may take; one of the windows of the installation, which may have a default."""
    input_file_id: InputFile | None = None
    """A file of the purpose `batch`, or the address of an object in a bucket: `s3://bucket/key`; or `requests`."""
    requests: Requests | None = None
    """The requests themselves, in place of a file."""
    open: bool = False
    """Whether requests follow in appends, until a seal, in place of a file."""
    metadata: Metadata | None = None
    """Up to 16 pairs; lists can be filtered by them."""
    output_expires_after: Expiry | None = None
    """How long the output and error files are kept."""
    dedupe: Annotated[str, OneOf(get_args(Dedupe))] | None = None
    """Equal lines to ask once: `none`, `batch` if their answer is deterministic, `all` in any case. By default the
    model of the first line decides."""
    rerun_of: Id | None = None
    """A batch of the project whose lines this one rephrases; each of the two names the other."""
    validation: Annotated[Validation | None, Field(alias="validate")] = None
    """A check of each answer; an answer that fails it is a failed line with the code `invalid_output`."""
    callback_url: Annotated[Url, Field(min_length=1)] | None = None
    """Gets the event of the batch's end; signed with the secret of the project's callbacks."""
    output_uri: OutputUri | None = None
    """A folder in a bucket, `s3://bucket/folder`, that gets a copy of the output and the errors."""
    output_format: Annotated[str, OneOf(get_args(Format))] | None = None
    """The format of these copies: `jsonl`, which is the default, or `parquet`."""

    @model_validator(mode="before")
    @classmethod
    def _with_window(cls, fields: Any, info: ValidationInfo) -> Any:
        default = settings_of(info).default_window
        if default is None or not isinstance(fields, dict) or fields.get("completion_window") is not None:
            return fields
        return fields | {"completion_window": default}

    @model_validator(mode="after")
    def _with_one_input(self) -> Self:
        inputs = {"input_file_id": self.input_file_id, "requests": self.requests, "open": self.open or None}
        given = [name for name, value in inputs.items() if value is not None]
        if not given:
            raise errors.missing("input_file_id")
        if len(given) > 1:
            raise errors.invalid_param(given[1], f"it cannot be combined with '{given[0]}'.")
        if self.open and self.dedupe not in {None, "none"}:
            raise errors.invalid_param("dedupe", "an open batch asks every line.")
        if self.output_format is not None and self.output_uri is None:
            raise errors.missing("output_uri")
        return self


class Append(InlineBody):
    """The body of an append to an open batch."""

    sequence: Annotated[int, Field(ge=1, le=NUMBER_MAX)]
    """Counts the appends of the batch, from 1; an append that is sent again has the same."""
    requests: Requests


class Seal(Body):
    """The body of a seal."""

    sequence: Annotated[int, Field(ge=0, le=NUMBER_MAX)] | None = None
    """The number of appends that the batch has; another number is refused."""


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
