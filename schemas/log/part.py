"""Parts: objects with finished lines of a batch, to be merged into its files.

A part has `TMP1`, the number of lines, columns of unsigned 32-bit little-endian integers (index, size in bytes,
number of the model, four of usage), then the lines, sorted by index. A finished file has the same columns in a
separate object, so that any of its lines can be found.
"""

import hashlib
import struct
import sys
from array import array
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from tidemill.schemas.bounds import Id, Number, Shape
from tidemill.schemas.resources.file import file_kind

_HEAD: Final = struct.Struct("<4sI")
_MAGIC: Final = b"TMP1"
_COLUMNS: Final = 7
USAGE: Final = 4
"""Numbers of usage of a line."""
UNKNOWN_USAGE: Final = (0xFFFFFFFF,) * USAGE
"""Stands in the columns of usage for impossible counts from the server."""
NO_MODEL: Final = 0xFFFFFFFF
"""Stands in the column of models for a line that was not called, and for all lines of a batch with one model."""
HEAD_BYTES: Final = _HEAD.size
PARTS_PREFIX: Final = "parts/"
FILES_PREFIX: Final = "files/"
INDICES_PREFIX: Final = "indices/"
LARGE_PREFIX: Final = "results-large/"
"""Prefix of results that are too large for a record of the log, of lists of copies, of verdicts, of JSON Schemas:
all are kept as long as the log may have the records of their batch."""


class PartError(Exception):
    """An object is not a complete part."""


class PartRef(Shape):
    """A part in the store: lines of one batch for one of its files, sorted by index."""

    number: Number
    failed: bool
    """Whether its lines go into the error file."""
    first: Number
    """Index of its first line."""
    writer: Id = ""
    """The owner that wrote it, so that a former owner of the partition never replaces its successor's part."""
    crc32: tuple[Number, Number] | None = None
    """Checksums of its head with the columns, and of its lines; None in old parts."""


@dataclass(frozen=True, slots=True)
class Index:
    """The columns of a part."""

    indices: "array[int]"
    ends: "array[int]"
    """The end of each line, in bytes from the beginning of the first."""
    models: "array[int]"
    """For each line the number of its model, or `NO_MODEL`."""
    usage: "array[int]"
    """Four numbers for each line."""


def index_bytes(head: bytes) -> int:
    """Length of a part's columns, from its first `HEAD_BYTES`.

    Raises:
        PartError: The object does not begin like a part.
    """
    if len(head) != HEAD_BYTES or not head.startswith(_MAGIC):
        raise PartError("the object does not begin like a part")
    count: int = _HEAD.unpack(head)[1]
    return 4 * _COLUMNS * count


def parse_index(columns: bytes) -> Index:
    """Decode a part's columns."""
    values = array("I")
    values.frombytes(columns)
    if sys.byteorder == "big":
        values.byteswap()
    count = len(values) // _COLUMNS
    ends = array("Q", accumulate(values[count : 2 * count]))
    return Index(
        indices=values[:count], ends=ends, models=values[2 * count : 3 * count], usage=values[3 * count :]
    )


def encode_index(indices: "array[int]", sizes: "array[int]", models: "array[int]", usage: "array[int]") -> bytes:
    """The head and the columns of a part: index, bytes, number of the model and token counts of each line."""
    columns = indices + sizes + models + usage
    if sys.byteorder == "big":
        columns.byteswap()
    return _HEAD.pack(_MAGIC, len(indices)) + columns.tobytes()


def part_prefix(batch_id: str) -> str:
    """Prefix of the keys of a batch's parts."""
    return f"{PARTS_PREFIX}{batch_id}/"


def part_key(batch_id: str, part: PartRef) -> str:
    """The store key of a part."""
    writer = f"-{part.writer}" if part.writer else ""
    return f"{part_prefix(batch_id)}{part.number:010d}{writer}.{file_kind(failed=part.failed)}"


def copies_key(batch_id: str) -> str:
    """The store key of the list of a batch's copies (`schemas/jsonl/copies.py`)."""
    return f"{LARGE_PREFIX}{batch_id}/copies"


def verdict_key(batch_id: str) -> str:
    """The store key of ingest's verdict on the input of a batch."""
    return f"{LARGE_PREFIX}{batch_id}/verdict"


def schema_key(batch_id: str) -> str:
    """The store key of the JSON Schema that the answers of a batch must fit."""
    return f"{LARGE_PREFIX}{batch_id}/schema"


def index_key(key: str) -> str:
    """The store key of a finished file's columns, from the file's key."""
    return INDICES_PREFIX + key.removeprefix(FILES_PREFIX)


def indexed_key(key: str) -> str:
    """The store key of a finished file, from the key of its columns."""
    return FILES_PREFIX + key.removeprefix(INDICES_PREFIX)


def file_id_of(key: str) -> str:
    """The id of a file, from its key or from that of its columns."""
    return "-".join(key.rpartition("/")[2].split("-", 2)[:2])


def file_key(file_id: str, writer: str = "") -> str:
    """The store key of a file; `writer` is the owner that writes it, as in `PartRef`.

    The files are in 256 folders by a digest of their ids, since a local store reads a whole folder to find a
    prefix in it.
    """
    folder = hashlib.blake2b(file_id.encode(), digest_size=1).hexdigest()
    key = f"{FILES_PREFIX}{folder}/{file_id}"
    return f"{key}-{writer}" if writer else key
