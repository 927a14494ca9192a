"""Reads records of `tidemill.batches`, and decodes only what ingest needs: a process reads all of them."""

import logging

import msgspec

from tidemill.schemas import UNREADABLE
from tidemill.schemas.log.messages import VERSION
from tidemill.schemas.resources.batch import Status

log = logging.getLogger(__name__)


class _Counts(msgspec.Struct, frozen=True):
    total: int = 0
    completed: int = 0
    failed: int = 0


class _Extras(msgspec.Struct, frozen=True):
    stream: str | None = None
    stream_partition: int | None = None
    open: bool | None = None
    input_bytes: int | None = None


class _Batch(msgspec.Struct, frozen=True):
    status: Status
    request_counts: _Counts = _Counts()
    tidemill: _Extras = _Extras()

    @property
    def accepts_records(self) -> bool:
        """Whether a producer may add lines to it."""
        is_over = self.status.is_terminal or self.status is Status.CANCELLING
        return bool(self.tidemill.open) and not is_over

    @property
    def has_input(self) -> bool:
        """Whether its input file is complete."""
        return self.status.is_terminal or not (self.tidemill.open or self.tidemill.input_bytes is not None)


class BatchSummary(msgspec.Struct, frozen=True):
    """A batch."""

    project: str
    batch: _Batch
    v: int = 1


_records = msgspec.json.Decoder(BatchSummary)


def decoded(value: bytes, offset: int) -> BatchSummary | None:
    """A record; None if it cannot be read, or is of another version."""
    try:
        record = _records.decode(value)
    except UNREADABLE as error:
        log.warning("record %d of the batches cannot be read (%s)", offset, type(error).__name__)
        return None
    return record if record.v == VERSION else None
