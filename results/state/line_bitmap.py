"""The final lines of a batch: a bitmap of all of them, and one of those that failed.

Marking a line twice changes nothing, so a fact may be applied any number of times.
"""

from collections import Counter
from collections.abc import Iterable

from tidemill.schemas.bitmap import CHUNK_BYTES, CHUNK_LINES, Bitmap


class LineBitmap:
    """The final lines of one batch.

    A stored chunk has 64 bytes of all final lines, then 64 of failed ones. If the lines name several models, 512
    bytes follow: the number of the model of each final line.
    """

    def __init__(self) -> None:
        self._done = Bitmap()
        self._failed = Bitmap()
        self._touched: set[int] = set()
        self.done = 0
        """Final lines."""
        self.failed = 0
        """Final lines that failed."""
        self.models = bytearray()
        """The number of the model of each final line; empty unless the lines name several."""
        self.by_model: Counter[tuple[int, bool]] = Counter()
        """Final lines with a model, by its number and whether they failed."""

    @classmethod
    def of(cls, chunks: Iterable[tuple[int, bytes]]) -> "LineBitmap":
        """A bitmap from its stored chunks: number and content, in any order."""
        bitmap = cls()
        for number, chunk in chunks:
            bitmap._done.set_chunk(number, chunk[:CHUNK_BYTES])
            bitmap._failed.set_chunk(number, chunk[CHUNK_BYTES : 2 * CHUNK_BYTES])
            bitmap._set_models(number, chunk[2 * CHUNK_BYTES :])
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

    def assign(self, index: int, model: int, *, failed: bool) -> None:
        """Note the model of a line that was just marked, in a batch whose lines name several."""
        models = self.models
        if index >= len(models):
            models.extend(bytes(CHUNK_LINES * (index // CHUNK_LINES + 1) - len(models)))
        models[index] = model
        self.by_model[model, failed] += 1

    def unmark(self, index: int, *, failed: bool) -> None:
        """Undo the last `mark` of a line."""
        if self.models:
            self.by_model[self.models[index], failed] -= 1
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
        return [
            (number, self._done.chunk(number) + self._failed.chunk(number) + self._models_of(number))
            for number in touched
        ]

    def _models_of(self, number: int) -> bytes:
        return bytes(self.models[number * CHUNK_LINES : (number + 1) * CHUNK_LINES])

    def _set_models(self, number: int, models: bytes) -> None:
        start = number * CHUNK_LINES
        for index in range(start, start + len(models)):
            if index in self._done:
                self.assign(index, models[index - start], failed=index in self._failed)
