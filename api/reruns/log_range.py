"""Finds the lines of a range of the log, each once, and counts them or gathers them for a file."""

import asyncio
import datetime as dt
import re
from collections.abc import AsyncGenerator, Container
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from tidemill.api import errors
from tidemill.api.batches.token_estimate import TokenEstimate
from tidemill.api.dependencies import Dependencies, chunks_from_store
from tidemill.api.reruns.input_file import rewrite_line
from tidemill.api.reruns.replay_spool import ReplaySpool, Source, Sources
from tidemill.api.view.batch_tables import Erasures
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.codec import RequestHead
from tidemill.schemas.ports import Edge, LogRecord, NotFound, read_all
from tidemill.schemas.resources.batch import ReplayRange
from tidemill.sealing.records import open_request
from tidemill.sealing.vault import NoKey
from tidemill.sealing.wrapping import KeyUnavailable
from tidemill.wording import counted, verb

EDGE_CHARS_MAX: Final = 64
OFFSET_MAX: Final = (1 << 63) - 1
RECORDS_MAX: Final = 10_000_000
"""Records of a range; a longer one must be replayed in parts."""
_OFFSET: Final = re.compile(r"[0-9]{1,19}\Z")
_TIME: Final = re.compile(r"[0-9TWZ:,.+ -]+\Z")
"""Characters of a time; between the date and the time of day, Python takes any."""


def edge(text: str) -> Edge:
    """Parse an edge: an offset in digits, or a time in ISO 8601, in UTC unless it has a zone.

    Raises:
        ValueError: It is neither.
    """
    if _OFFSET.match(text) and int(text) <= OFFSET_MAX:
        return Edge(offset=int(text))
    try:
        at = dt.datetime.fromisoformat(text if _TIME.match(text) else "")
        zoned = at if at.tzinfo else at.replace(tzinfo=dt.UTC)
        return Edge(at_ms=max(0, int(zoned.timestamp() * 1000)))
    except (ValueError, OverflowError) as error:
        raise ValueError("expected an offset or a time like 2026-11-23T09:00:00Z") from error


@dataclass(frozen=True, kw_only=True)
class LogRange:
    """The lines to replay."""

    shown: ReplayRange
    """As the batch shows it."""
    start: Edge
    end: Edge | None
    project: str | None
    """The project of the lines; None for all."""
    endpoint: str | None
    """Only lines of this endpoint; None for any."""

    @property
    def topics(self) -> list[str]:
        """The topics with such lines; offsets refer to the first one only."""
        first = topics.requests(self.shown.model).name
        if self.start.offset is not None or (self.end is not None and self.end.offset is not None):
            return [first]
        return [first, topics.express(self.shown.model).name]

    def includes(self, head: RequestHead) -> bool:
        """Whether the range includes the lines of a record."""
        return self.project in (None, head.project) and self.endpoint in (None, head.url)


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundLine:
    """A line of the range, with its batch and its endpoint."""

    source: Source
    index: int
    data: bytes
    endpoint: str


class Found:
    """The contents of a range of a model's requests; `known` are the configured models."""

    def __init__(self, model: str, known: Container[str]) -> None:
        self._model, self._known = model, known
        self.sources = Sources()
        self.endpoints: set[str] = set()
        self.lost = 0
        """Large lines whose input file is deleted."""
        self._forbidden: dict[str, bool] = {}
        self._skipped = Sources()

    @property
    def skipped(self) -> int:
        """Lines of deleted batches or input files."""
        return self._skipped.lines

    def skips(self, erasures: Erasures, batch_id: str) -> bool:
        """Whether the lines of a batch must not run again."""
        if (known := self._forbidden.get(batch_id)) is None:
            known = self._forbidden[batch_id] = erasures.forbids(batch_id)
        return known

    def skip(self, head: RequestHead, entry: LogRecord) -> None:
        """Leave out the lines of a record."""
        if head.seal is not None:
            count = head.seal.lines
        else:
            count = 1 if head.ref is not None else entry.value.rstrip(b"\n").count(b"\n") + 1
        for index in head.indices or range(head.first, head.first + count):
            self._skipped.add(head.batch_id, index, entry.at_ms)

    def endpoint(self) -> str:
        """The endpoint of the lines.

        Raises:
            ApiError: 400, the lines have several; 404, there is no such model; 409, there are no lines.
        """
        if not self.endpoints and self.skipped:
            lines = f"{counted(self.skipped, 'line')} of the range {verb(self.skipped, 'belongs', 'belong')}"
            message = f"{lines} to deleted batches or input files."
            raise errors.conflict(message, code="lines_deleted")
        if not self.endpoints and self._model not in self._known:
            raise errors.no_model(self._model)
        if not self.endpoints:
            kept = topics.requests(self._model).retention_ms // topics.DAY_MS
            message = (
                f"No request of yours for '{self._model}' is in this range: "
                f"the log keeps them for {counted(kept, 'day')}."
            )
            raise errors.conflict(message, code="no_lines")
        if len(self.endpoints) > 1:
            named = ", ".join(sorted(self.endpoints))
            message = f"The range has lines for {named}: name one with 'source.endpoint'."
            raise errors.invalid(message, param="source.endpoint", code="ambiguous_endpoint")
        return next(iter(self.endpoints))


