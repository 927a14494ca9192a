"""Decides on records of one partition of the intake: the project, the batch, and the places of the lines in it.

The owner writes a decision to the journal of its stream before it publishes anything. A record that is redelivered
after a crash gets the decision in the journal, and its lines the verdict that is there.
"""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from tidemill import metrics
from tidemill.ingest.files.verdict import LineFault
from tidemill.ingest.streams.factory import StreamFactory
from tidemill.ingest.streams.stream import PARTS_MAX, RECORD_LINES_MAX, Resources, Stream
from tidemill.kafka.partitions.dead_letters import handle_record, send_dead_letter, source_of
from tidemill.kafka.partitions.owner import Record
from tidemill.quotas import Quota
from tidemill.schemas import ids
from tidemill.schemas.bounds import BATCH_LINES_MAX, RECORD_BYTES_MAX
from tidemill.schemas.jsonl.lines import BOM
from tidemill.schemas.log import intake
from tidemill.schemas.log.intake import IntakeError, Label
from tidemill.schemas.log.messages import BatchCreated

STREAM_LINES_MAX: Final = BATCH_LINES_MAX
"""A stream with this many lines is sealed, and its next line begins another batch: results cannot count more."""
OPENING_SECONDS_MAX: Final = 6 * 3600.0
"""How long after the creation of its batch the log may get the record that opens it. The api sends it at once, but
its clock may be behind the broker's; a copy may not open the batch again once that is deleted."""
REQUEST_BYTES_MIN: Final = 64
"""Every request is longer: method, url and the names of the fields need as much."""
SHORT_LINES_MAX: Final = 1_000
"""Lines of a record that may be shorter. Each becomes an error line several times as long as the line."""


Show = Callable[[str, str, str], Awaitable[None]]
"""Shows a dead letter on a batch, given the batch's id, the letter's id and the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The lines that a record adds to a stream."""

    stream: Stream
    record: Record
    first: int
    """The place of the first line in the batch."""
    lines: list[bytes]
    ends: bool
    """Whether it is the last record of the stream."""
    fault: LineFault | None = None
    """Why the lines become error lines: the project may not store more, but the api has accepted them."""
    is_known: bool = False
    """Whether a former owner had decided so, and may have published the lines."""
    is_judged: bool = False
    """Whether that owner has kept a verdict on the lines."""


