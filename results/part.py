"""Parts: the finished lines of a batch on their way into one of its files.

A part is one object: `TMP1`, the number of its lines, three columns of unsigned 32-bit little-endian integers
(index, size in bytes, and four of usage), then the lines, sorted by index.
"""

import struct
import sys
from array import array
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

from tidemill.schemas.codec import LineMark

_HEAD: Final = struct.Struct("<4sI")
_MAGIC: Final = b"TMP1"
_COLUMNS: Final = 6
HEAD_BYTES: Final = _HEAD.size


class PartError(Exception):
    """An object is no part, or a cut one."""


@dataclass(slots=True)
class Shelf:
    """Finished lines of one batch and one file that wait in memory for their part."""

    lines: list[tuple[int, bytes | memoryview, tuple[int, int, int, int]]] = field(default_factory=list)
    size: int = 0
    """Bytes of the lines."""

    def add(self, mark: LineMark, line: bytes | memoryview) -> None:
        """Take in a line."""
        self.lines.append((mark.index, line, mark.usage))
        self.size += mark.size

    def take(self) -> tuple[int, list[bytes]]:
        """Empty the shelf: the first index, and the part's content in pieces."""
        lines, self.lines, self.size = self.lines, [], 0
        lines.sort(key=lambda line: line[0])
        return lines[0][0], _encode(lines)


@dataclass(frozen=True, slots=True)
class Index:
    """What a part says of its lines, in their order."""

    indices: "array[int]"
    ends: "array[int]"
    """Where each line ends, in bytes from the first line's beginning."""
    usage: "array[int]"
    """Four numbers a line."""

    def usage_of(self, place: int) -> tuple[int, int, int, int]:
        """Tokens of the line at that place: input, cached of these, output, reasoning of these."""
        found = self.usage[4 * place : 4 * place + 4]
        return found[0], found[1], found[2], found[3]


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


def _encode(lines: list[tuple[int, bytes | memoryview, tuple[int, int, int, int]]]) -> list[bytes]:
    columns = array("I", [index for index, _, _ in lines])
    columns.extend([len(line) for _, line, _ in lines])
    columns.extend([number for _, _, usage in lines for number in usage])
    if sys.byteorder == "big":
        columns.byteswap()
    head = _HEAD.pack(_MAGIC, len(lines))
    return [head, columns.tobytes(), b"".join(line for _, line, _ in lines)]
