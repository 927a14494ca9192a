"""Models of answers."""

from typing import Literal

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
    """A deleted file."""

    id: str
    object: Literal["file"]
    deleted: Literal[True]


class DeletedBatch(_Shape):
    """A deleted batch."""

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
    """The process is healthy."""

    status: Literal["ok"]
