"""What the stage needs of its process: who owns a partition, the settings, and what the log still has."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from tidemill.schemas.log.codec import Headers
from tidemill.schemas.resources.bill import Tariff

TariffOf = Callable[[str | None], Tariff]
"""The present price of a model; None for a batch that ended before it had a model."""


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A process as the owner of a partition."""

    writer: str
    """Of no other owner, now or before; part of the keys of what it writes to the store."""
    generation: int
    """Of the group of consumers, when the partition was assigned; see `results/state/tables.py`."""
    held: Callable[[], Awaitable[None]]
    """Waits until the partition is surely this process's; it may never return."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The settings of the stage; see `settings.py`."""

    part_bytes: int
    part_age_seconds: float
    grace_seconds: float
    tariff_of: TariffOf
    kept_seconds: Callable[[], float] = lambda: float("inf")
    """How long the log keeps what a batch needs; it may change."""


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
