"""The queue of batches in projects that may have a bounded number of them at work.

Ingest writes a batch of such a project to `tidemill.queue`, a topic with one partition, so every process sees the
batches in the same order. A batch may start once fewer than `batches_at_work_max` unfinished batches of its
project are before it. Since no batch is ever inserted before another, even a process that has read little of the
log never starts too many. The owner of the batch's partition of `commands` starts it, and records that in the
queue once its lines are published; after a crash the next owner starts it again.
"""

import asyncio
import functools
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from tidemill.bounded_dict import BoundedDict
from tidemill.configuration.settings import Settings
from tidemill.ingest import batch_records
from tidemill.ingest.batch_records import BatchSummary
from tidemill.ingest.files.packing import RequestPublisher
from tidemill.ingest.files.stage import FileIngest
from tidemill.ingest.files.verdict import INTERNAL_FAULT
from tidemill.kafka.connection import TRANSIENT
from tidemill.retrying import retry
from tidemill.schemas.lifecycle import CANCELLABLE
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import (
    HOLD_SECONDS_MAX,
    BatchCreated,
    Command,
    Dequeued,
    Queued,
    Rejected,
    Stalled,
)
from tidemill.schemas.log.stall_reports import StallReports
from tidemill.schemas.ports import Clock, Sender
from tidemill.schemas.resources.waiting import Reason, Waiting

OVER_MAX: Final = 500_000
"""Ended batches of projects with a queue to remember: their records of the queue may still come, or come again."""
REPORTS_MAX: Final = 50
"""Reports of one call of `reports`."""
REPORT_SECONDS: Final = 20.0
"""A report is repeated after this time."""

CHECK_SECONDS: Final = 2.0
"""Time between two looks at the places if nothing changes."""
GATHER_SECONDS: Final = 0.05
"""Changes within this time are handled together."""

Start = Callable[[str, Coroutine[Any, Any, None]], object]
"""Starts work for the batch with this id."""

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Entry:
    """A batch in the queue that is not over."""

    command: BatchCreated
    is_started: bool = False
    """Whether this process publishes its lines, or any process has."""
    is_wanted: bool = True
    """Whether its lines may still run, by `tidemill.batches`."""
    reported: tuple[int, float] = (-1, 0.0)
    """The last place that this process reported, and when, by the monotonic clock."""

    @property
    def batch_id(self) -> str:
        """The id of the batch."""
        return self.command.batch.id


