"""Searches the finished lines of a batch: a bounded part of them for each request."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, Final

import orjson
from pydantic import Field

from tidemill.api.batches import report, result_pages
from tidemill.api.dependencies import Dependencies
from tidemill.api.requests.fields import OneOf
from tidemill.api.requests.reading import WHOLE, Parameters
from tidemill.api.view.result_lines import Found, bounded
from tidemill.runtime.threads import run_half_time
from tidemill.schemas.bounds import METADATA_VALUE_CHARS_MAX, NAME_CHARS_MAX, Name, Word
from tidemill.schemas.resources.batch import Batch

LIMIT_DEFAULT: Final = 100
LIMIT_MAX: Final = 1_000
INDEX_MAX: Final = 10_000_000
STATUSES: Final = ("completed", "failed")
STEP_LINES: Final = 1_000
SCAN_LINES_MAX: Final = 20_000
"""Lines that one request reads at most."""
SCAN_BYTES_MAX: Final = 8 << 20
"""Bytes of lines after which a request reads no further: some 50 ms of CPU."""


class ResultsQuery(Parameters):
    """The query of results; all its conditions must hold."""

    limit: Annotated[int, Field(ge=1, le=LIMIT_MAX), WHOLE] = LIMIT_DEFAULT
    """How many a page has at most."""
    after: Annotated[int, Field(ge=-1, le=INDEX_MAX), WHOLE] = -1
    """`next_after` of the page before."""
    status: Annotated[str, OneOf(STATUSES)] | None = None
    """Only those lines."""
    custom_id: Annotated[str, Field(max_length=METADATA_VALUE_CHARS_MAX)] | None = None
    """Only lines with this `custom_id`."""
    contains: Annotated[str, Field(max_length=NAME_CHARS_MAX)] | None = None
    """Only lines of the output or error file with this text, in upper or lower case."""
    code: Word | None = None
    """Only failed lines with this error code."""
    server: Name | None = None
    """Only lines whose last call went to this server."""

    @property
    def reads_lines(self) -> bool:
        """Whether the index of lines does not answer it."""
        return not (self.custom_id is self.contains is self.code is self.server is None)

    def matches(self, line: bytes, *, failed: bool) -> bool:
        """Whether a line meets the conditions."""
        if self.code is not None and (not failed or report.fault(line)[0] != self.code):
            return False
        if self.custom_id is not None and result_pages.parse(line).name != self.custom_id:
            return False
        if self.server is not None:
            call = result_pages.parse(line).tidemill
            if call is None or call.server != self.server:
                return False
        return self.contains is None or _plain(self.contains) in _searched(line)


@dataclass(frozen=True, kw_only=True)
class Matches:
    """Lines that a request found."""

    found: list[Found]
    searched_to: int | None
    """The last index that the search has read; None if it has read all."""


async def search(deps: Dependencies, project: str, batch: Batch, query: ResultsQuery) -> Matches:
    """The first matching lines of a page, as far as one request reads.

    Raises:
        ApiError: 503, the store does not answer.
    """
    matching: list[Found] = []
    after, lines, size = query.after, 0, 0
    # Lines of a batch that failed are all that may have a code.
    status = "failed" if query.code is not None and query.status is None else query.status
    while lines < SCAN_LINES_MAX and size < SCAN_BYTES_MAX:
        page = await result_pages.page(deps, project, batch, after=after, limit=STEP_LINES, status=status)
        if not (page := bounded(page)):
            return Matches(found=matching, searched_to=None)
        texts = await result_pages.texts(deps, page)
        room = query.limit - len(matching)
        new = await run_half_time(_matching, query, page, texts, room)
        matching += new
        after = new[-1].index if len(new) == room else page[-1].index
        if len(new) == room:
            break
        lines, size = lines + len(page), size + sum(map(len, texts))
    return Matches(found=matching, searched_to=after)


def _matching(query: ResultsQuery, page: list[Found], texts: list[bytes], room: int) -> list[Found]:
    pairs: Iterable[tuple[Found, bytes]] = zip(page, texts, strict=True)
    return list(islice((one for one, text in pairs if query.matches(text, failed=one.failed)), room))


def _searched(line: bytes) -> bytes:
    """A line as `_plain` has it; as it is written, if it has a number or a depth that the parser refuses."""
    try:
        return _plain(orjson.loads(line))
    except (ValueError, TypeError):
        return line.lower()


def _plain(content: Any) -> bytes:
    """A value as JSON in lower case, escaped in one way; of a text without its quotes."""
    encoded = orjson.dumps(content)
    text = encoded[1:-1] if isinstance(content, str) else encoded
    return text.decode().lower().encode()
