"""The settings of the stage of results."""

from collections.abc import Callable
from dataclasses import dataclass

from tidemill.results.files.compaction import TariffOf


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The stage's settings; see `settings.py`."""

    part_bytes: int
    part_age_seconds: float
    grace_seconds: float
    tariff_of: TariffOf
    kept_seconds: Callable[[], float] = lambda: float("inf")
    """How long the log keeps what a batch needs; asked again and again."""
