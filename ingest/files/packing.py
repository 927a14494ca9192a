"""Put the lines of a batch into records.

A record holds up to 32 neighbouring lines, since a record costs a consumer far more than a line of it: a batch
of ten lines is one record. A run is eight records in a row whose lines go to one partition under one key; the next
run may go to another, so that every processor gets its share of a batch. The same file is packed the same way each
time, wherever the work broke off before.
"""

from collections.abc import AsyncIterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from tidemill.schemas.log.codec import LineRef, RequestHead
from tidemill.schemas.log.messages import Accepted, Rejected
from tidemill.schemas.log.topics import EXPRESS_LINES_MAX

RECORD_LINES_MAX: Final = 32
RECORD_BYTES_MAX: Final = 64 * 1024
"""A record of several lines is no larger; one line may be."""
INLINE_BYTES_MAX: Final = 256 * 1024
"""A larger line stays in the store, and its record says where."""
RUN_LINES: Final = 8 * RECORD_LINES_MAX


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What all records of a batch say."""

    batch_id: str
    project: str
    deadline: int
    """Unix seconds."""
    url: str
    key: str
    """Of the input file in the store."""
    created: int | None = None
    """Unix seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """A record of `requests`."""

    key: str
    value: bytes
    """Its lines, a newline between two; empty where the line is in the store."""
    head: RequestHead
    express: bool = False
    """Whether its batch is a small one."""


class RequestPublisher(Protocol):
    """What ingest appends to the log. Failures are `OSError`; any call may be made again after one."""

    async def send_fact(self, fact: Accepted | Rejected) -> None:
        """Append a fact; on return the log has it."""
        ...

    async def publish(self, model: str, records: AsyncIterable[Record]) -> None:
        """Append the records, in order under each key; on return the log has them all."""
        ...


class Packer:
    """Takes the lines of one batch in their order and gives records."""

    def __init__(self, origin: Origin, total: int) -> None:
        self._origin = origin
        self._express = total <= EXPRESS_LINES_MAX
        self._index = 0
        """The place of the next line in its batch."""
        self._first = 0
        self._lines: list[bytes] = []
        self._bytes = 0

    def take(self, offset: int, line: bytes) -> Iterator[Record]:
        """Add the next line, which starts at `offset` of the file; gives the records that are full."""
        size = len(line)
        starts_run = self._index % RUN_LINES == 0
        if self._lines and (starts_run or self._bytes + size >= RECORD_BYTES_MAX):
            yield self._packed()
        if size > INLINE_BYTES_MAX:
            if self._lines:
                yield self._packed()
            yield self._reference(LineRef(key=self._origin.key, offset=offset, length=size))
            self._index += 1
            return
        if not self._lines:
            self._first = self._index
        self._lines.append(line)
        self._bytes += size + 1
        self._index += 1
        if len(self._lines) == RECORD_LINES_MAX:
            yield self._packed()

    def finish(self) -> Iterator[Record]:
        """The last record."""
        if self._lines:
            yield self._packed()

    def _packed(self) -> Record:
        value = b"\n".join(self._lines)
        self._lines.clear()
        self._bytes = 0
        return self._record(self._first, value, None)

    def _reference(self, ref: LineRef) -> Record:
        return self._record(self._index, b"", ref)

    def _record(self, first: int, value: bytes, ref: LineRef | None) -> Record:
        origin = self._origin
        head = RequestHead(
            batch_id=origin.batch_id,
            project=origin.project,
            first=first,
            deadline=origin.deadline,
            url=origin.url,
            ref=ref,
            created=origin.created,
        )
        key = f"{origin.batch_id}/{first // RUN_LINES}"
        return Record(key=key, value=value, head=head, express=self._express)