class BatchQueue:
    """The queue as this process has read it, and the unfinished batches outside of it."""

    def __init__(self, settings: Settings, owns: Callable[[str], bool]) -> None:
        """Start empty; `owns` returns whether this process owns the partition of a batch's commands."""
        self._limits_of = settings.limits_of
        self._projects = ("", *settings.projects)
        self._owns = owns
        self._entries: dict[str, Entry] = {}
        """In the order of the queue."""
        self._others: dict[str, BatchSummary] = {}
        """Unfinished batches that are not in the queue yet, or not at all: they began before the limit was set."""
        self._over: BoundedDict[str, None] = BoundedDict(OVER_MAX)
        self.changed = asyncio.Event()
        """Set when another batch may be due."""
        self._reports = StallReports("queue")

    def most(self, project: str) -> int | None:
        """How many batches a project may have at work; None for any number."""
        return self._limits_of(project).batches_at_work_max

    @property
    def is_needed(self) -> bool:
        """Whether any project has a queue, or batches are left in a queue that was removed."""
        return bool(self._entries) or any(self.most(project) is not None for project in self._projects)

    def has(self, batch_id: str) -> bool:
        """Whether a batch is in the queue, or was."""
        return batch_id in self._entries or batch_id in self._over

    def batch(self, key: str, value: bytes | None, offset: int) -> None:
        """Apply a record of `tidemill.batches`, which may come before the batch's record of `tidemill.queue`."""
        if value is None:
            # The erasure of the batch, which names its project, is in `tidemill.secrets` by now.
            self._end(key, is_queued=False)
            return
        if (record := batch_records.decoded(value, offset)) is None:
            return
        if record.batch.status.is_terminal:
            self._end(key, is_queued=self.most(record.project) is not None)
        elif (entry := self._entries.get(key)) is not None:
            # Also a batch in progress: the process that published its lines may have died before the last one.
            entry.is_wanted = record.batch.status in CANCELLABLE
        elif record.batch.tidemill.stream is None and not self.has(key) and self.most(record.project) is not None:
            self._others[key] = record

    def erased(self, key: str, value: bytes | None) -> None:
        """Apply a record of `tidemill.secrets`; the broker drops a tombstone before the records of the queue."""
        if value is None or "/" in key:
            return
        # The vault, which gets each record first, logs one that cannot be decoded.
        with suppress(codec.DecodeError):
            self._end(key, is_queued=self.most(codec.decode_erasure(value).project) is not None)

    def fold(self, key: str, value: bytes | None, offset: int) -> None:
        """Apply a record of `tidemill.queue`; the first one of a batch is its place."""
        try:
            message = codec.decode_queue(value)
        except codec.DecodeError as error:
            log.warning("record %d of the queue cannot be read (%s)", offset, error)
            return
        if isinstance(message, Dequeued):
            if (entry := self._entries.get(key)) is not None:
                entry.is_started = True
        elif key == message.command.batch.id and not self.has(key):
            known = self._others.pop(key, None)
            is_wanted = known is None or known.batch.status in CANCELLABLE
            self._entries[key] = Entry(message.command, is_wanted=is_wanted)
            self.changed.set()

    def due(self) -> list[Entry]:
        """Batches that this process has to start now; each is returned once."""
        found = []
        for entry, before in self._unstarted():
            if self._is_free(entry, before):
                entry.is_started = True
                found.append(entry)
        return found

    def forget_start(self, batch_id: str) -> None:
        """Let a batch be due again, since its start was interrupted."""
        if (entry := self._entries.get(batch_id)) is not None:
            entry.is_started = False
            self.changed.set()

    def reports(self, now: float) -> list[Stalled]:
        """Why batches wait: new places in the queue, and reports to repeat; `now` is by the monotonic clock."""
        waiting = [found for found in self._unstarted() if not self._is_free(*found)]
        cycle = max(REPORT_SECONDS, 2.0 * len(waiting) / REPORTS_MAX)
        facts: list[Stalled] = []
        for entry, place in waiting:
            shown, at = entry.reported
            if (place != shown or now >= at + cycle) and len(facts) < REPORTS_MAX:
                entry.reported = place, now
                facts.append(self._report(entry, place, min(HOLD_SECONDS_MAX, int(3 * cycle))))
        return facts

    def _report(self, entry: Entry, before: int, hold_seconds: int) -> Stalled:
        most = self.most(entry.command.project)
        words = (
            f"The project may have {most} {'batch' if most == 1 else 'batches'} at work, "
            f"and {before} of its unfinished batches {'is' if before == 1 else 'are'} before this."
        )
        wait = Waiting.of(Reason.BATCHES_AT_WORK, words, since=entry.command.batch.created_at)
        return self._reports.on(entry.batch_id, wait, hold_seconds=hold_seconds)

    def _unstarted(self) -> list[tuple[Entry, int]]:
        """Batches of this process to start, each with the number of unfinished ones of its project before it."""
        before, found = Counter(record.project for record in self._others.values()), []
        for entry in self._entries.values():
            project = entry.command.project
            if not entry.is_started and entry.is_wanted and self._owns(entry.batch_id):
                found.append((entry, before[project]))
            before[project] += 1
        return found

    def _is_free(self, entry: Entry, before: int) -> bool:
        most = self.most(entry.command.project)
        return most is None or before < most

    def _end(self, batch_id: str, *, is_queued: bool) -> None:
        """Free the place of a batch that is over; `is_queued` says whether the queue may have a record of it."""
        places = [places for places in (self._others, self._entries) if places.pop(batch_id, None) is not None]
        if places:
            self.changed.set()
        if (places or is_queued) and batch_id not in self._over:
            self._over[batch_id] = None


class QueueRunner:
    """Puts batches into the queue, and publishes the lines of those that are due."""

    def __init__(
        self,
        queue: BatchQueue,
        stage: FileIngest,
        *,
        sender: Sender,
        requests: RequestPublisher,
        start: Start,
        clock: Clock,
    ) -> None:
        """Do nothing before `run`; `start` begins a task, and cancels it if the batch goes to another process."""
        self._queue = queue
        self._stage = stage
        self._sender = sender
        self._requests = requests
        self._start = start
        self._clock = clock

    async def handle(self, command: Command) -> None:
        """Handle a command; a batch of a project with a queue is handled when it is due."""
        if not isinstance(command, BatchCreated) or self._queue.most(command.project) is None:
            await self._stage.handle(command)
        elif not self._queue.has(command.batch.id):
            await self._send(command.batch.id, Queued(command=command))

    async def run(self) -> None:
        """Start batches and report waiting ones; never returns."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(CHECK_SECONDS):
                    await self._queue.changed.wait()
            await asyncio.sleep(GATHER_SECONDS)
            self._queue.changed.clear()
            for entry in self._queue.due():
                self._start(entry.batch_id, self._publish(entry))
            for fact in self._queue.reports(asyncio.get_running_loop().time()):
                await retry("sending why a batch waits", functools.partial(self._requests.send_fact, fact))

    async def _publish(self, entry: Entry) -> None:
        try:
            handle = functools.partial(self._stage.handle, entry.command)
            await retry(f"publishing {entry.batch_id}", handle, faults=TRANSIENT)
        except Exception:
            log.exception("%s cannot be published", entry.batch_id)
            fault = Rejected(batch_id=entry.batch_id, errors=(INTERNAL_FAULT,), at=int(self._clock()))
            await retry("sending that a batch is rejected", lambda: self._requests.send_fact(fault))
        except BaseException:
            self._queue.forget_start(entry.batch_id)
            raise
        await self._send(entry.batch_id, Dequeued(batch_id=entry.batch_id))

    async def _send(self, batch_id: str, message: Queued | Dequeued) -> None:
        value = codec.encode(message)
        await retry(
            f"sending to {topics.QUEUE.name}",
            lambda: self._sender.send(topics.QUEUE.name, batch_id, value),
        )
