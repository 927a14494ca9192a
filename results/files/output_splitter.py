"""Cuts the lines of a merge into files of bounded size."""

from array import array
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

from tidemill.schemas.resources.batch import Cut

WHOLE: Final = Cut(lines_max=1 << 62, bytes_max=1 << 62)
"""No cut at all."""


class OutputSplitter:
    """Yields one file after the other; every file but the last is full, and none is empty.

    A piece may end within a line. The merge appends the size of a line to `sizes` before it yields the line.
    """

    def __init__(self, pieces: AsyncIterator[memoryview], sizes: "array[int]", cut: Cut) -> None:
        self._pieces = pieces
        self._sizes = sizes
        self._cut = cut
        self._rest = memoryview(b"")
        self.lines = 0
        """Lines of all files so far."""

    async def has_more(self) -> bool:
        """Whether another file follows, or the rest of this one."""
        while not self._rest:
            if (piece := await anext(self._pieces, None)) is None:
                return False
            self._rest = piece
        return True

    async def next(self, *, last: bool = False) -> AsyncGenerator[memoryview, None]:
        """The next file, or with `last` all remaining lines; read it to its end before the next call."""
        cut = WHOLE if last else self._cut
        lines = size = owed = 0
        while await self.has_more():
            while owed < len(self._rest):
                line = self._sizes[self.lines]
                if lines and (lines >= cut.lines_max or size + line > cut.bytes_max):
                    break
                lines, size, owed = lines + 1, size + line, owed + line
                self.lines += 1
            given, self._rest = self._rest[:owed], self._rest[owed:]
            owed -= len(given)
            if given:
                yield given
            if self._rest:
                return
