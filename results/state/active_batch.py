"""A batch in memory while it is active: its state, its line bitmap and the lines that wait for a part."""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, compress
from typing import Final

from tidemill.kafka.partitions.owner import Ack
from tidemill.results.resources import Limits
from tidemill.results.state import reducer
from tidemill.results.state.eta import Eta
from tidemill.results.state.line_bitmap import NONE, LineBitmap, LineSums, Sum, added
from tidemill.results.state.reducer import State
from tidemill.results.state.stalls import Stalls
from tidemill.schemas.bitmap import CHUNK_LINES
from tidemill.schemas.lifecycle import AT_WORK
from tidemill.schemas.log.codec import LineMark
from tidemill.schemas.log.part import NO_MODEL, UNKNOWN_USAGE, USAGE, encode_index
from tidemill.schemas.resources.batch import Progress
from tidemill.schemas.resources.waiting import Reason, Waiting

PUBLISH_SECONDS: Final = 0.5
"""A batch at work is published at most this often; a small batch that ends sooner is published only then."""
PUBLISH_SECONDS_MAX: Final = 2.0
"""Progress by less than one line in `PUBLISH_DIVISOR` is published after this time."""
PUBLISH_DIVISOR: Final = 50
PIECE_BYTES: Final = 1 << 20
"""Parts go to the store in pieces of about this size."""

Obstacle = tuple[Reason, str]
"""Why a batch cannot go on: the reason, and a message for its user."""


