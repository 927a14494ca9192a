"""A model that has lines or may soon get some: its dispatcher, and the windows of its partitions.

When partitions are revoked, and when the process stops (SIGTERM):

1. the dispatcher starts no more calls;
2. calls in flight end, and their results arrive, within a bound;
3. finished records are acknowledged and committed (`tidemill.faust.stage_app`);
4. the windows are closed: results that arrive later acknowledge nothing.
"""

import asyncio
import functools
import random
import time
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from tidemill.configuration.security import Kafka
from tidemill.configuration.servers import Model
from tidemill.kafka.producer import Log
from tidemill.processors.backends.pool import BackendPool
from tidemill.processors.calls.body_rules import body_rules
from tidemill.processors.calls.caller import Caller
from tidemill.processors.calls.endpoint_probe import EndpointProbe
from tidemill.processors.calls.forms import Forms
from tidemill.processors.calls.retry import Policy
from tidemill.processors.dispatcher import Dispatcher, Services
from tidemill.processors.http.client import HttpUpstream
from tidemill.processors.joined.joiner import joiner
from tidemill.processors.kafka import KafkaOutbox, reopen
from tidemill.processors.memory_budget import LineBudget
from tidemill.processors.partitions import seals
from tidemill.processors.partitions.assignment import Assignment, PlacedRecord
from tidemill.processors.partitions.closed_batches import ClosedBatches
from tidemill.processors.partitions.completed_lines import CompletedLines
from tidemill.processors.partitions.held_requests import HeldRequest, HeldRequests
from tidemill.processors.partitions.seals import LockedRecord, OpenedRecord, SealedOutbox
from tidemill.processors.partitions.unreadable import give_up
from tidemill.processors.partitions.window import Entry, PartitionWindow
from tidemill.processors.recovery import Recovery
from tidemill.processors.scheduling.prefix_groups import prefixes
from tidemill.schemas.log.codec import DecodeError
from tidemill.schemas.ports import Store
from tidemill.sealing.vault import Vault
from tidemill.tasks import Crash, watched


@dataclass(frozen=True, kw_only=True)
class Shared:
    """The services that the models of a process share."""

    kafka: Kafka
    log: Log
    outbox: KafkaOutbox
    upstream: HttpUpstream
    store: Store
    forms: Forms
    closed: ClosedBatches
    vault: Vault
    assignment: Assignment
    recovery: Recovery
    completed: CompletedLines
    budget: LineBudget


_IN_PLACE: Final = {
    "servers", "backends", "aliases", "endpoints", "max_in_flight", "tokens_per_minute", "dedupe", "price",
    "paused",
}  # fmt: skip
"""Settings of a model that its calls do not need, or that its pool (`backends/servers.py`) follows."""


class Configured(NamedTuple):
    """A model, by its settings."""

    settings: Model
    pool: BackendPool

    def is_called_as(self, other: "Configured") -> bool:
        """Whether both make the same calls."""
        own, its = (one.settings.model_dump(exclude=_IN_PLACE) for one in (self, other))
        return own == its and self.pool is other.pool


