"""Merges the parts of a closed batch into its output and error file (docs/reference/protocol.md, 17).

0. If ingest has not accepted the input, count its lines.
1. Write parts of the lines that get the answer to an equal one (`copies.py`), then parts of error lines for lines
   that were not run, with their `custom_id` from the input, if that is still there.
2. Merge the parts of the output into the output file, those of the errors into the error file.
3. Make the receipt of the written lines, not of earlier counts.

Every step may be repeated after a crash: the files have the same ids, the same bytes and the same receipt.
"""

import hashlib
import itertools
import logging
import zlib
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from tidemill import metrics
from tidemill.results.bills import bill_of, usage_of
from tidemill.results.files.copies import CopiedLines, Filled
from tidemill.results.files.merge import Sums, buffered, merged, read_index
from tidemill.results.files.output_splitter import WHOLE, OutputSplitter
from tidemill.results.resources import FileRules
from tidemill.results.state.active_batch import ActiveBatch, PartBuffer
from tidemill.results.state.line_bitmap import LineBitmap
from tidemill.results.state.reducer import State
from tidemill.schemas import ids
from tidemill.schemas.bounds import OUTPUTS_MAX
from tidemill.schemas.jsonl import line
from tidemill.schemas.jsonl.lines import lines_of
from tidemill.schemas.log.codec import LineMark
from tidemill.schemas.log.messages import Compacted
from tidemill.schemas.log.part import PartRef, file_key, index_key, part_key
from tidemill.schemas.ports import Clock, NotFound, Store, once
from tidemill.schemas.resources.batch import (
    Cut,
    FileReceipt,
    Receipt,
    Status,
)
from tidemill.schemas.resources.bill import Tariff
from tidemill.schemas.resources.by_model import ModelResult
from tidemill.schemas.resources.file import file_kind
from tidemill.schemas.resources.waiting import explanation
from tidemill.wording import counted

Lines = AsyncIterator[memoryview]
"""Lines in input order, in pieces of any size."""
_Counted = tuple[Lines | None, Sums]
"""Lines, if there are any, and what counts them as they are read."""

log = logging.getLogger(__name__)

WRITE_BYTES: Final = 1 << 20
"""Pieces of a file are joined up to this size before they go to the store."""
FILL_PARTS_FROM: Final = 1 << 30
"""First number of parts with lines that were not run, above the numbers of ordinary parts."""
COPY_PARTS_FROM: Final = 1 << 31
"""First number of parts with copies, above those."""
UNNAMED: Final = "Its custom_id is unknown, because the input file is deleted."
"""Added to the message of a line that was not run, if its name cannot be looked up."""


