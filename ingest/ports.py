"""What a partition of the intake needs of the process it runs in."""

from collections.abc import AsyncIterable, Iterable
from dataclasses import dataclass
from typing import Protocol

from tidemill.ingest.files.packing import Record
from tidemill.ingest.streams.stream import State
from tidemill.schemas.log.messages import Accepted, Rejected


class Tables(Protocol):
    """What is kept of one partition; a write belongs to the record that is being handled."""

    async def take_over(self) -> None:
        """Become the owner, before anything else is read or written."""
        ...

    def states(self) -> Iterable[State]:
        """The streams that were not over when the partition was taken over."""
        ...

    def put(self, state: State) -> None:
        """Keep a stream."""
        ...

    def drop(self, batch_id: str) -> None:
        """Keep a stream no longer; followed by `put_decided`."""
        ...

    def drop_stale(self) -> None:
        """Drop what owners before this one have left, once all of it is put that counts."""
        ...

    def decided(self) -> int:
        """The offset up to which every record was decided on at the take-over, -1 for none."""
        ...

    def put_decided(self, offset: int) -> None:
        """Keep it."""
        ...

    async def delivered(self) -> None:
        """Wait until the changelog has every write made so far."""
        ...


class RequestPublisher(Protocol):
    """What ingest appends to the log. Failures are `OSError`; any call may be made again after one."""

    async def tell(self, fact: Accepted | Rejected) -> None:
        """Append a fact; on return the log has it."""
        ...

    async def publish(self, model: str, records: AsyncIterable[Record]) -> None:
        """Append the records, in order under each key; on return the log has them all."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """When what waits has waited long enough."""

    idle_seconds: float
    age_seconds: float
    part_bytes: int