async def gather(deps: Dependencies, log_range: LogRange, spool: ReplaySpool) -> Found:
    """Gather the lines of a range in a spool.

    Raises:
        ApiError: 400, they are more than a batch may have; 409, lines are lost.
        LogUnavailable: The log does not answer.
    """
    found = Found(log_range.shown.model, deps.serving.models)
    lines_max, bytes_max = deps.settings.file_lines_max, deps.settings.file_bytes_max
    async with aclosing(_records(deps, log_range, found)) as records:
        async for lines in records:
            for line in lines:
                spool.put(line.source.number, line.index, line.data)
            if found.sources.lines > lines_max or spool.size > bytes_max:
                message = (
                    f"The range is more than the {lines_max} lines or {bytes_max} bytes of a batch: narrow it."
                )
                raise errors.invalid(message, param="source", code="range_too_large")
    if found.lost:
        lost = f"{counted(found.lost, 'large line')} of the range {verb(found.lost, 'was', 'were')}"
        message = f"{lost} in input files that are deleted."
        raise errors.conflict(message, code="file_gone")
    return found


async def estimate(deps: Dependencies, log_range: LogRange, model: str | None) -> tuple[Found, TokenEstimate]:
    """Estimate the lines of a range, even if they are too many for a batch.

    Raises:
        ApiError: 400, the range has more than `RECORDS_MAX` records, or lines for several endpoints.
        LogUnavailable: The log does not answer.
    """
    found = Found(log_range.shown.model, deps.serving.models)
    sums: dict[str, TokenEstimate] = {}
    async with aclosing(_records(deps, log_range, found)) as records:
        async for lines in records:
            await asyncio.to_thread(_count, sums, lines, model)
    endpoint = found.endpoint()
    # If all lines are lost, none was counted.
    return found, sums.get(endpoint, TokenEstimate(endpoint))


def _count(sums: dict[str, TokenEstimate], lines: list[FoundLine], model: str | None) -> None:
    for line in lines:
        sums.setdefault(line.endpoint, TokenEstimate(line.endpoint)).add(rewrite_line(line.data, model=model))


async def _records(deps: Dependencies, log_range: LogRange, found: Found) -> AsyncGenerator[list[FoundLine], None]:
    """The lines of each record, each line once."""
    left = RECORDS_MAX
    for topic in log_range.topics:
        async with aclosing(deps.history.entries(topic, log_range.start, log_range.end)) as entries:
            async for entry in entries:
                # A fetch has thousands of lines; other tasks run in between.
                await asyncio.sleep(0)
                left -= 1
                if left < 0:
                    message = f"The range has more than {RECORDS_MAX} records: narrow it."
                    raise errors.invalid(message, param="source", code="range_too_large")
                if lines := await _new_lines(deps, log_range, found, entry):
                    yield lines


async def _new_lines(deps: Dependencies, log_range: LogRange, found: Found, entry: LogRecord) -> list[FoundLine]:
    """The wanted lines of a record that were not found before."""
    try:
        head = codec.request_head(entry.headers)
    except codec.DecodeError:
        # An unreadable record has no project; the processors have moved it to the dead letters.
        return []
    if not log_range.includes(head):
        return []
    if found.skips(deps.view.erasures, head.batch_id):
        found.skip(head, entry)
        return []
    try:
        texts = await _texts(deps, entry, head)
        places = head.places(len(texts))
    except NoKey:
        found.skip(head, entry)
        return []
    except codec.DecodeError:
        return []
    new = []
    for index, line in zip(places, texts, strict=True):
        if (source := found.sources.add(head.batch_id, index, entry.at_ms)) is None:
            continue
        found.endpoints.add(head.url)
        if line is None:
            found.lost += 1
        else:
            new.append(FoundLine(source=source, index=index, data=line, endpoint=head.url))
    return new


async def _texts(deps: Dependencies, entry: LogRecord, head: RequestHead) -> list[bytes | None]:
    """The lines of a record; None for one whose file is deleted."""
    if (ref := head.ref) is None:
        try:
            value = await open_request(deps.vault, head, entry.value)
        except KeyUnavailable as error:
            raise errors.unavailable("keys of these lines") from error
        return list(value.rstrip(b"\n").split(b"\n"))
    try:
        return [await read_all(chunks_from_store(deps.store.read(ref.key, ref.offset, ref.offset + ref.length)))]
    except NotFound:
        return [None]
