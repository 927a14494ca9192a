"""The settings of results as tests need them: one partition, no prices, no bounds."""

from typing import Any

from tidemill.results.resources import FileRules, Limits
from tidemill.schemas.bounds import BATCH_LINES_MAX, NUMBER_MAX
from tidemill.schemas.resources.bill import Tariff


def file_rules(**given: Any) -> FileRules:
    """Parts of up to 1 MiB, unless given."""
    usual = {
        "part_bytes": 1 << 20,
        "tariff_of": lambda *_: Tariff(),
        "bill_copies": False,
        "input_lines_max": BATCH_LINES_MAX,
        "input_bytes_max": NUMBER_MAX,
    }
    return FileRules(**usual | given)


def limits(**given: Any) -> Limits:
    """A log that keeps its records, and models that may be called, unless given."""
    usual = {
        "files": file_rules(),
        "part_age_seconds": 1.0,
        "grace_seconds": 5.0,
        "output_life_seconds": 3600,
        "partitions": lambda: 1,
        "why_uncalled": lambda _: None,
        "revision": lambda: 0,
        "retention_seconds": lambda: float("inf"),
        "kept_seconds": lambda: float("inf"),
    }
    return Limits(**usual | given)
