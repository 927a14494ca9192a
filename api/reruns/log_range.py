"""A part of a topic: from an edge up to another one, each a time or an offset."""

import datetime as dt
import re
from typing import Final

from tidemill.api import errors
from tidemill.schemas.ports import Edge

EDGE_CHARS_MAX: Final = 64
OFFSET_MAX: Final = (1 << 63) - 1
_OFFSET: Final = re.compile(r"\d{1,19}\Z")


def edge(text: str, param: str) -> Edge:
    """Read an edge: digits are an offset, all else is a time in ISO 8601; without a zone it is UTC.

    Raises:
        ApiError: 400, it is neither.
    """
    if _OFFSET.match(text) and int(text) <= OFFSET_MAX:
        return Edge(offset=int(text))
    try:
        at = dt.datetime.fromisoformat(text[:EDGE_CHARS_MAX])
        zoned = at if at.tzinfo else at.replace(tzinfo=dt.UTC)
        return Edge(at_ms=max(0, int(zoned.timestamp() * 1000)))
    except (ValueError, OverflowError) as error:
        message = f"Invalid '{param}': expected an offset or a time like 2026-11-23T09:00:00Z."
        raise errors.invalid(message, param=param, code="invalid_value") from error
