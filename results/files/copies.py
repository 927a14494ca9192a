"""Writes the lines of a closed batch that get the answer to an equal line, as parts like those of other lines.

It reads the answered lines of the parts in the order of their indices, together with ingest's list of copies,
which is in the order of their originals. The copies are collected in memory up to the size of a part, and each
part is sorted; the merge of all parts brings them into the order of the input.
"""

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing

from tidemill.results.files.merge import Sums, merged
from tidemill.results.resources import FileRules
from tidemill.results.state.active_batch import PartBuffer
from tidemill.results.state.line_bitmap import LineBitmap
from tidemill.results.state.reducer import State
from tidemill.schemas import UNREADABLE
from tidemill.schemas.jsonl import copies, line
from tidemill.schemas.jsonl.copies import Copy
from tidemill.schemas.jsonl.lines import lines_of
from tidemill.schemas.log.codec import LineMark
from tidemill.schemas.log.part import NO_MODEL, UNKNOWN_USAGE, PartError, PartRef, copies_key, part_key
from tidemill.schemas.ports import Store

Filled = AsyncGenerator[tuple[PartBuffer, bool], None]
"""Full buffers, each with whether its lines failed."""


class CopiedLines:
    """The copies of one batch."""

    def __init__(self, store: Store, state: State, rules: FileRules) -> None:
        """Read nothing yet."""
        assert state.batch is not None
        self._store = store
        self._id = state.id
        self._parts = state.parts
        self._expected = state.batch.tidemill.copies or 0
        self._part_bytes = rules.part_bytes
        self._is_billed = rules.bill_copies
        self.models = bytearray(state.batch.request_counts.total if state.models else 0)
        """The number of the model of each copy by its index; empty if there is only one."""
        self.counts: Counter[tuple[int, bool]] = Counter()
        """Copies by the number of their model and whether they failed."""

    async def filled(self, run: LineBitmap) -> Filled:
        """Yield the copies of the lines in the parts; `run` has these lines, and gets the copies, too.

        Raises:
            OSError: The store failed.
            NotFound: A part, or the list of copies, is gone.
            PartError: One of them is damaged.
        """
        for failed in (False, True):
            buffer = PartBuffer()
            mine = [(part, part_key(self._id, part)) for part in self._parts if part.failed is failed]
            async with aclosing(self._copied(mine, run, failed=failed)) as lines:
                async for mark, text in lines:
                    buffer.add([mark], text)
                    if buffer.size >= self._part_bytes:
                        yield buffer, failed
                        buffer = PartBuffer()
            if buffer:
                yield buffer, failed

    async def _copied(
        self, parts: Sequence[tuple[PartRef, str]], run: LineBitmap, *, failed: bool
    ) -> AsyncGenerator[tuple[LineMark, bytes], None]:
        sums = Sums()
        async with aclosing(self._listed()) as listed, aclosing(_lines(self._store, parts, sums)) as lines:
            copy = await anext(listed, None)
            async for place, original in lines:
                index = sums.indices[place]
                while copy is not None and copy.original <= index:
                    if copy.original == index and run.mark(copy.index, failed=failed):
                        yield self._copy(copy, original, sums, place, failed=failed)
                    copy = await anext(listed, None)
            while copy is not None:  # read to the end, where a truncated list shows
                copy = await anext(listed, None)

    def _copy(
        self, copy: Copy, original: bytes, sums: Sums, place: int, *, failed: bool
    ) -> tuple[LineMark, bytes]:
        read, cached, written, last = sums.usages[4 * place : 4 * place + 4]
        usage = None if (read, cached, written, last) == UNKNOWN_USAGE else (read, cached, written, last)
        # A failed line costs nothing, nor does one whose counts are unknown, and a copy says what it costs.
        is_billed = self._is_billed and not failed and usage is not None
        if not self._is_billed:
            usage = (0, 0, 0, 0)
        try:
            text = line.copied(self._id, copy.index, bytes(copy.custom_id), original, is_billed=is_billed)
        except UNREADABLE as error:
            raise PartError(f"line {copy.original} of {self._id} cannot be copied") from error
        if (model := sums.models[place]) != NO_MODEL:
            self.models[copy.index] = model
        self.counts[0 if model == NO_MODEL else model, failed] += 1
        return LineMark(index=copy.index, size=len(text), failed=failed, usage=usage), text

    async def _listed(self) -> AsyncGenerator[Copy, None]:
        count = 0
        try:
            async with aclosing(self._store.read(copies_key(self._id))) as chunks:
                async for lines in lines_of(chunks):
                    for found in lines:
                        count += 1
                        yield copies.decode(found.data or b"")
        except UNREADABLE as error:
            raise PartError(f"the list of copies of {self._id} is damaged") from error
        if count != self._expected:
            raise PartError(f"the list of copies of {self._id} has {count} of {self._expected}")


async def _lines(
    store: Store, parts: Sequence[tuple[PartRef, str]], sums: Sums
) -> AsyncGenerator[tuple[int, bytes], None]:
    """The lines of parts in the order of their indices, each with its place in `sums`."""
    waiting, place = bytearray(), 0
    pieces: AsyncIterator[memoryview] = merged(store, parts, sums)
    async for piece in pieces:
        waiting += piece
        while place < len(sums.sizes) and len(waiting) >= (size := sums.sizes[place]):
            yield place, bytes(waiting[:size])
            del waiting[:size]
            place += 1
