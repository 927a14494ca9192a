"""Files that a line names: a data URL, or the id of a file that its project has uploaded; no address is fetched.

A field has one such text, an object `{"file_id": …}` or `{"image_url": …}`, or a list of these. Source of the
objects: OpenAI's API reference, "Create image edit".
"""

import binascii
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from tidemill.schemas import ids

FILES_MAX: Final = 16
"""Files of one line. Source: OpenAI's API reference, "Create image edit"."""
BYTES_MAX: Final = 64 << 20
"""Bytes of all files of one line."""
HEAD_BYTES: Final = 16
"""First bytes of a file from which `sniffed` finds its type."""

_DATA_URL: Final = re.compile(
    r"data:([a-z]{1,16}/[a-z0-9.+-]{1,64})(?:;[a-z]{1,16}=[\w.,+-]{1,64}){0,4};base64,", re.ASCII
)
_NAMES: Final = ("file_id", "image_url")
_MAGIC: Final = (
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (8, b"WEBP", "image/webp"),
    (0, b"GIF8", "image/gif"),
    (8, b"WAVE", "audio/wav"),
    (0, b"fLaC", "audio/flac"),
    (0, b"OggS", "audio/ogg"),
    (0, b"ID3", "audio/mpeg"),
    (4, b"ftypM4A", "audio/mp4"),
    (4, b"ftyp", "video/mp4"),
    (0, b"\x1a\x45\xdf\xa3", "video/webm"),
)
"""Offset, bytes and media type. Source: the WHATWG standard "MIME Sniffing"."""
_MPEG_FRAME: Final = re.compile(rb"\xff[\xe2-\xff]")
_ENDINGS: Final = {"jpeg": "jpg", "mpeg": "mp3", "x-wav": "wav", "wave": "wav", "x-m4a": "m4a", "x-flac": "flac"}
"""Usual endings of filenames that differ from the subtype: some servers look at nothing else."""


class AttachmentError(Exception):
    """A line does not name its files correctly; the text says why."""

    def __init__(self, text: str, field: str = "") -> None:
        super().__init__(text)
        self.field = field


class Inline(NamedTuple):
    """A file in the line."""

    media_type: str
    base64: str

    @property
    def size(self) -> int:
        """Its bytes."""
        return len(self.base64) // 4 * 3 - self.base64[-2:].count("=")

    def content(self) -> bytes:
        """The bytes.

        Raises:
            AttachmentError: They are not base64.
        """
        try:
            return binascii.a2b_base64(self.base64, strict_mode=True)
        except ValueError:
            raise AttachmentError("its data URL is not valid base64") from None


class Stored(NamedTuple):
    """An uploaded file."""

    file_id: str


Attachment = Inline | Stored


def named(value: Any) -> list[str]:
    """The texts of a field that name files.

    Raises:
        AttachmentError: The value has another form.
    """
    found = [_named(each) for each in (value if isinstance(value, list) else [value])]
    if not 0 < len(found) <= FILES_MAX:
        raise AttachmentError(f"expected 1 to {FILES_MAX} files, but got {len(found)}")
    return found


def _named(value: Any) -> str:
    if isinstance(value, dict):
        texts = [value[name] for name in _NAMES if value.get(name) is not None]
        value = texts[0] if len(texts) == 1 else None
    if not isinstance(value, str):
        raise AttachmentError("expected a data URL or a file id, or an object with one as file_id or image_url")
    return value


def parsed(text: str, project: str) -> Attachment:
    """The file that a text names.

    Raises:
        AttachmentError: It is neither a data URL nor the id of a file that the project may have uploaded.
    """
    if (found := _DATA_URL.match(text)) is not None:
        return Inline(found[1], text[found.end() :])
    if ids.is_file_id(text):
        if not ids.is_owned(text, project):
            raise AttachmentError("the project has not uploaded this file")
        return Stored(text)
    if text.startswith("data:"):
        raise AttachmentError("expected a data URL of the form data:TYPE;base64,DATA")
    raise AttachmentError("expected a data URL or the id of an uploaded file; no address is fetched")


def sniffed(head: bytes) -> str | None:
    """The media type of a file, by its first bytes; None if it is unknown."""
    for offset, magic, media_type in _MAGIC:
        if head.startswith(magic, offset):
            return media_type
    return "audio/mpeg" if _MPEG_FRAME.match(head) else None


def filename(number: int, media_type: str) -> str:
    """A filename with an ending for the media type."""
    subtype = media_type.partition("/")[2]
    return f"file-{number}.{_ENDINGS.get(subtype, subtype)}"


def fields_of(body: Mapping[str, Any], files: Iterable[str]) -> list[tuple[str, str]]:
    """The fields of a body that hold files, each with a text that names one.

    Raises:
        AttachmentError: A field has another form, or there are too many files.
    """
    found: list[tuple[str, str]] = []
    for field in files:
        if (value := body.get(field)) is None:
            continue
        try:
            found += [(field, text) for text in named(value)]
        except AttachmentError as error:
            raise AttachmentError(str(error), field) from None
        if len(found) > FILES_MAX:
            raise AttachmentError(f"expected at most {FILES_MAX} files, but got {len(found)}", field)
    return found
