"""A rate, an end and a slack are shown only while what they rest on is true, however old the record is."""

import re
from typing import Final

from tidemill.schemas.resources.batch import Progress

# A quote within a string is escaped in JSON, so this is found where it is a field; no field of it is an object.
_PROGRESS: Final = re.compile(rb'"progress":(\{"percent":[^{}]*\})')


def current(body: bytes, now: float) -> bytes:
    """A batch as JSON, with the progress that holds at a time.

    Args:
        body: As the view keeps it.
        now: Unix seconds.
    """
    if (found := _PROGRESS.search(body)) is None:
        return body
    told = Progress.model_validate_json(found[1])
    if (seen := told.at(now)) is told:
        return body
    return b"%b%b%b" % (body[: found.start(1)], seen.model_dump_json().encode(), body[found.end(1) :])