@dataclass(frozen=True, slots=True)
class Compactor:
    """Writes the files of closed batches."""

    store: Store
    clock: Clock
    rules: FileRules
    writer: str = ""
    """See `PartRef`."""

    async def compact(self, state: State, bitmap: LineBitmap) -> Compacted:
        """Write the files of a closed batch, and return the fact that ends it.

        The bitmap has its final lines according to the table; after a crash the parts may hold more.

        Raises:
            OSError: The store failed; the call may be made again.
            NotFound: A part is gone, or the list of copies.
            PartError: A part is damaged.
            PriceError: A price cannot be read.
        """
        state = await self._with_lines(state)
        assert state.batch is not None
        total = state.batch.request_counts.total
        parts = list(state.parts)
        filled, copies = 0, Counter[tuple[int, bool]]()
        if bitmap.done < total:
            run = await self._indices(state)
            if state.batch.tidemill.copies:
                copied = CopiedLines(self.store, state, self.rules)
                parts += await self._parts(state, copied.filled(run), COPY_PARTS_FROM, copied.models)
                copies = copied.counts
            filled = total - run.done
            if filled:
                parts += await self._parts(state, self._filled(state, run), FILL_PARTS_FROM)
        keys = [(part, part_key(state.id, part)) for part in parts]

        def lines_of(*, failed: bool) -> _Counted:
            mine, sums = [(part, key) for part, key in keys if part.failed is failed], Sums()
            return merged(self.store, mine, sums) if mine else None, sums

        return await self._fact(state, lines_of(failed=False), lines_of(failed=True), filled, copies)

    async def _with_lines(self, state: State) -> State:
        """The state with the number of lines, which it lacks if ingest has not accepted the input.

        It is 0 if the input is not there, or larger than ingest accepts.
        """
        is_validated = state.batch is None or state.batch.is_validated
        if is_validated or state.input is None or state.input.bytes > self.rules.input_bytes_max:
            return state
        count = 0
        try:
            async with aclosing(_input_lines(self.store, state.input.key)) as lines:
                async for _ in lines:
                    count += 1
                    if count > self.rules.input_lines_max:
                        return state
        except NotFound:
            return state
        return state.with_total(count)

    async def compact_buffers(self, active: ActiveBatch) -> Compacted:
        """Write the files of a batch from its buffers, which have all its lines; see `compact`."""

        def lines_of(buffer: PartBuffer) -> _Counted:
            sums = Sums()
            return buffered(buffer, active.bitmap.models, sums) if buffer else None, sums

        # A flush meanwhile replaces the buffers, and does not change these.
        return await self._fact(active.state, lines_of(active.output), lines_of(active.errors), 0, Counter())

    async def _fact(
        self, state: State, output: _Counted, errors: _Counted, filled: int, copies: Counter[tuple[int, bool]]
    ) -> Compacted:
        """Write the files; `filled` of their lines were not run, and `copies` are as in `CopiedLines.counts`."""
        assert state.batch is not None
        # First the prices: without one the files would be written in vain.
        window, names = state.batch.completion_window, state.models or (state.batch.model,)
        tariffs = [self.rules.tariff_of(name, window) for name in names]
        total = state.batch.request_counts.total
        output_file, outputs = await self._write(state.id, output, failed=False, cut=state.batch.tidemill.numbered)
        error_file, _ = await self._write(state.id, errors, failed=True, cut=None)
        output_sums, error_sums = output[1], errors[1]
        double = output_sums.lines.common(error_sums.lines)
        receipt = Receipt(
            lines=total,
            output=output_file,
            errors=error_file,
            missing=total - (output_sums.lines.done + error_sums.lines.done - double),
            double=double,
            copies=copies.total(),
            outputs=outputs,
        )
        if receipt.missing or receipt.double:
            log.error("%s: %s missing, %s double", state.id, counted(receipt.missing, "line"), receipt.double)
            metrics.MISMATCHES.inc()
        return Compacted(
            batch_id=state.id,
            receipt=receipt,
            models=tuple(
                result.model_copy(update={"copies": copies[number, False]})
                for number, result in enumerate(_results(state, tariffs, output_sums, error_sums, filled))
            ),
            usage_unknown=output_sums.unknown,
            closed_by=state.closed_by or self.writer,
            writer=self.writer,
            at=int(self.clock()),
        )

    async def _indices(self, state: State) -> LineBitmap:
        """The lines in the parts."""
        found = LineBitmap()
        for part in state.parts:
            for index in (await read_index(self.store, part, part_key(state.id, part))).indices:
                found.mark(index, failed=part.failed)
        return found

    async def _parts(self, state: State, filled: Filled, first: int, models: Sequence[int] = ()) -> list[PartRef]:
        """Write buffers as parts with the numbers from `first`."""
        numbers, parts, writer = itertools.count(first), [], self.writer
        async with aclosing(filled):
            async for buffer, failed in filled:
                number = next(numbers)
                parts.append(
                    await write_part(
                        self.store, state.id, number, buffer, failed=failed, writer=writer, models=models
                    )
                )
        return parts

    async def _filled(self, state: State, run: LineBitmap) -> Filled:
        """Yield error lines for the lines that were not run."""
        assert state.batch is not None
        assert state.input is not None
        code, message = line.CANCELLED if state.batch.status is Status.CANCELLING else line.EXPIRED
        if reasons := explanation(state.batch.tidemill.waiting):
            message = f"{message} {reasons}"
        buffer = PartBuffer()
        index = -1
        total = state.batch.request_counts.total
        async with aclosing(_lines_or_gaps(self.store, state.input.key, total)) as lines:
            async for data in lines:
                index += 1
                if index in run:
                    continue
                custom_id, why = (
                    (b"null", f"{message} {UNNAMED}") if data is None else (line.custom_id_of(data), message)
                )
                text = line.unanswered(state.id, index, custom_id, code=code, message=why)
                buffer.add([LineMark(index=index, size=len(text), failed=True)], text)
                if buffer.size >= self.rules.part_bytes:
                    yield buffer, True
                    buffer = PartBuffer()
        if buffer:
            yield buffer, True

    async def _write(
        self, batch_id: str, counted: _Counted, *, failed: bool, cut: Cut | None
    ) -> tuple[FileReceipt | None, tuple[FileReceipt, ...]]:
        """Write the output or the errors: one file, or several with a `cut`; the first receipt covers them all."""
        lines, sums = counted
        if lines is None:
            return None, ()
        splitter = OutputSplitter(lines, sums.sizes, cut or WHOLE)
        whole = hashlib.sha256()
        files: list[FileReceipt] = []
        while await splitter.has_more():
            first, digest = splitter.lines, hashlib.sha256()
            kind = file_kind(failed=failed, number=None if cut is None else len(files) + 1)
            rest = _joined(splitter.next(last=len(files) + 1 == OUTPUTS_MAX))
            content = _hashed(rest, digest, *([] if cut is None else [whole]))
            key = file_key(ids.derived_file_id(batch_id, kind), self.writer)
            size = await self.store.write(key, content)
            await self.store.write(index_key(key), once(sums.index(first, splitter.lines)))
            files.append(FileReceipt(lines=splitter.lines - first, bytes=size, sha256=digest.hexdigest()))
        if cut is None:
            return files[0], ()
        size = sum(file.bytes for file in files)
        return FileReceipt(lines=splitter.lines, bytes=size, sha256=whole.hexdigest()), tuple(files)


