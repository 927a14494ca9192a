"""What a partition of the intake needs of the process it runs in."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from tidemill.ingest.streams.stream import State


class Tables(Protocol):
    """What is kept of one partition; a write belongs to the record that is being handled."""

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


class Sender(Protocol):
    """The log, where dead letters go."""

    async def send(self, topic: str, key: str, value: bytes | None, *, headers: Any = ...) -> int:
        """Append a record."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """When what waits has waited long enough."""

    idle_seconds: float
    age_seconds: float
    part_bytes: int
