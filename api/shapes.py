"""The shapes of requests and answers as OpenAPI tells them.

Bodies are checked by hand (`draft.py`, `deposit.py`), in OpenAI's words; these say the same to a machine.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tidemill.api.draft import KEY_CHARS_MAX, PAIRS_MAX, VALUE_CHARS_MAX
from tidemill.api.receiving.deposit import FILENAME_CHARS_MAX, MIME_CHARS_MAX, PARTS_MAX
from tidemill.schemas.batch import ENDPOINTS, Batch
from tidemill.schemas.file import EXPIRES_AFTER_SECONDS, PURPOSES_UPLOADED, File

Purpose = Annotated[str, Field(json_schema_extra={"enum": list(PURPOSES_UPLOADED)})]
_LOW, _HIGH = EXPIRES_AFTER_SECONDS
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=KEY_CHARS_MAX)], Annotated[str, Field(max_length=VALUE_CHARS_MAX)]],
    Field(max_length=PAIRS_MAX),
]


class _Shape(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class Expiry(_Shape):
    """When a file is deleted, counted from its creation."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=_LOW, le=_HIGH)]


class NewBatch(_Shape):
    """What a batch is made of; fields that are not known are let pass."""

    input_file_id: str
    """A file of the purpose `batch`."""
    endpoint: Annotated[str, Field(json_schema_extra={"enum": list(ENDPOINTS)})]
    """What every line of the file asks for."""
    completion_window: Annotated[str, Field(examples=["24h"])]
    """How long the batch may take; the installation says which windows there are."""
    metadata: Metadata | None = None
    """Up to 16 pairs of one's own, which lists can be filtered by."""
    output_expires_after: Expiry | None = None
    """How long the output and error files are kept."""


class NewUpload(_Shape):
    """A file that will arrive in parts."""

    filename: Annotated[str, Field(max_length=FILENAME_CHARS_MAX)]
    purpose: Purpose
    bytes: Annotated[int, Field(ge=1)]
    """What the parts will add up to."""
    mime_type: Annotated[str, Field(max_length=MIME_CHARS_MAX)]
    expires_after: Expiry | None = None
    """How long the file is kept."""


class Completion(_Shape):
    """How an upload is put together."""

    part_ids: Annotated[list[str], Field(min_length=1, max_length=PARTS_MAX)]
    """The parts in their order, each once."""
    md5: Annotated[str, Field(pattern="^[0-9a-fA-F]{32}$")] | None = None
    """Of the whole file, in hexadecimal."""


class BatchPage(_Shape):
    """Batches, the newest first."""

    object: Literal["list"]
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FilePage(_Shape):
    """Files."""

    object: Literal["list"]
    data: list[File]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedFile(_Shape):
    """A file that is not there any more."""

    id: str
    object: Literal["file"]
    deleted: Literal[True]


class ModelObject(_Shape):
    """A model that batches may name."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(_Shape):
    """Models."""

    object: Literal["list"]
    data: list[ModelObject]


class Health(_Shape):
    """The process is well."""

    status: Literal["ok"]


def parameter(name: str, kind: str, text: str, *, where: str = "query", **more: Any) -> dict[str, Any]:
    """A parameter that need not be given; `kind` is its JSON type, `more` goes into its schema."""
    return {
        "name": name, "in": where, "required": False, "description": text, "schema": {"type": kind, **more},
    }  # fmt: skip


def page(default: int, maximum: int) -> list[dict[str, Any]]:
    """The parameters of a list that is read page by page."""
    return [
        parameter("limit", "integer", "How many a page has.", default=default, minimum=1, maximum=maximum),
        parameter("after", "string", "The id of the last object of the page before."),
        parameter("order", "string", "By the time of creation.", default="desc", enum=["asc", "desc"]),
    ]


def body(shape: type[BaseModel]) -> dict[str, Any]:
    """A body of JSON that must be there."""
    return {"required": True, "content": {"application/json": {"schema": shape.model_json_schema()}}}


def form(required: list[str], fields: Mapping[str, object]) -> dict[str, Any]:
    """A body that is a form with a file in it."""
    schema = {"type": "object", "required": required, "properties": dict(fields)}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


BINARY: dict[str, Any] = {"type": "string", "format": "binary"}
LIMITED: dict[int | str, dict[str, Any]] = {429: {"description": "A limit of the project is reached."}}
"""What a route may answer that brings something new."""
