"""The final lines of a batch: a bitmap of all of them, and one of those that failed.

Marking a line twice changes nothing, so a fact may be applied any number of times.
"""

from collections.abc import Iterable

from tidemill.schemas.bitmap import CHUNK_BYTES, CHUNK_LINES, Bitmap


class LineBitmap:
    """The final lines of one batch. A stored chunk is 128 bytes: 64 of all final lines, then 64 of failed ones."""

    def __init__(self) -> None:
        self._done = Bitmap()
        self._failed = Bitmap()
        self._touched: set[int] = set()
        self.done = 0
        """Final lines."""
        self.failed = 0
        """Final lines that failed."""

    @classmethod
    def of(cls, chunks: Iterable[tuple[int, bytes]]) -> "LineBitmap":
        """A bitmap from its stored chunks: number and content, in any order."""
        bitmap = cls()
        for number, chunk in chunks:
            bitmap._done.set_chunk(number, chunk[:CHUNK_BYTES])
            bitmap._failed.set_chunk(number, chunk[CHUNK_BYTES:])
        bitmap.done = len(bitmap._done)
        bitmap.failed = len(bitmap._failed)
        return bitmap

    def mark(self, index: int, *, failed: bool) -> bool:
        """Make a line final; False if it already was, and then nothing changes."""
        if not self._done.add(index):
            return False
        self.done += 1
        if failed:
            self._failed.add(index)
            self.failed += 1
        self._touched.add(index // CHUNK_LINES)
        return True

    def unmark(self, index: int, *, failed: bool) -> None:
        """Undo the last `mark` of a line."""
        self._done.remove(index)
        self.done -= 1
        if failed:
            self._failed.remove(index)
            self.failed -= 1

    def __contains__(self, index: int) -> bool:
        return index in self._done

    def common(self, other: "LineBitmap") -> int:
        """How many lines are in both."""
        return (self.bits & other.bits).bit_count()

    @property
    def bits(self) -> int:
        """The final lines as a number: line 0 is its lowest bit."""
        return self._done.number

    def touch(self, numbers: Iterable[int]) -> None:
        """Let `take_touched` return these chunks, too."""
        self._touched.update(numbers)

    def touch_all(self) -> None:
        """Let `take_touched` return every chunk."""
        self._touched.update(range(len(self._done.content) // CHUNK_BYTES))

    def take_touched(self) -> list[tuple[int, bytes]]:
        """The chunks that changed since the last call: number and content, in order."""
        touched, self._touched = sorted(self._touched), set()
        self._failed.grow(1 + max(touched, default=-1))
        return [(number, self._done.chunk(number) + self._failed.chunk(number)) for number in touched]
