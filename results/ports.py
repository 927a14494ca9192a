"""What the stage needs of the process it runs in: tables, the log, and the store."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from tidemill.schemas.log.codec import Headers


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A process as the owner of a partition."""

    writer: str
    """Of no other owner, now or before; part of the keys of what it writes to the store."""
    generation: int
    """Of the group of consumers, when the partition was assigned; see `results/state/tables.py`."""
    held: Callable[[], Awaitable[None]]
    """Waits until the partition is surely this process's; raises `CancelledError` where it never will be again."""


class Outcomes(Protocol):
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
