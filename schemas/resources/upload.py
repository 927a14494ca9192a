"""The upload in parts, as the API shows it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from tidemill.schemas.bounds import Filename, Id, Size, Time, Word
from tidemill.schemas.resources.file import File

LIFE_SECONDS = 3600
"""How long an upload accepts parts."""


class Upload(BaseModel):
    """A file that is uploaded in parts. Times are Unix seconds."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: Id
    object: Literal["upload"] = "upload"
    bytes: Size
    """The sum of its parts."""
    created_at: Time
    expires_at: Time
    filename: Filename
    purpose: Word
    status: Literal["pending", "completed", "cancelled", "expired"] = "pending"
    file: File | None = None


class UploadPart(BaseModel):
    """A part in the store."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: Id
    object: Literal["upload.part"] = "upload.part"
    created_at: Time
    upload_id: Id
