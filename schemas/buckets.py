"""Addresses of objects in buckets of users, and the prefixes that bound them.

An address is `s3://bucket/key`. It is used as it is written: nothing is decoded or normalised, and an address that
a server could read in another way is refused.
"""

import re
import unicodedata
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints

from tidemill.schemas.bounds import Number, Param, Shape, Size, Text

SCHEME: Final = "s3://"
KEY_BYTES_MAX: Final = 1024
"""Bytes of a key in UTF-8: the bound of S3."""
FOLDER_BYTES_MAX: Final = 900
"""Bytes of the key of a folder, so that the names in it fit."""
URI_CHARS_MAX: Final = len(SCHEME) + 64 + KEY_BYTES_MAX
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]\Z")

Uri = Annotated[str, StringConstraints(max_length=URI_CHARS_MAX)]


class AddressError(Exception):
    """A text is not an address; the error's text says why, as a sentence."""


class BucketObject(Shape):
    """One version of an object of a bucket."""

    uri: Uri
    etag: Param
    bytes: Annotated[Size, Field(ge=1)]


Format = Literal["jsonl", "parquet"]
"""The format of copies of output and errors."""


class OutputCopy(Shape):
    """The outcome of copying an ended batch's files to a bucket."""

    status: Literal["done", "failed"]
    uri: Uri
    """The folder of the batch."""
    files: Number = 0
    """Files in it, except `receipt.json`."""
    reason: Text | None = None
    """Why the copy failed; None if it did not."""


@dataclass(frozen=True)
class Address:
    """An object or a folder in a bucket."""

    bucket: str
    segments: tuple[str, ...]

    @property
    def key(self) -> str:
        """The key of the object, or of the folder without its last slash."""
        return "/".join(self.segments)

    def within(self, folder: "Address") -> bool:
        """Whether it is the folder, or lies in it."""
        return self.bucket == folder.bucket and self.segments[: len(folder.segments)] == folder.segments

    def child(self, *names: str) -> "Address":
        """An object in the folder."""
        return Address(self.bucket, (*self.segments, *names))

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.key}"


def parse_object(text: str) -> Address:
    """The address of an object.

    Raises:
        AddressError: It is none.
    """
    address = _parsed(text, KEY_BYTES_MAX)
    if not address.segments:
        raise AddressError("it must name an object, like s3://bucket/folder/requests.jsonl.")
    return address


def parse_folder(text: str) -> Address:
    """The address of a folder; a slash at its end makes no difference, and a whole bucket is one, too.

    Raises:
        AddressError: It is none.
    """
    _, _, key = text.removeprefix(SCHEME).partition("/")
    return _parsed(text[:-1] if key.endswith("/") else text, FOLDER_BYTES_MAX)


def _parsed(text: str, bytes_max: int) -> Address:
    if not text.startswith(SCHEME):
        raise AddressError("it must begin with s3://.")
    bucket, _, key = text.removeprefix(SCHEME).partition("/")
    if not _BUCKET.match(bucket) or ".." in bucket:
        raise AddressError("it must name a bucket: 3 to 63 lower-case letters, digits, '.' or '-'.")
    segments = tuple(key.split("/")) if key else ()
    if any(segment in {"", ".", ".."} for segment in segments):
        raise AddressError("its key must not have empty parts, '.' or '..' between slashes.")
    if "%" in key or "\\" in key or not key.isprintable() or unicodedata.normalize("NFKC", key) != key:
        raise AddressError(
            "its key must not have '%', '\\', control characters, or characters that Unicode (NFKC) would replace."
        )
    if len(key.encode()) > bytes_max:
        raise AddressError(f"its key must have at most {bytes_max} bytes.")
    return Address(bucket, segments)
