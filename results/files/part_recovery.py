"""Reads the lines of a closed batch from the log again.

The first result of a line counts, in the order of the log; once as many lines are there as the batch had when it
closed, nothing more is taken. So the same lines come together as did then.
"""

from typing import Final

from tidemill.results.files.compaction import write_part
from tidemill.results.state.active_batch import ActiveBatch
from tidemill.results.state.line_bitmap import LineBitmap
from tidemill.results.state.reducer import State
from tidemill.schemas.log import codec
from tidemill.schemas.log.codec import DecodeError, Headers
from tidemill.schemas.log.part import PartRef
from tidemill.schemas.ports import NotFound, Store

PART_BYTES: Final = 8 << 20


class PartRecovery:
    """One batch whose results are read once more.

    Attributes:
        unreadable: Records of it that could not be read, or whose line is gone from the store.
        destroyed: Those of them whose key is destroyed.
    """

    def __init__(
        self, batch_id: str, wanted: int, *, store: Store, number_from: int = 0, writer: str = ""
    ) -> None:
        """Begin with nothing.

        Args:
            batch_id: The batch.
            wanted: Lines that it had when it closed.
            store: Has the large results, and takes the parts.
            number_from: Number of the first part.
            writer: See `PartRef`.
        """
        self.unreadable = 0
        self.destroyed = 0
        self._wanted = wanted
        self._store = store
        self._number_from = number_from
        self._writer = writer
        self._active = ActiveBatch(state=State(id=batch_id, partition=0), bitmap=LineBitmap())
        self._parts: list[PartRef] = []

    @property
    def missing(self) -> int:
        """Lines that were not found yet."""
        return max(0, self._wanted - self._active.bitmap.done)

    @property
    def bitmap(self) -> LineBitmap:
        """The lines that were found."""
        return self._active.bitmap

    async def take(self, headers: Headers, value: bytes) -> None:
        """Take in the next record of the batch's partition of `outcomes`, whatever it holds.

        One that is sealed still has no key any more.

        Raises:
            OSError: The store failed.
        """
        if not self.missing or not _is_of(headers, self._active.state.id):
            return
        if codec.key_id(headers) is not None:
            self.unreadable += 1
            self.destroyed += 1
            return
        try:
            _, marks = codec.lines_marks(headers, len(value))
            if (ref := codec.lines_ref(headers)) is not None:
                end = ref.offset + ref.length
                value = b"".join([chunk async for chunk in self._store.read(ref.key, ref.offset, end)])
        except (DecodeError, NotFound, ValueError):
            self.unreadable += 1
            return
        self._active.take(marks, value, 0.0)
        if self._active.waiting_bytes >= PART_BYTES:
            await self._flush()

    async def parts(self) -> tuple[PartRef, ...]:
        """The parts that hold the lines which were found; all of them are written."""
        await self._flush()
        return tuple(self._parts)

    async def _flush(self) -> None:
        self._active.waiting_since = None
        for buffer, failed in ((self._active.output, False), (self._active.errors, True)):
            if buffer.lines:
                self._parts.append(
                    await write_part(
                        self._store,
                        self._active.state.id,
                        self._number_from + len(self._parts),
                        buffer,
                        failed=failed,
                        writer=self._writer,
                    )
                )


def _is_of(headers: Headers, batch_id: str) -> bool:
    found = dict(headers)
    return codec.kind_of(headers) == codec.LINES and found.get("tidemill-batch") == batch_id.encode()
