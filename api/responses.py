"""The models of answers, and the descriptions of bodies and forms for the OpenAPI document."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tidemill.schemas.resources.batch import Batch
from tidemill.schemas.resources.file import File


class _Shape(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


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


class DeletedBatch(_Shape):
    """A batch that is not there any more."""

    id: str
    object: Literal["batch"]
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


def body(shape: type[BaseModel]) -> dict[str, Any]:
    """A body of JSON that must be there."""
    return {"required": True, "content": {"application/json": {"schema": shape.model_json_schema()}}}


def form(file: Mapping[str, object], fields: type[BaseModel] | None = None) -> dict[str, Any]:
    """A body that is a form with a file in it, and maybe other fields."""
    others = fields.model_json_schema() if fields is not None else {}
    schema = {
        "type": "object",
        "required": [*file, *others.get("required", ())],
        "properties": {**file, **others.get("properties", {})},
    }
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


BINARY: dict[str, Any] = {"type": "string", "format": "binary"}
LIMITED: dict[int | str, dict[str, Any]] = {429: {"description": "A limit of the project is reached."}}
"""What a route may answer that brings something new."""
