"""Reads the lines of a closed batch from the log again and writes them as new parts.

The first result of a line counts, in the order of the log, until the batch has as many lines as when it closed: so
the parts have the same lines as then.
"""

from typing import Final

from tidemill.results.files.compaction import write_part
from tidemill.results.state.active_batch import ActiveBatch, PartBuffer
from tidemill.results.state.line_bitmap import LineBitmap
from tidemill.results.state.reducer import State
from tidemill.schemas.log import codec
from tidemill.schemas.log.codec import DecodeError, Headers
from tidemill.schemas.log.part import PartRef
from tidemill.schemas.ports import NotFound, Store, read_all
from tidemill.schemas.resources.batch import Batch

PART_BYTES: Final = 8 << 20


class PartRecovery:
    """The recovered lines of one batch.

    Attributes:
        unreadable: Records of the batch that cannot be decoded, or whose line is gone from the store.
        destroyed: Unreadable records whose key is destroyed.
    """

    def __init__(self, batch: Batch, wanted: int, *, store: Store, number_from: int = 0, writer: str = "") -> None:
        """Begin without lines; `wanted` lines were final when the batch closed.

        The store has the large results, and gets the parts, numbered from `number_from`; for `writer` see
        `PartRef`.
        """
        self.unreadable = 0
        self.destroyed = 0
        self._wanted = wanted
        self._total = batch.request_counts.total
        self._numbers = {share.model: number for number, share in enumerate(batch.tidemill.models)}
        self._store = store
        self._number_from = number_from
        self._writer = writer
        self._active = ActiveBatch(state=State(id=batch.id, partition=0), bitmap=LineBitmap())
        self._parts: list[PartRef] = []

    @property
    def missing(self) -> int:
        """Lines that are not found yet."""
        return max(0, self._wanted - self._active.bitmap.done)

    @property
    def bitmap(self) -> LineBitmap:
        """The lines that are found."""
        return self._active.bitmap

    async def add(self, headers: Headers, value: bytes) -> None:
        """Add the lines of the next record of the batch's partition of `outcomes`; other records are ignored.

        A record that is still sealed has lost its key.

        Raises:
            OSError: The store failed.
        """
        if not self.missing or codec.lines_batch(headers) != self._active.state.id:
            return
        if codec.key_id(headers) is not None:
            self.unreadable += 1
            self.destroyed += 1
            return
        try:
            _, marks = codec.lines_marks(headers, len(value))
            if (ref := codec.lines_ref(headers)) is not None:
                value = await read_all(self._store.read(ref.key, ref.offset, ref.offset + ref.length))
        except (DecodeError, NotFound, ValueError):
            self.unreadable += 1
            return
        model = self._numbers.get(codec.lines_model(headers))
        if all(mark.index < self._total for mark in marks) and (not self._numbers or model is not None):
            self._active.add(marks, value, 0.0, model)
        if self._active.waiting_bytes >= PART_BYTES:
            await self._flush()

    async def parts(self) -> tuple[PartRef, ...]:
        """Write the remaining lines, and return all parts."""
        await self._flush()
        return tuple(self._parts)

    async def _flush(self) -> None:
        for buffer, failed in ((self._active.output, False), (self._active.errors, True)):
            if buffer:
                number = self._number_from + len(self._parts)
                part = await write_part(
                    self._store,
                    self._active.state.id,
                    number,
                    buffer,
                    failed=failed,
                    writer=self._writer,
                    models=self._active.bitmap.models,
                )
                self._active.set_buffer(PartBuffer(), failed=failed)
                self._parts.append(part)
