"""Holds work on streams whose key is missing or whose parts the store refuses, and shows why on their batches."""

from collections.abc import Awaitable, Callable

from tidemill.ingest.streams.publisher import Publisher
from tidemill.ingest.streams.stream import Resources, Stream
from tidemill.kafka.partitions.held_records import HeldRecords, Unavailable
from tidemill.schemas.log.stall_reports import StallReports
from tidemill.schemas.resources.waiting import Waiting


class HeldStreams:
    """The held work of one partition. Its calls never overlap."""

    def __init__(self, publisher: Publisher, resources: Resources) -> None:
        self._publisher = publisher
        self._clock = resources.clock
        self._held = HeldRecords(self._note, resources.monotonic)
        self._blocked: dict[str, tuple[Stream, int]] = {}
        """Streams whose work is held, and since when, Unix seconds."""
        self._notes: list[tuple[str, Unavailable | None]] = []
        """Unpublished reasons why streams wait; None for a stream that no longer waits."""
        self._reports = StallReports("intake")

    def __contains__(self, stream: Stream) -> bool:
        """Whether work on a stream is held."""
        return stream.state.id in self._held

    @property
    def due_in(self) -> float | None:
        """Seconds until the next attempt; None if no work is held."""
        return self._held.due_in

    async def do(self, stream: Stream, work: Callable[[], Awaitable[None]], size: int = 0) -> None:
        """Do work on a stream, or hold it; `size` is the bytes of the lines that it holds."""
        await self._held.run_or_hold(stream.state.id, work, size)
        if stream in self:
            self._blocked.setdefault(stream.state.id, (stream, int(self._clock())))

    async def again(self) -> None:
        """Retry the work whose pause is over."""
        await self._held.retry_due()

    async def wait_for_room(self) -> None:
        """Wait while the journal of a stream whose work is held has no room for further records."""
        await self._held.wait_while(self._is_full)

    async def publish(self) -> None:
        """Show on batches why their lines wait, or that they no longer wait."""
        notes, self._notes = self._notes, []
        for batch_id, why in notes:
            if batch_id not in self._blocked:
                continue  # the work was done before anything was published
            stream, since = self._blocked[batch_id]
            waiting: tuple[Waiting, ...] = ()
            if why is not None:
                words = f"Lines of the stream wait: {why}."
                waiting = (Waiting.of(why.reason, words, lines=stream.lines, since=since),)
            elif stream not in self:
                del self._blocked[batch_id]
            await self._publisher.stalled(stream, self._reports.on(batch_id, *waiting))

    def _is_full(self) -> bool:
        return any(stream.is_full for stream, _ in self._blocked.values() if stream in self)

    def _note(self, batch_id: str, why: Unavailable | None, again_at: float) -> None:
        """See `held_records.Report`."""
        del again_at
        self._notes.append((batch_id, why))
