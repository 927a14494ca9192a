"""The log keeps its records for a time only: is what is still needed near its end? Pure decisions."""

import math
from typing import Final

MARGIN_SHARE: Final = 0.25
"""Of the time that the log keeps a record, the part at whose beginning somebody has to know."""
MARGIN_SECONDS_MAX: Final = 86_400.0


def margin_seconds(kept_seconds: float) -> float:
    """How long before a record may go it counts as in danger."""
    return min(MARGIN_SECONDS_MAX, MARGIN_SHARE * kept_seconds)


def risk_at(since: float, kept_seconds: float) -> float:
    """From when on what was written at `since` is in danger, Unix seconds; infinite where the log keeps all."""
    return since + kept_seconds - margin_seconds(kept_seconds) if math.isfinite(kept_seconds) else math.inf


def gone_at(since: float, kept_seconds: float) -> float:
    """From when on what was written at `since` may be gone, Unix seconds."""
    return since + kept_seconds


def is_at_risk(age_seconds: float, kept_seconds: float) -> bool:
    """Whether a record of that age is in danger."""
    return age_seconds >= risk_at(0.0, kept_seconds)