class Decisions:
    """The decisions of one partition's owner. Its calls never overlap."""

    def __init__(
        self,
        resources: Resources,
        factory: StreamFactory,
        *,
        stop_discarding: Callable[[Stream], Awaitable[None]],
    ) -> None:
        """Begin without streams.

        Args:
            resources: What the partition shares with the others of the process.
            factory: Makes streams.
            stop_discarding: Called with a cancelled stream that its producer has ended.
        """
        self._sender = resources.sender
        self._project = resources.project
        self._opening = resources.opening
        self._quotas = resources.quotas
        self._monotonic = resources.monotonic
        self._factory = factory
        self._stop_discarding = stop_discarding
        self.streams: dict[tuple[str, str], Stream] = {}
        """Streams that accept or discard lines, by project and name."""
        self.known: dict[str, Stream] = {}
        """Streams of the api until `tidemill.batches` has their batches, by batch id: none is opened twice."""
        self.ended: dict[str, Stream] = {}
        """Streams that accept no more lines and are not sealed yet, by batch id."""
        self.kept = -1
        """The offset up to which the table has a decision on each record."""
        self._seen = -1
        """The highest offset of a record that this process has decided on."""
        self._journal: dict[int, tuple[Stream, int, int]] = {}
        """Decisions of former owners by offset, until the record is redelivered: stream, first place, lines."""
        self._dead: list[tuple[Record, IntakeError, str | None]] = []
        """Rejected records, why, and the open batch that each was for, if it was for one."""
        self._new: Stream | None = None
        """The stream that the current record has begun."""

    def restore(self, stream: Stream) -> None:
        """Add a stream of the previous owner."""
        state = stream.state
        if state.is_of_api:
            self.known[state.id] = stream
        if not state.ended or state.discarding:
            self.streams[state.name] = stream
        if state.ended and not state.sealed:
            self.ended[state.id] = stream
        self._journal |= {offset: (stream, first, count) for offset, first, count, _ in state.journal}

    async def decide(self, record: Record) -> Decision | None:
        """Decide on a record; None if it adds nothing, or is rejected and becomes a dead letter."""
        found: list[Decision | None] = []

        async def work() -> None:
            self._new = None
            found.append(await self._decide(record))

        failed = await handle_record(
            self._sender, without_credential(record), work, stage="ingest", undo=self._undo_new
        )
        self._seen = max(self._seen, record.offset)
        if failed is not None:
            record.ack()
            return None
        return found[-1]

    def _undo_new(self) -> None:
        """Drop the stream that a failed record has begun."""
        if (stream := self._new) is not None and not stream.state.journal:
            self.streams.pop(stream.state.name, None)
            self.known.pop(stream.state.id, None)
            self._factory.forget(stream)

    async def _decide(self, record: Record) -> Decision | None:
        """Decide on a record; None if it adds nothing and is acknowledged."""
        if (known := self._journal.get(record.offset)) is not None:
            stream, first, count = known
            ends = stream.state.ended and record.offset == stream.state.journal[-1][0]
            stream.awaited.discard(record.offset)
            del self._journal[record.offset]
            lines = split(record.value or b"")[:count]
            is_judged = first + count <= stream.state.judged
            return self._decision(record, stream, first, lines, ends=ends, is_known=True, is_judged=is_judged)
        # Kafka may deliver a record twice, even before the table has the decision on it.
        if record.offset > max(self.kept, self._seen):
            try:
                found = await self._admitted(record)
            except IntakeError as error:
                # A later record of the same call may end the stream.
                self._dead.append((record, error, self._batch_of(record, error.project)))
                return None
            else:
                if found is not None:
                    stream, label, lines = found
                    stream.last_record_at = self._monotonic()
                    fault = self._fault(record, stream, lines)
                    # The api has already accepted its own records, so their lines become error lines.
                    is_taken = fault is None or stream.state.is_of_api
                    taken = lines if is_taken else []
                    first = stream.note(record.offset, len(taken), label.seq if is_taken else None)
                    is_full = stream.lines >= STREAM_LINES_MAX or len(stream.state.parts) >= PARTS_MAX
                    if ends := label.ends or is_full:
                        self.end(stream)
                    return self._decision(record, stream, first, taken, ends=ends, fault=fault)
        record.ack()
        return None

    async def send_dead_letters(self, show: Show) -> None:
        """Write the dead letters of rejected records, many at once: a producer may send any number.

        Args:
            show: Shows a dead letter on the open batch of the record: its producer, or the api, counts it as sent.
        """
        dead, self._dead = self._dead, []
        await asyncio.gather(*(self._send_dead_letter(*rejected, show) for rejected in dead))

    async def _send_dead_letter(
        self, record: Record, error: IntakeError, batch_id: str | None, show: Show
    ) -> None:
        await send_dead_letter(
            self._sender, without_credential(record), stage="ingest", reason=str(error), project=error.project
        )
        if batch_id is not None:
            await show(batch_id, source_of(record), str(error))
        record.ack()

    def _batch_of(self, record: Record, project: str | None) -> str | None:
        """The batch of a rejected record; None if no credential proves its project, or it is for no open batch."""
        if project is None:
            return None
        name = (record.key or b"").decode(errors="replace")
        if (stream := self.streams.get((project, name))) is not None:
            return stream.state.id
        if (other := self._quotas.elsewhere(project, name, record.partition)) is not None:
            return other.batch_id
        known = self.known.get(name)
        is_own = self._quotas.owns(project, name) or (known is not None and known.state.project == project)
        return name if is_own else None

    def _fault(self, record: Record, stream: Stream, lines: list[bytes]) -> LineFault | None:
        """Why the project may not store the lines; a direct producer's record is then a dead letter.

        The record may still end its stream.
        """
        if not lines:
            return None
        try:
            self._quotas.check_bytes(stream.state.project, joined_bytes(lines))
        except IntakeError as error:
            if not stream.state.is_of_api:
                error.project = stream.state.project
                # The record is in the stream's journal, which acknowledges it.
                self._dead.append((dataclasses.replace(record, ack=lambda: None), error, stream.state.id))
            return LineFault(Quota.BYTES, f"The line was not run: {error}.")
        return None

    def _decision(
        self,
        record: Record,
        stream: Stream,
        first: int,
        lines: list[bytes],
        *,
        ends: bool,
        **others: Any,
    ) -> Decision:
        state, end = stream.state, first + len(lines)
        stream.size += joined_bytes(lines)
        self._quotas.count_stream(state.id, state.project, end, state.batch.input_file_id, stream.size)
        return Decision(stream=stream, record=record, first=first, lines=lines, ends=ends, **others)

    def end(self, stream: Stream, *, discarding: bool = False) -> None:
        """Accept no more lines in a stream; another batch may use its name, unless it discards further lines."""
        stream.state = stream.state.model_copy(update={"ended": True, "discarding": discarding})
        self.ended[stream.state.id] = stream
        if not discarding:
            self.streams.pop(stream.state.name, None)

    async def _admitted(self, record: Record) -> tuple[Stream, Label, list[bytes]] | None:
        """The stream of a new record, its label and its lines; None if the record adds nothing to a stream.

        Raises:
            IntakeError: The record is rejected.
        """
        try:
            headers = intake.own_headers(record.headers)
            if intake.TICK in headers and record.value is None:
                return None
            label = intake.label(record.key, headers)
        except IntakeError as error:
            error.project = await self._project_of_malformed(record)
            raise
        project = await self._project(intake.secret(headers), label.name, _logged_at(record))
        try:
            lines = bounded(record.value or b"")
            stream = await self._stream_of(record, headers, label, project, lines)
        except IntakeError as error:
            error.project = project
            raise
        return None if stream is None else (stream, label, lines)

    async def _project_of_malformed(self, record: Record) -> str | None:
        """The project of a record with an invalid header, if its credential proves one for its stream."""
        kept = ((name, content) for name, content in record.headers if name.lower() == intake.AUTHORIZATION)
        try:
            secret = intake.secret(intake.own_headers(kept))
            return await self._project(secret, intake.label(record.key, {}).name, _logged_at(record))
        except IntakeError as error:
            return error.project

    async def _stream_of(
        self, record: Record, headers: dict[str, str], label: Label, project: str, lines: list[bytes]
    ) -> Stream | None:
        """The stream that a record of a project adds to; None if it adds nothing.

        Raises:
            IntakeError: The record is rejected.
        """
        stream = self.streams.get((project, label.name))
        if stream is not None and stream.state.discarding:
            stream.last_record_at = self._monotonic()
            if label.ends:
                await self._stop_discarding(stream)
            if lines:
                raise IntakeError("its batch was cancelled, and its producer has not ended the stream since")
            return None
        if stream is None and (command := self._opening(headers)) is not None:
            return self._opened(record, project, label, command)
        if stream is None:
            if lines or label.ends:
                self._check_partition(record, project, label.name)
            if not lines or self._is_copy(label, self.known.get(label.name)):
                return None
            if ids.is_batch_id(label.name):
                raise IntakeError("it is for an open batch, which is sealed or does not exist")
            stream = self._begun(record, (project, label.name), lines)
        elif self._is_copy(label, stream) and not self._is_end_of_copy(stream, label, lines):
            return None
        return stream

    @staticmethod
    def _is_end_of_copy(stream: Stream, label: Label, lines: list[bytes]) -> bool:
        """Drop the lines of a copy, and count it; returns whether it ends the stream nevertheless.

        A producer may number its end like its last record, or send that again with the end. Dropped lines may be
        those of a second producer; the api repeats its appends.
        """
        is_end = label.ends and label.seq == stream.seq
        if not stream.state.is_of_api and (lines or not is_end):
            stream.drop()
            metrics.COPIES_DROPPED.inc()
        lines.clear()
        return is_end

    def _check_partition(self, record: Record, project: str, name: str) -> None:
        """Raise `IntakeError` if a stream of this name is open in another partition: two partitioners are at work.

        Its batch tells, which is published after it begins, and is shown as open for a while after it ends.
        """
        if (other := self._quotas.elsewhere(project, name, record.partition)) is not None:
            raise IntakeError(
                f"its stream is in partition {other.partition}, and it is in partition {record.partition}: "
                "all producers of a stream must use one partitioner"
            )

    def _begun(self, record: Record, name: tuple[str, str], lines: list[bytes]) -> Stream:
        """The stream that a record of a direct producer begins; raises `IntakeError` if it may not."""
        options = intake.stream_options(intake.own_headers(record.headers), self._factory.windows)
        self._quotas.check_batch(name[0])
        self._quotas.check_bytes(name[0], joined_bytes(lines))
        stream = self._factory.create(name, (record.partition, record.offset), options, lines)
        if self._quotas.knows(stream.state.id):
            self._factory.forget(stream)
            raise IntakeError(
                "the topic was created anew, and a batch of a former record at this place has its id"
            )
        self.streams[stream.state.name] = self._new = stream
        return stream

    @staticmethod
    def _is_copy(label: Label, stream: Stream | None) -> bool:
        return stream is not None and label.seq is not None and label.seq <= stream.seq

    def _opened(self, record: Record, project: str, label: Label, command: BatchCreated) -> Stream | None:
        """The stream of a batch that the api opens; None if it was opened before.

        Raises:
            IntakeError: The record is for another batch or project, or too late.
        """
        if (command.project, command.batch.id) != (project, label.name):
            raise IntakeError("the batch in its header is another one")
        if label.name in self.known or self._quotas.knows(label.name):
            return None
        if record.is_logged_at and record.timestamp > command.batch.created_at + OPENING_SECONDS_MAX:
            raise IntakeError("it opens a batch that was created long before: it is a copy, or a clock is wrong")
        stream = self._factory.open(record.partition, command)
        self.streams[stream.state.name] = self.known[label.name] = self._new = stream
        return stream


