"""The upload in parts, as the API shows it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from tidemill.schemas.file import File

LIFE_SECONDS = 3600
"""How long an upload takes parts."""


class Upload(BaseModel):
    """A file that arrives in parts. Times are Unix seconds."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    """What its parts must add up to."""
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled", "expired"] = "pending"
    file: File | None = None


class UploadPart(BaseModel):
    """A part that is in the store."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str
