"""The types that the process passes to its partitions: owner, settings, connections and clocks."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field

from tidemill.results.result_metrics import ResultMetrics
from tidemill.schemas.bounds import BATCH_LINES_MAX, NUMBER_MAX
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
class Limits:
    """The settings of the stage; see `settings.py`."""

    part_bytes: int
    part_age_seconds: float
    grace_seconds: float
    output_life_seconds: int
    tariff_of: TariffOf
    partitions: Callable[[], int] = lambda: 1
    """Number of partitions of this process, at least 1; they share its memory."""
    bill_copies: bool = False
    """Whether a line that got the answer to an equal line costs as much as that line."""
    input_lines_max: int = BATCH_LINES_MAX
    input_bytes_max: int = NUMBER_MAX
    """Bounds of an input that ingest accepts."""
    why_uncalled: Callable[[str], Waiting | None] = lambda _: None
    """Why no process may call the lines of a model, if none may."""
    revision: Callable[[], int] = lambda: 0
    """Changes when `why_uncalled` may have changed."""
    retention_seconds: Callable[[], float] = lambda: float("inf")
    """How long the log keeps all records of a batch, in seconds; it may change."""
    kept_seconds: Callable[[], float] = lambda: float("inf")
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
    buckets: Buckets = field(default_factory=lambda: Buckets({}))
    """The buckets of users."""
    wake: Callable[[], None] = lambda: None
    """Wakes the workers of the partitions, which call `RecordHandler.tick`."""
    metrics: ResultMetrics = field(default_factory=ResultMetrics)
