"""Decides on records of one partition of the intake: whose each is, which batch gets its lines, at which places.

A decision is written to the journal of its stream before anything is published. A record that comes again after a
crash gets the decision that the journal has.
"""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from tidemill.ingest.quota import Quotas
from tidemill.ingest.streams.factory import StreamFactory
from tidemill.ingest.streams.record import bounded, joined_bytes, shown, split
from tidemill.ingest.streams.stream import PIECES_MAX, Stream
from tidemill.kafka.partitions.dead_letters import handle_record, send_dead_letter
from tidemill.kafka.partitions.owner import Record
from tidemill.schemas.bounds import BATCH_LINES_MAX
from tidemill.schemas.log import intake
from tidemill.schemas.log.intake import IntakeError, Label
from tidemill.schemas.ports import Monotonic, Sender

STREAM_LINES_MAX: Final = BATCH_LINES_MAX
"""A stream with so many lines is sealed, and its next line begins another batch: what results can count."""

Project = Callable[[str, str, float | None], Awaitable[str]]
"""Finds whose lines a credential lets into a stream, given when the log got them, or raises `IntakeError`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a record brings to its stream."""

    stream: Stream
    record: Record
    first: int
    """The place of its first line."""
    lines: list[bytes]
    ends: bool
    """Whether it is the last record of the stream."""


