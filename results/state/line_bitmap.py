"""The final lines of a batch: a bitmap of all of them, and one of those that failed.

Marking a line twice changes nothing, so a fact may be applied any number of times.
"""

import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from tidemill.schemas.bitmap import CHUNK_BYTES, CHUNK_LINES, Bitmap

Sum = tuple[int, int, int, int, int]
"""The four numbers of usage (`LineMark.usage`) of successful lines, and the calls of all beyond their first."""
ByChunk = Mapping[int, Mapping[int, Sum]]
"""Sums by chunk, and by the number of the model, which is 0 if the lines name only one."""
NONE: Final[Sum] = (0, 0, 0, 0, 0)
_SUM: Final = struct.Struct("<B5Q")
_MODELS_FROM: Final = 2 * CHUNK_BYTES
_WITH_MODELS: Final = _MODELS_FROM + CHUNK_LINES


@dataclass(frozen=True, slots=True)
class LineSums:
    """Sums of the lines in parts. They are kept with the chunks, so each line counts once, as there."""

    by_chunk: ByChunk = field(default_factory=dict)
    by_model: Mapping[int, Sum] = field(default_factory=dict)

    @classmethod
    def of(cls, chunks: Iterable[tuple[int, bytes]]) -> "LineSums":
        """The sums in the rows of chunks."""
        sums = cls()
        return sums.plus({number: dict(_decoded(row)) for number, row in chunks})

    def plus(self, more: ByChunk, *, failed: bool = False) -> "LineSums":
        """The sums with those of more lines; the usage of failed lines does not count."""
        by_chunk = dict(self.by_chunk)
        for number, sums in more.items():
            by_chunk[number] = _joined(by_chunk.get(number, {}), [sums], failed=failed)
        return LineSums(by_chunk, self.totals(more, failed=failed))

    def totals(self, more: ByChunk, *, failed: bool = False) -> dict[int, Sum]:
        """The sums by model with those of more lines; see `plus`."""
        return _joined(self.by_model, more.values(), failed=failed)

    def encoded(self, number: int) -> bytes:
        """The sums of a chunk, as encoded after it in its row: 41 bytes for each model."""
        return b"".join(_SUM.pack(model, *total) for model, total in self.by_chunk.get(number, {}).items())


def _decoded(row: bytes) -> Iterator[tuple[int, Sum]]:
    for model, read, cached, written, last, calls in _SUM.iter_unpack(row[_chunk_bytes(row) :]):
        yield model, (read, cached, written, last, calls)


def _chunk_bytes(row: bytes) -> int:
    """Bytes of the chunk in a row, by the row's length: after a chunk without models comes at most one sum."""
    return _WITH_MODELS if len(row) >= _WITH_MODELS else _MODELS_FROM


def _joined(known: Mapping[int, Sum], more: Iterable[Mapping[int, Sum]], *, failed: bool) -> dict[int, Sum]:
    found = dict(known)
    for sums in more:
        for model, total in sums.items():
            found[model] = added(found.get(model, NONE), (0, 0, 0, 0, total[4]) if failed else total)
    return found


def added(one: Sum, other: Sum) -> Sum:
    """The sum of two sums."""
    return one[0] + other[0], one[1] + other[1], one[2] + other[2], one[3] + other[3], one[4] + other[4]


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
        """A bitmap from its stored chunks: number and row, in any order."""
        bitmap = cls()
        for number, chunk in chunks:
            bitmap._done.set_chunk(number, chunk[:CHUNK_BYTES])
            bitmap._failed.set_chunk(number, chunk[CHUNK_BYTES : 2 * CHUNK_BYTES])
            bitmap._set_models(number, chunk[_MODELS_FROM : _chunk_bytes(chunk)])
        bitmap.done = len(bitmap._done)
        bitmap.failed = len(bitmap._failed)
        return bitmap

    def mark(self, index: int, *, failed: bool) -> bool:
        """Make a line final; returns False, and changes nothing, if it already was."""
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
        """How many lines are in both bitmaps."""
        return (self.bits & other.bits).bit_count()

    @property
    def bits(self) -> int:
        """The final lines as a number: line 0 is its lowest bit."""
        return self._done.number

    def touch(self, numbers: Iterable[int]) -> None:
        """Have `take_touched` return these chunks, too."""
        self._touched.update(numbers)

    def touch_all(self) -> None:
        """Have `take_touched` return every chunk."""
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
