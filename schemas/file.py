"""The file, as the API shows it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

PURPOSES_UPLOADED = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
BATCH_FILE_LIFE_SECONDS = 30 * 86_400
EXPIRES_AFTER_SECONDS = (3600, 2_592_000)


class File(BaseModel):
    """A file. Times are Unix seconds."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: str
    status: Literal["uploaded", "processed", "error"] = "processed"
    status_details: str | None = None