class Decisions:
    """Of one partition. Its calls never overlap."""

    def __init__(
        self,
        *,
        sender: Sender,
        project: Project,
        factory: StreamFactory,
        quotas: Quotas,
        monotonic: Monotonic,
        stop_discarding: Callable[[Stream], Awaitable[None]],
    ) -> None:
        """Know no stream yet.

        Args:
            sender: The log, where dead letters go.
            project: See there.
            factory: Makes streams.
            quotas: What each project may have.
            monotonic: Seconds of a clock that is never set.
            stop_discarding: Called with a cancelled stream that its producer has ended.
        """
        self._sender = sender
        self._project = project
        self._factory = factory
        self._quotas = quotas
        self._monotonic = monotonic
        self._stop_discarding = stop_discarding
        self.streams: dict[tuple[str, str], Stream] = {}
        """The streams that take lines or refuse them, by project and name."""
        self.ended: dict[str, Stream] = {}
        """Streams that take no more lines and are not sealed yet, by the ids of their batches."""
        self.kept = -1
        """Up to this offset the table says that records are decided on."""
        self._seen = -1
        """Up to this offset records have come here."""
        self._journal: dict[int, tuple[Stream, int, int]] = {}
        """Records that were decided on before and come again: their stream, the first line's place, how many."""
        self._dead: list[tuple[Record, IntakeError]] = []
        """Records that cannot be taken, and why."""
        self._new: Stream | None = None
        """The stream that the record at hand has begun."""

    def restore(self, stream: Stream) -> None:
        """Know a stream that the last owner has left."""
        state = stream.state
        if not state.ended or state.discarding:
            self.streams[state.name] = stream
        if state.ended and not state.sealed:
            self.ended[state.id] = stream
        self._journal |= {offset: (stream, first, count) for offset, first, count, _ in state.journal}

    async def decide(self, record: Record) -> Decision | None:
        """What a record brings; None if nothing, also if it fails, which makes it a dead letter."""
        found: list[Decision | None] = []

        async def work() -> None:
            self._new = None
            found.append(await self._decide(record))

        buried = await handle_record(self._sender, shown(record), work, stage="ingest", undo=self._undo_new)
        self._seen = max(self._seen, record.offset)
        if buried is not None:
            record.ack()
            return None
        return found[-1]

    def _undo_new(self) -> None:
        """Take back the stream that a record began which could not be decided on."""
        if (stream := self._new) is not None and not stream.state.journal:
            self.streams.pop(stream.state.name, None)
            self._factory.forget(stream)

    async def _decide(self, record: Record) -> Decision | None:
        """What a record brings; None if nothing, and then it is acknowledged."""
        if (known := self._journal.get(record.offset)) is not None:
            stream, first, count = known
            ends = stream.state.ended and record.offset == stream.state.journal[-1][0]
            stream.awaited.discard(record.offset)
            del self._journal[record.offset]
            return self._decision(record, stream, first, split(record.value or b"")[:count], ends=ends)
        # A consumer may bring a record twice, also before the table says that it is decided on.
        if record.offset > max(self.kept, self._seen):
            try:
                lines = bounded(record.value or b"")
                found = await self._admitted(record, lines)
            except IntakeError as error:
                self._dead.append((record, error))
                return None
            else:
                if found is not None:
                    stream, label = found
                    stream.last_record_at = self._monotonic()
                    is_room = self._is_room(record, stream, lines)
                    taken = lines if is_room else []
                    first = stream.note(record.offset, len(taken), label.seq if is_room else None)
                    is_full = stream.lines >= STREAM_LINES_MAX or len(stream.state.pieces) >= PIECES_MAX
                    if ends := label.ends or is_full:
                        self.end(stream)
                    return self._decision(record, stream, first, taken, ends=ends)
        record.ack()
        return None

    async def bury(self) -> None:
        """Bury what cannot be taken, many at one time: a producer may send any number."""
        dead, self._dead = self._dead, []
        await asyncio.gather(*(self._buried(record, error) for record, error in dead))

    async def _buried(self, record: Record, error: IntakeError) -> None:
        await send_dead_letter(self._sender, shown(record), stage="ingest", reason=str(error))
        record.ack()

    def _is_room(self, record: Record, stream: Stream, lines: list[bytes]) -> bool:
        """Whether the project may store the lines; else the record is a dead letter, but it may end its stream."""
        try:
            self._quotas.stores(stream.state.project, joined_bytes(lines))
        except IntakeError as error:
            # It is acknowledged with its place in the stream's journal, and not before.
            self._dead.append((dataclasses.replace(record, ack=lambda: None), error))
            return False
        return True

    def _decision(self, record: Record, stream: Stream, first: int, lines: list[bytes], *, ends: bool) -> Decision:
        state, end = stream.state, first + len(lines)
        stream.size += joined_bytes(lines)
        self._quotas.grown(state.id, state.project, end, state.batch.input_file_id, stream.size)
        return Decision(stream=stream, record=record, first=first, lines=lines, ends=ends)

    def end(self, stream: Stream, *, discarding: bool = False) -> None:
        """Have a stream take no more lines; its name is free for another batch, unless it discards what comes."""
        stream.state = stream.state.model_copy(update={"ended": True, "discarding": discarding})
        self.ended[stream.state.id] = stream
        if not discarding:
            self.streams.pop(stream.state.name, None)

    async def _admitted(self, record: Record, lines: list[bytes]) -> tuple[Stream, Label] | None:
        """The stream that a new record belongs to; None if it holds nothing for any.

        Raises:
            IntakeError: It may not be taken.
        """
        headers = intake.named(record.headers)
        if intake.TICK in headers and record.value is None:
            return None
        label = intake.label(record.key, headers)
        logged_at = record.timestamp if record.is_logged_at else None
        project = await self._project(intake.secret(headers), label.name, logged_at)
        stream = self.streams.get((project, label.name))
        if stream is not None and stream.state.discarding:
            stream.last_record_at = self._monotonic()
            if label.ends:
                await self._stop_discarding(stream)
            if lines:
                raise IntakeError("its batch was cancelled, and the stream was not ended since")
            return None
        if stream is None:
            if not lines:
                return None
            options = intake.wish(headers, self._factory.windows)
            self._quotas.opens(project)
            self._quotas.stores(project, joined_bytes(lines))
            place = record.partition, record.offset
            stream = self._factory.create((project, label.name), place, options, lines)
            self.streams[stream.state.name] = self._new = stream
        elif label.seq is not None and label.seq <= stream.seq:
            return None
        return stream, label
