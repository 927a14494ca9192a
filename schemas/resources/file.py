"""The file, and its upload in parts, as the API shows them."""

from typing import Literal

from tidemill.schemas.bounds import Filename, Id, Shape, Size, Text, Time, Word

PURPOSES_UPLOADED = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
OBJECT_BYTES = 4096
"""The overhead of an object: its records, its rows, and the unused rest of its last disk block."""
EXPIRES_AFTER_SECONDS = (3600, 2_592_000)
"""Bounds of a request on the life of a file."""
UPLOAD_LIFE_SECONDS = 3600
"""How long an upload accepts parts."""


class File(Shape):
    """A file. Times are Unix seconds."""

    id: Id
    object: Literal["file"] = "file"
    bytes: Size
    created_at: Time
    expires_at: Time | None = None
    filename: Filename
    purpose: Word
    status: Literal["uploaded", "processed", "error"] = "processed"
    status_details: Text | None = None


class Upload(Shape):
    """A file that is uploaded in parts. Times are Unix seconds."""

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


class UploadPart(Shape):
    """A part in the store."""

    id: Id
    object: Literal["upload.part"] = "upload.part"
    created_at: Time
    upload_id: Id


def cost_bytes(size: int) -> int:
    """The bytes that an object counts against a project's limit."""
    return size + OBJECT_BYTES


def file_kind(*, failed: bool, number: int | None = None) -> str:
    """The kind of a batch's file: `errors`, `output`, or `output-00001` and so on for numbered files."""
    kind = "errors" if failed else "output"
    return kind if number is None else f"{kind}-{number:05d}"
