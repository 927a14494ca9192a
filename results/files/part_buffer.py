"""The shelf: finished lines of one batch and one file that wait in memory for their part."""

from array import array
from dataclasses import dataclass, field

from tidemill.schemas.log.codec import LineMark
from tidemill.schemas.log.part import UNKNOWN_USAGE, encode_index


@dataclass(slots=True)
class PartBuffer:
    """Lines in the order they came; a part sorts them."""

    lines: list[tuple[int, bytes | memoryview, tuple[int, int, int, int]]] = field(default_factory=list)
    size: int = 0
    """Bytes of the lines."""

    def add(self, mark: LineMark, line: bytes | memoryview) -> None:
        """Take in a line."""
        self.lines.append((mark.index, line, UNKNOWN_USAGE if mark.usage is None else mark.usage))
        self.size += mark.size

    def clear(self) -> None:
        """Empty the shelf."""
        # A new list: who holds the old one may yet go back to it (`ActiveBatch.restore`).
        self.lines, self.size = [], 0

    def content(self) -> tuple[int, bytes, bytes]:
        """The first index, and the content of the part that the lines make, which is its columns and its lines."""
        lines = sorted(self.lines, key=lambda line: line[0])
        columns = encode_index(
            array("I", [index for index, _, _ in lines]),
            array("I", [len(line) for _, line, _ in lines]),
            array("I", [number for _, _, usage in lines for number in usage]),
        )
        return lines[0][0], columns, b"".join(line for _, line, _ in lines)