class AwakeModel:
    """One model, from the first line that waits until none has waited for a while."""

    def __init__(self, name: str, configured: Configured, shared: Shared, crash: Crash) -> None:
        """Start no call; needs a running event loop. `crash` ends the process."""
        self.name = name
        self._crash = crash
        self._caller = _caller(name, configured.settings, shared, configured.pool)
        self.dispatcher = _dispatcher(name, configured.settings, shared, self._caller)
        self.dispatcher.stalls.hide(shared.vault.has_key)
        self.dispatcher.stalls.refusal = lambda: shared.outbox.refusal
        self.busy_at = asyncio.get_running_loop().time()
        """When it last had anything to do, by the event loop's clock."""
        self.partitions: set[Any] = set()
        """The partitions that it reads."""
        self._configured = configured
        self._shared = shared
        self.held_requests = HeldRequests(
            reopen=functools.partial(reopen, shared.kafka, shared.closed, shared.vault),
            admit=self._readmit,
            report=shared.outbox.stalled,
            closed=shared.closed,
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._start(self.held_requests.run())

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and no call is in flight."""
        return not self.dispatcher.pending and not self.dispatcher.busy and not self.held_requests

    def follows(self, configured: Configured) -> bool:
        """Whether its calls agree with these settings; changes of the others take effect at once."""
        if configured is not self._configured and configured.is_called_as(self._configured):
            self._configured = configured
        return configured is self._configured

    async def take(self, window: PartitionWindow, event: Any) -> None:
        """Take a record of one of its partitions; never waits, since records of all models are behind it."""
        message, shared = event.message, self._shared
        self.busy_at = asyncio.get_running_loop().time()
        opened = await seals.open_record(
            message, shared.closed, shared.vault, self.held_requests.__contains__, at_once=True
        )
        if isinstance(opened, LockedRecord):
            size = len(message.value or b"")
            self.held_requests.put(
                HeldRequest(head=opened.head, entry=window.admit(event, 1, size), message=message)
            )
            event.value = None
            return
        lines = 1 if isinstance(opened, DecodeError) else len(opened[1])
        self._admit(window.admit(event, lines, len(message.value or b"")), message, opened)
        if not isinstance(opened, DecodeError):
            # The lines were copied; the event stays in memory until the last line is finished.
            event.value = message.value = None

    async def close(self) -> None:
        """Cancel the tasks."""
        for task in self._tasks:
            task.cancel()
        self.held_requests.close()
        await self.dispatcher.close()

    def _admit(self, entry: Entry, message: Any, opened: OpenedRecord | DecodeError) -> None:
        shared = self._shared
        if isinstance(opened, DecodeError):
            ending = give_up(
                entry, message, opened, model=self.name, log=shared.log, outbox=shared.outbox, closed=shared.closed
            )
            self._start(ending)
            return
        head, texts = opened
        entry.published_at = asyncio.get_running_loop().time() - max(0.0, time.time() - message.timestamp)
        record = PlacedRecord(
            tp=message.tp, offset=message.offset, time=message.timestamp, entry=entry, head=head, texts=texts,
            enqueue=self.dispatcher.enqueue,
        )  # fmt: skip
        if not shared.assignment.take(record):
            shared.recovery.wake()

    def _readmit(self, held: HeldRequest, opened: OpenedRecord | DecodeError) -> None:
        """Take a record that was held."""
        if not isinstance(opened, DecodeError):
            held.entry.window.refill(held.entry, len(opened[1]), len(held.message.value))
        self._admit(held.entry, held.message, opened)
        if not isinstance(opened, DecodeError):
            held.message.value = None

    def _start(self, work: Any) -> None:
        task = watched(asyncio.create_task(work), self._crash)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _caller(name: str, model: Model, shared: Shared, pool: BackendPool) -> Caller:
    return Caller(
        pool=pool,
        endpoint_probe=EndpointProbe(model.upstream_model or name, pool, shared.upstream),
        upstream=shared.upstream,
        store=shared.store,
        clock=time.time,
        forms=shared.forms,
        seconds_max=model.timeout_seconds,
        rules=body_rules(name, model),
    )


def _dispatcher(name: str, model: Model, shared: Shared, caller: Caller) -> Dispatcher:
    services = Services(
        budget=shared.budget,
        outbox=SealedOutbox(shared.outbox, shared.vault, shared.closed),
        store=shared.store,
        closed=shared.closed,
        completed=shared.completed,
        clock=time.time,
        chance=random.random,
    )
    return Dispatcher(
        caller,
        services,
        policy=Policy(tries_max=model.tries_max),
        prefixes=prefixes(model, caller.pool),
        joiner=joiner(name, model),
    )
