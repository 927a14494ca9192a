"""Which lines of a batch are final: a bitmap of those done and one of those that failed, in chunks of 512 lines.

Marking a line twice changes nothing, so a fact may be applied any number of times.
"""

from collections.abc import Iterable
from typing import Final

CHUNK_LINES: Final = 512
_HALF: Final = CHUNK_LINES // 8


class LineBitmap:
    """The lines of one batch. A chunk is 128 bytes: 64 of lines done, then 64 of those of them that failed."""

    def __init__(self) -> None:
        self._done = bytearray()
        self._failed = bytearray()
        self._touched: set[int] = set()
        self.done = 0
        """Lines that are final."""
        self.failed = 0
        """Those of them that failed."""

    @classmethod
    def of(cls, chunks: Iterable[tuple[int, bytes]]) -> "LineBitmap":
        """A bitmap from its stored chunks: number and content, in any order."""
        bitmap = cls()
        for number, chunk in chunks:
            bitmap._reach((number + 1) * CHUNK_LINES - 1)
            start = number * _HALF
            bitmap._done[start : start + _HALF] = chunk[:_HALF]
            bitmap._failed[start : start + _HALF] = chunk[_HALF:]
        bitmap.done = bitmap.bits.bit_count()
        bitmap.failed = int.from_bytes(bitmap._failed, "little").bit_count()
        return bitmap

    def mark(self, index: int, *, failed: bool) -> bool:
        """Make a line final; False if it already was, and then nothing changes."""
        byte, bit = index >> 3, 1 << (index & 7)
        if byte >= len(self._done):
            self._reach(index)
        if self._done[byte] & bit:
            return False
        self._done[byte] |= bit
        self.done += 1
        if failed:
            self._failed[byte] |= bit
            self.failed += 1
        self._touched.add(index // CHUNK_LINES)
        return True

    def unmark(self, index: int, *, failed: bool) -> None:
        """Take a mark back that `mark` has just made."""
        byte, bit = index >> 3, 1 << (index & 7)
        self._done[byte] &= ~bit
        self.done -= 1
        if failed:
            self._failed[byte] &= ~bit
            self.failed -= 1

    def __contains__(self, index: int) -> bool:
        byte = index >> 3
        return byte < len(self._done) and bool(self._done[byte] & (1 << (index & 7)))

    def common(self, other: "LineBitmap") -> int:
        """Lines that are in both."""
        return (self.bits & other.bits).bit_count()

    @property
    def bits(self) -> int:
        """The lines that are final, as a number: line 0 is its lowest bit."""
        return int.from_bytes(self._done, "little")

    def touch(self, numbers: Iterable[int]) -> None:
        """Let these chunks be taken next."""
        self._touched.update(numbers)

    def touch_all(self) -> None:
        """Let every chunk be taken next."""
        self._touched.update(range(len(self._done) // _HALF))

    def take_touched(self) -> list[tuple[int, bytes]]:
        """The chunks that changed since they were last taken: number and content, in order."""
        touched, self._touched = sorted(self._touched), set()
        return [(number, self._chunk(number * _HALF)) for number in touched]

    def _chunk(self, start: int) -> bytes:
        return bytes(self._done[start : start + _HALF] + self._failed[start : start + _HALF])

    def _reach(self, index: int) -> None:
        missing = (index // CHUNK_LINES + 1) * _HALF - len(self._done)
        if missing > 0:
            self._done.extend(bytes(missing))
            self._failed.extend(bytes(missing))