def _logged_at(record: Record) -> float | None:
    """When the log got a record, by its own clock; None if the topic keeps the producer's time."""
    return record.timestamp if record.is_logged_at else None


def without_credential(record: Record) -> Record:
    """A copy of the record that an operator may see."""
    kept = tuple((name, content) for name, content in record.headers if name.lower() != intake.AUTHORIZATION)
    return dataclasses.replace(record, headers=kept)


def bounded(value: bytes) -> list[bytes]:
    """The lines of a record, as `split` returns them.

    Raises:
        IntakeError: The record exceeds a bound.
    """
    # A broker bounds compressed bytes only, so a small record may hold more.
    if len(value) > RECORD_BYTES_MAX:
        raise IntakeError(f"it is larger than {RECORD_BYTES_MAX} bytes")
    if value.count(b"\n") >= RECORD_LINES_MAX:
        raise IntakeError(f"it has more than {RECORD_LINES_MAX} lines")
    lines = split(value)
    if sum(len(line) < REQUEST_BYTES_MIN for line in lines) > SHORT_LINES_MAX:
        raise IntakeError(f"more than {SHORT_LINES_MAX} of its lines are too short to be requests")
    return lines


def split(value: bytes) -> list[bytes]:
    """The lines of a record, without a byte order mark at its start and whitespace around them, or blank ones."""
    return [line for found in value.removeprefix(BOM).split(b"\n") if (line := found.strip(b" \t\r"))]


def joined_bytes(lines: list[bytes]) -> int:
    """Bytes of the lines in a file, each with its newline."""
    return sum(map(len, lines)) + len(lines)
