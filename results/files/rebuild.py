"""Rebuilds the files of a batch that is over, from the log alone and without a call to a backend.

1. Read the outcomes of the batch in the order of the log (`part_recovery.py`).
2. Write them as parts into a scratch store, and compact these; lines that were not run come from the input.
3. Compare the receipt with the published one.

Missing lines are counted and reported.
"""

import hashlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from tidemill.results.files.compaction import Compactor
from tidemill.results.files.overlay_store import OverlayStore, RebuildError
from tidemill.results.files.part_recovery import PART_BYTES, PartRecovery
from tidemill.results.resources import FileRules
from tidemill.results.state.reducer import State
from tidemill.schemas.bounds import BATCH_LINES_MAX, NUMBER_MAX
from tidemill.schemas.log.codec import Headers
from tidemill.schemas.log.messages import InputRef
from tidemill.schemas.log.part import PartError, PartRef, file_key
from tidemill.schemas.ports import NotFound
from tidemill.schemas.resources.batch import Batch, Receipt, Status
from tidemill.schemas.resources.bill import Tariff
from tidemill.wording import counted, verb


@dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """The receipts of the rebuilt and of the published files."""

    receipt: Receipt
    published: Receipt
    unreadable: int
    """See `PartRecovery`."""

    @property
    def is_equal(self) -> bool:
        """Whether the rebuilt files equal the published ones, byte for byte."""
        return self.receipt == self.published


@dataclass
class Rebuild:
    """The rebuild of a published batch; the store below has its input and large results.

    Raises:
        RebuildError: The batch has no files.
    """

    batch: Batch
    store: OverlayStore
    bill_copies: bool
    """The setting when the files were written: whether they say the usage of copies."""
    _recovery: PartRecovery = field(init=False)

    def __post_init__(self) -> None:
        if not self.batch.status.is_terminal:
            raise RebuildError(f"{self.batch.id} is not over yet")
        if self.batch.tidemill.receipt is None:
            raise RebuildError(f"{self.batch.id} has no files: none of its lines was ever accepted")
        self._recovery = PartRecovery(self.batch, self._wanted, store=self.store)

    @property
    def is_complete(self) -> bool:
        """Whether the rebuild has found all lines that the batch had when it closed."""
        return not self._recovery.missing

    @property
    def _wanted(self) -> int:
        receipt = self.batch.tidemill.receipt
        assert receipt is not None
        answered = (receipt.output.lines if receipt.output else 0) + self.batch.request_counts.failed
        return answered - receipt.copies

    async def add(self, headers: Headers, value: bytes) -> None:
        """See `PartRecovery.add`."""
        await self._recovery.add(headers, value)

    async def finish(self) -> Rebuilt:
        """Write the files into the scratch store.

        Raises:
            RebuildError: Lines are missing, or the input of lines that were not run.
            OSError: The store failed.
        """
        found = self._recovery
        if found.missing and found.destroyed:
            raise RebuildError(
                f"{self.batch.id}: its key is destroyed, since its input was deleted: "
                f"{counted(found.destroyed, 'record')} of the log cannot be decrypted [key_destroyed]"
            )
        if found.missing:
            raise RebuildError(
                f"{self.batch.id}: {found.missing} of {counted(self._wanted, 'line')} "
                f"{verb(found.missing, 'is', 'are')} no longer in the log"
                f" ({counted(found.unreadable, 'record')} could not be read)"
            )
        rules = FileRules(
            part_bytes=PART_BYTES,
            tariff_of=_free,
            bill_copies=self.bill_copies,
            input_lines_max=BATCH_LINES_MAX,
            input_bytes_max=NUMBER_MAX,
        )
        try:
            fact = await Compactor(self.store, time.time, rules).compact(
                self._closed(await found.parts()), found.bitmap
            )
        except NotFound as error:
            raise RebuildError(
                f"{self.batch.id}: the input is gone, and lines that were not run need it"
            ) from error
        except PartError as error:
            raise RebuildError(f"{self.batch.id}: {error}") from error
        assert self.batch.tidemill.receipt is not None
        return Rebuilt(receipt=fact.receipt, published=self.batch.tidemill.receipt, unreadable=found.unreadable)

    def _closed(self, parts: tuple[PartRef, ...]) -> State:
        """The state of the batch when its files were written."""
        was = Status.CANCELLING if self.batch.status is Status.CANCELLED else Status.FINALIZING
        return State(
            id=self.batch.id,
            partition=0,
            batch=self.batch.model_copy(update={"status": was}),
            input=InputRef(key=file_key(self.batch.input_file_id), bytes=0),
            ending=self.batch.status,
            closed=True,
            parts=parts,
        )


async def same(store: OverlayStore, above: str, below: str) -> bool:
    """Whether the object in the store below equals the one in the folder; False if either is missing."""
    try:
        if await store.below.size(below) != await store.size(above):
            return False
        return await _digest(store.below.read(below)) == await _digest(store.read(above))
    except NotFound:
        return False


async def _digest(chunks: AsyncIterator[bytes]) -> bytes:
    digest = hashlib.sha256()
    async for chunk in chunks:
        digest.update(chunk)
    return digest.digest()


def _free(model: str | None, window: str) -> Tariff:
    """A price of zero: a rebuild bills nothing."""
    del model, window
    return Tariff()
