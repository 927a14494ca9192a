"""The types that the process passes to its partitions: owner, settings, connections and clocks."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field

from tidemill.results.result_metrics import ResultMetrics
from tidemill.schemas.log.codec import Headers
from tidemill.schemas.ports import Clock, Monotonic, Sender, Store
from tidemill.schemas.resources.bill import Tariff
from tidemill.schemas.resources.waiting import Waiting
from tidemill.storage.buckets import Buckets

TariffOf = Callable[[str | None, str], Tariff]
"""The current price of a model in a completion window; None as the model of a batch that ended without one.
Raises `PriceError` if it cannot be read."""
Outcomes = Callable[[int, float], AsyncGenerator[tuple[Headers, bytes], None]]
"""Headers and value of the records of a partition of `outcomes`, up to its current end; those older than a Unix
time may be left out. Raises `OSError` if the log does not answer."""


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A process as the owner of a partition."""

    writer: str
    """A token that no other owner has or had; it is part of the keys of the objects this owner writes."""
    generation: int
    """Generation of the consumer group when the partition was assigned; see `results/state/tables.py`."""
    confirm: Callable[[], Awaitable[None]]
    """Waits until this process certainly owns the partition; never returns if it has lost it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRules:
    """The settings of the files of a batch."""

    part_bytes: int
    tariff_of: TariffOf
    bill_copies: bool
    """Whether a line that got the answer to an equal line costs as much as that line."""
    input_lines_max: int
    input_bytes_max: int
    """Bounds of an input that ingest accepts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The settings of the stage; see `settings.py`."""

    files: FileRules
    part_age_seconds: float
    grace_seconds: float
    output_life_seconds: int
    partitions: Callable[[], int]
    """Number of partitions of this process, at least 1; they share its memory."""
    why_uncalled: Callable[[str], Waiting | None]
    """Why no process may call the lines of a model, if none may."""
    revision: Callable[[], int]
    """Changes when `why_uncalled` may have changed."""
    retention_seconds: Callable[[], float]
    """How long the log keeps all records of a batch, in seconds; it may change."""
    kept_seconds: Callable[[], float]
    """The longest time that the log keeps any of them, or a batch may run, in seconds; it may change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """The connections, clocks and settings that all partitions of a process share."""

    sender: Sender
    history: Outcomes
    store: Store
    clock: Clock
    monotonic: Monotonic
    limits: Limits
    compactions: asyncio.Semaphore
    """Bounds how many batches are compacted at once."""
    buckets: Buckets
    """The buckets of users."""
    wake: Callable[[], None]
    """Wakes the workers of the partitions, which call `RecordHandler.tick`."""
    metrics: ResultMetrics = field(default_factory=ResultMetrics)
