"""What the stage needs of the process it runs in: tables, the log, and the store."""

from collections.abc import AsyncGenerator, Iterable
from typing import Protocol

from tidemill.results.fold import State
from tidemill.schemas.codec import Headers


class Tables(Protocol):
    """The state tables of one partition; a write belongs to the event that is being handled."""

    def states(self) -> Iterable[State]:
        """All batches of the partition, also those that are over."""
        ...

    def state(self, batch_id: str) -> State | None:
        """One batch."""
        ...

    def put_state(self, state: State) -> None:
        """Keep a batch."""
        ...

    def chunks(self, batch_id: str, count: int) -> Iterable[tuple[int, bytes]]:
        """The first chunks of a batch's tally that there are, of `count`: number and content."""
        ...

    def put_chunk(self, batch_id: str, number: int, chunk: bytes) -> None:
        """Keep a chunk of a batch's tally."""
        ...

    async def delivered(self) -> None:
        """Wait until the changelog has every write made so far."""
        ...


class Sender(Protocol):
    """The log as the stage writes it."""

    async def send(
        self,
        topic: str,
        key: str,
        value: bytes | None,
        *,
        headers: Headers = ...,
        partition: int | None = ...,
    ) -> int:
        """Append a record and return its offset; on return every in-sync replica has it."""
        ...


class History(Protocol):
    """What the log still has."""

    def outcomes(self, partition: int, since: float) -> AsyncGenerator[tuple[Headers, bytes], None]:
        """Headers and value of the records of a partition of `outcomes`, up to where it ends now.

        Args:
            partition: Its number.
            since: Unix seconds; what was written before may be left out.

        Raises:
            OSError: The log does not answer.
        """
        ...
