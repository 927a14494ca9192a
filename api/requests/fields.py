"""Types of request fields, each with its bound."""

import functools
import re
from collections.abc import Callable, Collection
from typing import Annotated, Any, Final

from fastapi import Depends
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
)
from pydantic_core import CoreSchema, core_schema

from tidemill.api import errors
from tidemill.api.requests import faults
from tidemill.api.requests.parts import ID, PathId
from tidemill.api.requests.reading import Body, settings_of
from tidemill.schemas import bounds, buckets
from tidemill.schemas.buckets import Address, AddressError
from tidemill.schemas.endpoints import ENDPOINTS
from tidemill.schemas.log import intake
from tidemill.schemas.log.intake import IntakeError
from tidemill.schemas.resources import access
from tidemill.schemas.resources.file import EXPIRES_AFTER_SECONDS, PURPOSES_UPLOADED

SECONDS_MAX: Final = 1 << 53
"""The latest time in a request, Unix seconds: the largest integer that every JSON parser keeps exact."""
_LOW, _HIGH = EXPIRES_AFTER_SECONDS


class OneOf:
    """A string that is one of some values."""

    def __init__(self, values: Collection[str]) -> None:
        """Refer to the values, which may grow until the first request."""
        self._values = values

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Check the value after its type."""
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Add the values to the schema."""
        return {**handler(schema), "enum": list(self._values)}

    def _check(self, value: str) -> str:
        if value not in self._values:
            raise faults.none_of(tuple(self._values))
        return value


def _check_window(window: str, info: ValidationInfo) -> str:
    if window not in (windows := settings_of(info).windows):
        raise faults.none_of(tuple(windows))
    return window


def _check_cursor(text: str) -> str:
    if re.fullmatch(ID, text) is None:
        raise faults.cursor()
    return text


def _check_count(pairs: Any) -> Any:
    # Before each is checked: a body may have a hundred thousand of them.
    if isinstance(pairs, dict) and len(pairs) > bounds.METADATA_PAIRS_MAX:
        raise faults.too_many(bounds.METADATA_PAIRS_MAX)
    return pairs


def _check_project(text: str) -> str:
    if not access.is_project(text):
        raise faults.wrong(
            "invalid_value",
            "it must be 1 to 64 letters, digits, '.', '_' or '-', and begin with a letter or digit.",
        )
    return text


def _check_stream(text: str) -> str:
    try:
        return intake.stream_name(text)
    except IntakeError as error:
        raise faults.wrong("invalid_value", f"{error}.") from None


def _check_input(value: Any, check_id: ValidatorFunctionWrapHandler) -> Any:
    if isinstance(value, str) and value.startswith(buckets.SCHEME):
        return _checked(value, buckets.parse_object)
    if isinstance(value, str) and len(value) > bounds.ID_CHARS_MAX:
        raise faults.wrong("invalid_value", "it must be the id of a file, or an address like s3://bucket/key.")
    return check_id(value)


def _check_folder(text: str) -> str:
    return _checked(text, buckets.parse_folder)


def _checked(text: str, parse: Callable[[str], Address]) -> str:
    try:
        return str(parse(text))
    except AddressError as error:
        raise faults.wrong("invalid_uri", str(error)) from None


Id = Annotated[str, Field(max_length=bounds.ID_CHARS_MAX, pattern=ID)]
"""The id of an object."""
InputFile = Annotated[
    Id,
    WrapValidator(_check_input),
    WithJsonSchema({"type": "string", "maxLength": buckets.URI_CHARS_MAX, "pattern": f"^({ID[1:-1]}|s3://.+)$"}),
]
"""The id of a file, or the address of an object in a bucket."""
OutputUri = Annotated[buckets.Uri, AfterValidator(_check_folder)]
"""The address of a folder in a bucket."""
Cursor = Annotated[
    str, Field(json_schema_extra={"maxLength": bounds.ID_CHARS_MAX, "pattern": ID}), AfterValidator(_check_cursor)
]
"""The id of the last object of the page before."""
Endpoint = Annotated[str, OneOf(ENDPOINTS)]
Purpose = Annotated[str, OneOf(PURPOSES_UPLOADED)]
Window = Annotated[bounds.Word, Field(examples=["24h"]), AfterValidator(_check_window)]
"""A completion window; one of those of the installation."""
Model = Annotated[bounds.Name, Field(min_length=1)]
Metadata = Annotated[bounds.Metadata, BeforeValidator(_check_count)]
Project = Annotated[str, Field(json_schema_extra={"pattern": access.PROJECT}), AfterValidator(_check_project)]
AnyProject = Annotated[str, Field(max_length=64)]
"""A project, or `*` for all."""
Stream = Annotated[bounds.Name, Field(min_length=1), AfterValidator(_check_stream)]


class Expiry(Body):
    """When a file is deleted, counted from its creation."""

    anchor: Annotated[str, OneOf(("created_at",))]
    seconds: Annotated[int, Field(ge=_LOW, le=_HIGH)]


_object_id = functools.partial(PathId, max_length=bounds.ID_CHARS_MAX, pattern=ID)
BatchId = Annotated[str, Depends(_object_id("batch_id", errors.no_batch))]
FileId = Annotated[str, Depends(_object_id("file_id", errors.no_file))]
EndpointId = Annotated[str, Depends(_object_id("endpoint_id", errors.no_endpoint))]
DeliveryId = Annotated[str, Depends(_object_id("delivery_id", errors.no_delivery))]
KeyId = Annotated[str, Depends(_object_id("key_id", errors.no_key_with))]
UploadId = Annotated[str, Depends(_object_id("upload_id", errors.no_upload))]
ModelName = Annotated[str, Depends(PathId("model", errors.no_model, max_length=bounds.NAME_CHARS_MAX))]
