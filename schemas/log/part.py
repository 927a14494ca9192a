"""Parts: the finished lines of a batch on their way into one of its files.

A part is one object: `TMP1`, the number of its lines, three columns of unsigned 32-bit little-endian integers
(index, size in bytes, and four of usage), then the lines, sorted by index. A finished file has the same columns in
an object of their own, so that any line of it can be found.
"""

import struct
import sys
from array import array
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from pydantic import BaseModel, ConfigDict

from tidemill.schemas.bounds import Id, Number
from tidemill.schemas.resources.file import file_kind

_HEAD: Final = struct.Struct("<4sI")
_MAGIC: Final = b"TMP1"
_COLUMNS: Final = 6
UNKNOWN_USAGE: Final = (0xFFFFFFFF,) * 4
"""In the columns of usage: the server said what cannot be."""
HEAD_BYTES: Final = _HEAD.size
PARTS_PREFIX: Final = "parts/"
FILES_PREFIX: Final = "files/"
INDICES_PREFIX: Final = "indices/"
LARGE_PREFIX: Final = "results-large/"
"""Of a batch's results that are too large for a record of the log."""


class PartError(Exception):
    """An object is no part, or a cut one."""


class PartRef(BaseModel):
    """A part in the store: lines of one batch that belong into one of its files, sorted by index."""

    model_config = ConfigDict(frozen=True)

    number: Number
    failed: bool
    """Whether its lines belong into the error file."""
    first: Number
    """Index of its first line."""
    writer: Id = ""
    """Who wrote it: what a process that has lost its partition still writes replaces no part of its successor."""
    crc32: tuple[Number, Number] | None = None
    """Of its head with the columns, and of its lines; None of a part from before there were sums."""


@dataclass(frozen=True, slots=True)
class Index:
    """What a part says of its lines, in their order."""

    indices: "array[int]"
    ends: "array[int]"
    """Where each line ends, in bytes from the first line's beginning."""
    usage: "array[int]"
    """Four numbers a line."""


def index_bytes(head: bytes) -> int:
    """Length of a part's columns.

    Args:
        head: Its first `HEAD_BYTES`.

    Raises:
        PartError: It does not begin as a part does.
    """
    if len(head) != HEAD_BYTES or not head.startswith(_MAGIC):
        raise PartError("the object does not begin as a part does")
    count: int = _HEAD.unpack(head)[1]
    return 4 * _COLUMNS * count


def parse_index(columns: bytes) -> Index:
    """Read a part's columns."""
    values = array("I")
    values.frombytes(columns)
    if sys.byteorder == "big":
        values.byteswap()
    count = len(values) // _COLUMNS
    ends = array("Q", accumulate(values[count : 2 * count]))
    return Index(indices=values[:count], ends=ends, usage=values[2 * count :])


def encode_index(indices: "array[int]", sizes: "array[int]", usage: "array[int]") -> bytes:
    """The head and the columns of a part.

    Args:
        indices: Index of each line, in order.
        sizes: Bytes of each line.
        usage: Four numbers a line.
    """
    columns = indices + sizes + usage
    if sys.byteorder == "big":
        columns.byteswap()
    return _HEAD.pack(_MAGIC, len(indices)) + columns.tobytes()


def part_prefix(batch_id: str) -> str:
    """Beginning of the keys of a batch's parts."""
    return f"{PARTS_PREFIX}{batch_id}/"


def part_key(batch_id: str, part: PartRef) -> str:
    """Where a part lies in the store."""
    writer = f"-{part.writer}" if part.writer else ""
    return f"{part_prefix(batch_id)}{part.number:010d}{writer}.{file_kind(failed=part.failed)}"


def index_key(key: str) -> str:
    """Where the columns of a finished file lie in the store.

    Args:
        key: Where the file lies.
    """
    return INDICES_PREFIX + key.removeprefix(FILES_PREFIX)


def indexed_key(key: str) -> str:
    """Where the finished file lies whose columns are there."""
    return FILES_PREFIX + key.removeprefix(INDICES_PREFIX)


def file_key(file_id: str, writer: str = "") -> str:
    """Where a file lies in the store.

    Args:
        file_id: Its id.
        writer: Which owner of a partition makes it of a batch's lines: see `PartRef`.
    """
    return f"{FILES_PREFIX}{file_id}-{writer}" if writer else f"{FILES_PREFIX}{file_id}"
