"""Packs the lines of a batch into records.

A record holds up to 128 neighbouring lines, because a record costs a consumer far more than a line does. A run is
two full records with one key, and so for one partition; the next run goes to the next partition, so that all
processors share a batch. If the lines name several models, those of each model are packed as if there were no
others. The same lines are always packed the same way, even after a crash.
"""

from collections.abc import AsyncIterable, Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol, TypeVar

from tidemill.schemas.jsonl.lines import Line
from tidemill.schemas.log.codec import LineMark, LineRef, RequestHead
from tidemill.schemas.log.messages import Accepted, Rejected, Stalled
from tidemill.schemas.resources.batch import Batch
from tidemill.telemetry import tracing

RECORD_LINES_MAX: Final = 128
RECORD_BYTES_MAX: Final = 64 * 1024
"""Bound of a record with several lines; a single line may be larger."""
INLINE_BYTES_MAX: Final = 256 * 1024
"""A larger line stays in the store, and its record refers to it."""
RUN_LINES: Final = 2 * RECORD_LINES_MAX
SLICE_BYTES: Final = 128 * 1024
SLICE_LINES: Final = 256
"""Lines handled in a row before other tasks run: one or two milliseconds of work."""

PUBLISH: Final = "publish tidemill.requests"
"""The name of the span in which a batch is published; the full topic names also have the model."""

T = TypeVar("T")

Placed = tuple[int, bytes | LineRef]
"""The place of a line in its batch, and the line or its place in the store."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestRecord:
    """A record of `requests`."""

    model: str
    key: str
    value: bytes
    """Its lines, separated by newlines; empty if the line is in the store."""
    head: RequestHead
    express: bool = False
    """Whether the batch is small, so that its records go to the express topic."""


class RequestPublisher(Protocol):
    """Appends requests and facts to the log. Failures are `OSError`, and every call may be retried."""

    async def send_fact(self, fact: Accepted | Rejected | Stalled) -> None:
        """Append a fact; on return the log has it."""
        ...

    async def begin(self, batch_id: str, project: str) -> None:
        """Create the key that seals objects of the batch, if it needs one, before its first line."""
        ...

    async def refuse(self, batch_id: str, marks: list[LineMark], value: bytes, *, model: str) -> None:
        """Append error lines, which count for a model; on return the log has them."""
        ...

    async def publish(self, records: AsyncIterable[RequestRecord]) -> None:
        """Append records to their models' topics, in order under each key; on return the log has them all."""
        ...


def publication(lines: int) -> tracing.Attributes:
    """The attributes of `PUBLISH`."""
    return {**tracing.messaging("publish", "send", "tidemill.requests"), tracing.COUNT: lines}


def head_of(batch: Batch, project: str, *, created: int | None, validated: bool) -> RequestHead:
    """What the heads of all records of a batch have in common; see `RequestHead`."""
    return RequestHead(
        batch_id=batch.id,
        project=project,
        first=0,
        deadline=batch.expires_at,
        url=batch.endpoint,
        created=created,
        headers=batch.tidemill.headers or {},
        traceparent=batch.tidemill.traceparent,
        validated=validated,
    )


class Packer:
    """Packs the lines of a batch in the order of their places, which may have gaps."""

    def __init__(
        self, head: RequestHead, models: Sequence[str], numbers: bytes = b"", *, express: bool = False
    ) -> None:
        """Begin without lines.

        Args:
            head: See `head_of`.
            models: The models that the lines name.
            numbers: For each line, the place of its model; empty if there is only one.
            express: See `RequestRecord`.
        """
        self._numbers = numbers
        self._lines = [_LinesOfModel(head, model, express) for model in models]

    def pack(self, placed: Iterable[Placed]) -> Iterator[RequestRecord]:
        """Add lines; yields the records that they complete."""
        models, numbers = self._lines, self._numbers
        waiting = models[0]
        for place, data in placed:
            if numbers:
                waiting = models[numbers[place]]
            else:  # The lines of a stream come in other groups after a crash, and keep their partitions.
                if place // RUN_LINES != (waiting.packed - 1) // RUN_LINES:
                    yield from waiting.finish()
                waiting.packed = place
            if not isinstance(data, bytes):
                yield from waiting.finish()
                yield waiting.single(place, data)
                continue
            texts = waiting.texts
            if texts and (
                waiting.size + len(data) >= RECORD_BYTES_MAX
                or len(texts) >= RECORD_LINES_MAX
                or not waiting.packed % RUN_LINES
            ):
                yield from waiting.finish()
            waiting.packed += 1
            texts.append(data)
            waiting.places.append(place)
            waiting.size += len(data) + 1

    def finish(self) -> Iterator[RequestRecord]:
        """Yield records of the waiting lines."""
        for waiting in self._lines:
            yield from waiting.finish()


@dataclass(slots=True)
class _LinesOfModel:
    """The waiting lines of one model."""

    head: RequestHead
    model: str
    express: bool
    packed: int = 0
    """Lines of the model so far; with one model, the place behind the last line."""
    texts: list[bytes] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    size: int = 0

    def finish(self) -> Iterator[RequestRecord]:
        if self.texts:
            value, places = b"\n".join(self.texts), self.places
            is_gapless = places[-1] - places[0] == len(places) - 1
            yield self._record(places[0], value, indices=None if is_gapless else tuple(places))
            self.texts.clear()
            self.places, self.size = [], 0

    def single(self, place: int, ref: LineRef) -> RequestRecord:
        """The record of a line in the store."""
        self.packed += 1
        return self._record(place, b"", ref=ref)

    def _record(
        self, first: int, value: bytes, *, ref: LineRef | None = None, indices: tuple[int, ...] | None = None
    ) -> RequestRecord:
        head = replace(self.head, first=first, ref=ref, indices=indices)
        key = f"{head.batch_id}/{(self.packed - 1) // RUN_LINES}"
        return RequestRecord(model=self.model, key=key, value=value, head=head, express=self.express)


def placed(first: int, key: str, lines: Iterable[Line], faulty: Collection[int] = ()) -> Iterator[Placed]:
    """The lines of an input file without the faulty ones, and their places.

    Args:
        first: The place of the first line.
        key: Key of the file in the store.
        lines: The lines.
        faulty: The places of invalid ones.
    """
    for place, line in enumerate(lines, first):
        if faulty and place in faulty:
            continue
        data = line.data
        assert data is not None
        if len(data) > INLINE_BYTES_MAX:
            yield place, LineRef(key=key, offset=line.offset, length=len(data))
        else:
            yield place, data


def sliced(lines: Iterable[T], size_of: Callable[[T], int]) -> Iterator[list[T]]:
    """Cut lines into slices of about `SLICE_BYTES` and at most `SLICE_LINES`; the last one may be empty."""
    held: list[T] = []
    size = 0
    for line in lines:
        held.append(line)
        size += size_of(line)
        if size >= SLICE_BYTES or len(held) >= SLICE_LINES:
            yield held
            held, size = [], 0
    yield held