@dataclass(slots=True)
class PartBuffer:
    """Lines that wait for a part, in the order of arrival; columns and one string, since there may be many."""

    indices: "array[int]" = field(default_factory=lambda: array("I"))
    sizes: "array[int]" = field(default_factory=lambda: array("I"))
    usages: "array[int]" = field(default_factory=lambda: array("I"))
    """Four numbers for each line."""
    attempts: "array[int]" = field(default_factory=lambda: array("I"))
    text: bytearray = field(default_factory=bytearray)
    """The lines, one after the other."""
    sums: dict[int, dict[int, Sum]] = field(default_factory=dict)
    """See `ByChunk`; here with usage of lines that failed."""

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def size(self) -> int:
        """Bytes of the lines."""
        return len(self.text)

    def add(self, marks: Sequence[LineMark], lines: bytes | memoryview, models: Sequence[int] = ()) -> None:
        """Append lines, which stand one after the other; `models` are those of `part`."""
        indices = [mark.index for mark in marks]
        usages = [number for mark in marks for number in mark.usage or UNKNOWN_USAGE]
        attempts = [mark.attempts for mark in marks]
        self.indices.fromlist(indices)
        self.sizes.fromlist([mark.size for mark in marks])
        self.usages.fromlist(usages)
        self.attempts.fromlist(attempts)
        self.text += lines
        self._sum(indices, usages, attempts, models)

    def cut(self, lines: int, size: int, models: Sequence[int] = ()) -> None:
        """Keep the first lines, which have `size` bytes, and remove the others."""
        del self.indices[lines:], self.sizes[lines:], self.text[size:]
        del self.usages[USAGE * lines :], self.attempts[lines:]
        self.sums.clear()
        self._sum(self.indices, self.usages, self.attempts, models)

    def _sum(
        self, indices: Sequence[int], usages: Sequence[int], attempts: Sequence[int], models: Sequence[int]
    ) -> None:
        columns = [usages[column::USAGE] for column in range(USAGE)]
        chunk = indices[0] // CHUNK_LINES if indices else 0
        is_one = not models and indices and min(indices) // CHUNK_LINES == max(indices) // CHUNK_LINES
        if is_one and UNKNOWN_USAGE[0] not in columns[0]:
            # The usual case: a record has neighbouring lines.
            calls = sum(attempts) - len(attempts) + attempts.count(0)
            sums = self.sums.setdefault(chunk, {})
            read, cached, written, last = map(sum, columns)
            sums[0] = added(sums.get(0, NONE), (read, cached, written, last, calls))
            return
        for index, calls, read, cached, written, last in zip(indices, attempts, *columns, strict=True):
            sums = self.sums.setdefault(index // CHUNK_LINES, {})
            number = models[index] if models else 0
            more = max(0, calls - 1)
            is_known = read != UNKNOWN_USAGE[0]
            usage = (read, cached, written, last, more) if is_known else (0, 0, 0, 0, more)
            sums[number] = added(sums.get(number, NONE), usage)

    def part(self, models: Sequence[int] = ()) -> tuple[int, bytes, Iterator[bytes]]:
        """The lines as a part: the first index, the encoded columns, and the lines in order, in pieces.

        Args:
            models: The number of the model of each line by its index; empty if there are none.
        """
        order = sorted(range(len(self)), key=self.indices.__getitem__)
        indices, sizes, usages = self.indices, self.sizes, self.usages.tobytes()
        width = len(usages) // len(order)
        columns = encode_index(
            array("I", [indices[place] for place in order]),
            array("I", [sizes[place] for place in order]),
            array("I", [models[indices[place]] for place in order] if models else [NO_MODEL] * len(order)),
            array("I", b"".join([usages[width * place : width * (place + 1)] for place in order])),
        )
        return indices[order[0]], columns, self._pieces(order)

    def _pieces(self, order: list[int]) -> Iterator[bytes]:
        text, sizes, ends = self.text, self.sizes, list(accumulate(self.sizes))
        lines = max(1, len(order) * PIECE_BYTES // max(1, len(text)))
        for start in range(0, len(order), lines):
            some = order[start : start + lines]
            with memoryview(text) as view:
                piece = b"".join([view[ends[place] - sizes[place] : ends[place]] for place in some])
            yield piece


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A batch before an event. Each event takes one, so it holds references and copies nothing."""

    state: State
    kept: State | None
    buffers: tuple[tuple[PartBuffer, int, int], ...]
    """Each buffer with its numbers of lines and bytes."""
    acks: tuple[list[Ack], int]
    times: tuple[float | None, float, float | None]
    unpublished: bool


@dataclass(slots=True)
class Blockage:
    """The obstacle that blocks a batch in this process, and the time of the next attempt."""

    shown: tuple[Waiting, ...] = ()
    """The reason to show on the batch; empty if nothing blocks it."""
    is_unread: bool = False
    """Whether result lines of the batch cannot be read at the moment (`kafka/partitions/held_records.py`)."""
    refusals: int = 0
    """How often in a row the store has refused its lines."""
    again_at: float = 0.0
    """When to try again, by the monotonic clock."""
    is_of_timer: bool = False
    """Whether the reason is that the work of a timer failed."""


@dataclass(slots=True)
class ActiveBatch:
    """An active batch; times are those of the monotonic clock."""

    state: State
    bitmap: LineBitmap
    kept: State | None = None
    """The state that this process last wrote to the table."""
    output: PartBuffer = field(default_factory=PartBuffer)
    errors: PartBuffer = field(default_factory=PartBuffer)
    acks: list[Ack] = field(default_factory=list)
    """Acknowledge the events whose lines wait in the buffers."""
    waiting_since: float | None = None
    """When the oldest waiting line arrived."""
    published_at: float = 0.0
    """When this process last published the batch, or took it over."""
    ending_since: float | None = None
    """When this process learnt that the batch ends before all its lines are done."""
    eta: Eta | None = None
    compacting: bool = False
    stalls: Stalls = field(default_factory=Stalls)
    blockage: Blockage = field(default_factory=Blockage)
    tried_part: int = -1
    """Number of the last part that was sent to the store; it may appear later even if the store refused it."""
    unpublished: bool = False
    """Whether something besides grown counts is to be published."""

    @property
    def waiting(self) -> tuple[Waiting, ...]:
        """The reasons to wait that the batch shows."""
        return self.blockage.shown or (self.state.batch.tidemill.waiting if self.state.batch is not None else ())

    def block(self, obstacle: Obstacle | None, again_at: float, now: int) -> bool:
        """Mark the batch as blocked, or as free again if there is no obstacle.

        Args:
            obstacle: The obstacle, or None.
            again_at: When it is tried again, by the monotonic clock.
            now: Unix seconds.

        Returns:
            Whether the batch must be published because of it.
        """
        self.blockage.again_at, self.blockage.is_of_timer = again_at, False
        since = self.blockage.shown[0].since if self.blockage.shown else now
        shown = () if obstacle is None else (Waiting.of(*obstacle, since=since),)
        if shown == self.blockage.shown:
            return False
        self.blockage.shown, self.unpublished = shown, True
        return True

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the waiting lines."""
        return self.output.size + self.errors.size

    @property
    def is_in_memory(self) -> bool:
        """Whether the buffers have all lines of the batch that are sent to servers."""
        return 0 < self.total == len(self.output) + len(self.errors)

    @property
    def next_part(self) -> int:
        """Number of the next part."""
        return max([self.tried_part, *(part.number for part in self.state.parts)]) + 1

    @property
    def total(self) -> int:
        """Lines of the batch that are sent to servers; 0 until ingest has counted them."""
        return self.state.batch.lines_asked if self.state.batch else 0

    @property
    def next_publish_at(self) -> float:
        """When the batch may next be published."""
        much = self.unpublished or PUBLISH_DIVISOR * self.unpublished_lines >= self.total
        return self.published_at + (PUBLISH_SECONDS if much else PUBLISH_SECONDS_MAX)

    @property
    def unpublished_lines(self) -> int:
        """Final lines that are not published yet; negative while a replay still brings published ones."""
        counts = self.state.batch.request_counts if self.state.batch else None
        return 0 if counts is None else self.bitmap.done - counts.completed - counts.failed

    def due(self, now: float, monotonic: float, limits: Limits) -> list[float]:
        """The times at which something is due without a record, Unix seconds.

        Args:
            now: Unix seconds.
            monotonic: The same moment by the monotonic clock.
            limits: The longest wait of a line for its part, and the length of the grace period.
        """
        ahead = now - monotonic
        due = [] if (due_at := reducer.next_due(self.state)) is None else [due_at]
        if due and self.ending_since is not None:
            due.append(ahead + self.ending_since + limits.grace_seconds)
        if self.waiting_since is not None:
            due.append(ahead + self.waiting_since + limits.part_age_seconds)
        if self.blockage.again_at:
            due = [max(at, ahead + self.blockage.again_at) for at in due]
        if self.unpublished or self.unpublished_lines > 0:
            due.append(ahead + self.next_publish_at)
        if not self.state.closed and self.state.ending is None:
            due += [ahead + at for at in self.stalls.due(monotonic)]
            if self.eta is not None and (quiet_at := self.eta.unpublished_quiet_at) is not None:
                due.append(ahead + quiet_at)
        return due

    def graced(self, at: float, monotonic: float, limits: Limits) -> float:
        """The time to compare with the end of the grace period, Unix seconds.

        It is at least that end once the period is over by the monotonic clock, since the wall clock may have been
        set back. No line comes after this owner's tick; lines missing by then are lost.

        Args:
            at: The time of the tick, Unix seconds.
            monotonic: The present time by the monotonic clock.
            limits: The length of the grace period.
        """
        close_at = self.state.close_at
        if close_at is None or self.ending_since is None or monotonic < self.ending_since + limits.grace_seconds:
            return at
        return max(at, close_at)

    @property
    def sums(self) -> Mapping[int, Sum]:
        """The sums of all final lines, by the number of their model."""
        waiting = LineSums(by_model=self.state.sums.totals(self.output.sums))
        return waiting.totals(self.errors.sums, failed=True)

    @property
    def retries(self) -> int:
        """Calls beyond the first of each final line."""
        return sum(calls for *_, calls in self.sums.values())

    def progress(self, now: float, monotonic: float) -> Progress | None:
        """The progress of a batch at work, else None.

        Args:
            now: Unix seconds.
            monotonic: The same moment by the monotonic clock.
        """
        batch = self.state.batch
        if batch is None or batch.status not in AT_WORK:
            return None
        if self.eta is None:
            self.eta = Eta.start(monotonic, self.bitmap.done)
        self.eta.observe(monotonic, self.bitmap.done)
        return self.eta.progress(batch.lines_asked, batch.expires_at, now)

    def add(self, marks: list[LineMark], value: bytes, now: float, model: int | None = None) -> int:
        """Put the lines that were not final before into the buffers.

        Args:
            marks: Index, size and result of each line.
            value: The lines, one after the other.
            now: The present time by the monotonic clock.
            model: The number of the model of the lines; None in a batch with only one.

        Returns:
            How many lines were new.
        """
        mark_line = self.bitmap.mark
        new = [mark_line(mark.index, failed=mark.failed) for mark in marks]
        if not any(new):
            return 0
        self.waiting_since = now if self.waiting_since is None else self.waiting_since
        if model is not None:
            for mark in compress(marks, new):
                self.bitmap.assign(mark.index, model, failed=mark.failed)
        if all(new) and not any(mark.failed for mark in marks):
            self.output.add(marks, value, self.bitmap.models)
        else:
            self._add_each(marks, new, memoryview(value))
        return sum(new)

    def _add_each(self, marks: list[LineMark], new: list[bool], value: memoryview) -> None:
        end = 0
        for mark, is_new in zip(marks, new, strict=True):
            start, end = end, end + mark.size
            if is_new:
                (self.errors if mark.failed else self.output).add([mark], value[start:end], self.bitmap.models)

    def set_buffer(self, buffer: PartBuffer, *, failed: bool) -> None:
        """Set the buffer of the output or of the errors; a snapshot may hold the former one."""
        if failed:
            self.errors = buffer
        else:
            self.output = buffer

    def snapshot(self) -> Snapshot:
        """A snapshot of the batch."""
        return Snapshot(
            self.state,
            self.kept,
            ((self.output, len(self.output), self.output.size), (self.errors, len(self.errors), self.errors.size)),
            (self.acks, len(self.acks)),
            (self.waiting_since, self.published_at, self.ending_since),
            self.unpublished,
        )

    def restore(self, was: Snapshot) -> None:
        """Undo an event that failed; a state that was written to the table meanwhile stays."""
        is_kept = self.kept is not was.kept
        for failed, (buffer, lines, size) in enumerate(was.buffers):
            if is_kept and buffer is not (self.errors if failed else self.output):
                continue  # the lines are in a part that the table names
            for index in buffer.indices[lines:]:
                self.bitmap.unmark(index, failed=bool(failed))
            buffer.cut(lines, size, self.bitmap.models)
            self.set_buffer(buffer, failed=bool(failed))
        acks, count = was.acks
        if is_kept:
            assert self.kept is not None
            # The retried event finds nothing new, so it would not publish this state.
            self.state, self.unpublished = self.kept, True
            if self.acks is acks:
                del acks[count:]
            return
        del acks[count:]
        self.state, self.unpublished, self.acks = was.state, was.unpublished, acks
        self.waiting_since, self.published_at, self.ending_since = was.times

    def release(self) -> None:
        """Acknowledge the events whose lines are in parts that the table names."""
        acks, self.acks = self.acks, []
        for ack in acks:
            ack()
