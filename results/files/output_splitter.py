"""Volumes: the lines of a merge, cut into files of which each holds so much at most."""

from array import array
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

from tidemill.schemas.resources.batch import Cut

WHOLE: Final = Cut(lines_max=1 << 62, bytes_max=1 << 62)
"""No cut at all."""


class OutputSplitter:
    """Gives one file after the other; each but the last is as full as its bounds let it be, and none is empty.

    Args:
        pieces: The merge. What it yields need not end where a line does.
        sizes: Bytes of each line; those of a line are there before the merge yields any of it.
        cut: The bounds.
    """

    def __init__(self, pieces: AsyncIterator[memoryview], sizes: "array[int]", cut: Cut) -> None:
        self._pieces = pieces
        self._sizes = sizes
        self._cut = cut
        self._rest = memoryview(b"")
        self.lines = 0
        """Lines of all files so far."""

    async def has_more(self) -> bool:
        """Whether there is another file, or more of this one."""
        while not self._rest:
            if (piece := await anext(self._pieces, None)) is None:
                return False
            self._rest = piece
        return True

    async def next(self, *, last: bool = False) -> AsyncGenerator[memoryview, None]:
        """The next file; to be read to its end before another one is asked for.

        Args:
            last: Whether it takes all that is left, whatever its bounds.
        """
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