def _results(
    state: State, tariffs: Sequence[Tariff], output: Sums, errors: Sums, filled: int
) -> list[ModelResult]:
    """The results of each model, with its bill: a replay keeps the bill even if the price has changed."""
    batch = state.batch
    assert batch is not None
    names: Sequence[str | None] = state.models
    if names:
        made = enumerate(output.by_model(len(names)))
        counts = [(completed, errors.models.count(number), used) for number, (completed, used) in made]
    else:
        names, counts = [batch.model], [(output.lines.done, errors.lines.done - filled, output.usage)]
    found = []
    for model, tariff, (completed, failed, used) in zip(names, tariffs, counts, strict=True):
        usage = usage_of(batch, used)
        bill = bill_of(usage, tariff)
        found.append(ModelResult(model=model, completed=completed, failed=failed, usage=usage, bill=bill))
    return found


async def write_part(
    store: Store,
    batch_id: str,
    number: int,
    buffer: PartBuffer,
    *,
    failed: bool,
    writer: str = "",
    models: Sequence[int] = (),
) -> PartRef:
    """Write a buffer as a part; `models` are those of `PartBuffer.part`.

    Raises:
        OSError: The store failed. The part may appear later, so no other part may have its number.
    """
    (first, columns, pieces), crc32 = buffer.part(models), 0

    async def content() -> AsyncIterator[bytes]:
        nonlocal crc32
        yield columns
        for piece in pieces:
            crc32 = zlib.crc32(piece, crc32)
            yield piece

    part = PartRef(number=number, failed=failed, first=first, writer=writer)
    await store.write(part_key(batch_id, part), content())
    return part.model_copy(update={"crc32": (zlib.crc32(columns), crc32)})


async def _lines_or_gaps(store: Store, key: str, total: int) -> AsyncGenerator[bytes | None, None]:
    """The lines of a checked input, in the order of their indices; None for each line of a deleted one."""
    count = 0
    try:
        async with aclosing(_input_lines(store, key)) as lines:
            async for data in lines:
                yield data
                count += 1
    except NotFound:
        # The batch ends all the same: its other lines have their results.
        log.warning("the input %s is gone, with the names of lines that were not run", key)
        for _ in range(count, total):
            yield None


async def _input_lines(store: Store, key: str) -> AsyncGenerator[bytes, None]:
    """The lines of an input, in the order of their indices."""
    async with aclosing(store.read(key)) as chunks:
        async for lines in lines_of(chunks):
            for found in lines:
                yield found.data or b""


async def _hashed(pieces: AsyncIterable[bytes], *digests: "hashlib._Hash") -> AsyncIterator[bytes]:
    async for piece in pieces:
        for digest in digests:
            digest.update(piece)
        yield piece


async def _joined(pieces: AsyncIterable[memoryview]) -> AsyncIterator[bytes]:
    waiting: list[memoryview] = []
    size = 0
    async for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= WRITE_BYTES:
            yield b"".join(waiting)
            waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)
