"""When records of the log are so old that its retention may soon remove them."""

import math
from typing import Final

MARGIN_SHARE: Final = 0.25
"""The last quarter of the retention time counts as at risk, but at most `MARGIN_SECONDS_MAX`."""
MARGIN_SECONDS_MAX: Final = 86_400.0


def risk_at(since: float, retention_seconds: float) -> float:
    """When a record written at `since` becomes at risk, Unix seconds; infinite if the log keeps all records."""
    if math.isinf(retention_seconds):
        return math.inf
    return since + retention_seconds - min(MARGIN_SECONDS_MAX, MARGIN_SHARE * retention_seconds)


def is_at_risk(age_seconds: float, retention_seconds: float) -> bool:
    """Whether a record of this age is at risk."""
    return age_seconds >= risk_at(0.0, retention_seconds)
