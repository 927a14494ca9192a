"""The Faust app of one model.

It adds each record to the window of its partition and hands its lines to the dispatcher; nothing in the
agent waits for a call. The window acknowledges records in order, once the log has the results of all their lines.

When partitions are assigned:

1. each gets a new window, and the dispatcher may start calls;
2. the app looks up where the partitions end: records of a younger batch beyond that are new, and called at once;
3. any other record is held until the outcomes of its batch have been read (`partitions/assignment.py`,
   `partitions/outcome_recovery.py`).

When partitions are revoked, and when the process stops (SIGTERM):

1. the dispatcher starts no more calls;
2. calls in flight end, and their results arrive, within a bound;
3. finished records are acknowledged and committed (`tidemill.faust.stage_app`);
4. the windows are closed: results that arrive later acknowledge nothing.
"""

import asyncio
import functools
import logging
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from tidemill.configuration.security import Kafka
from tidemill.configuration.servers import Model
from tidemill.configuration.settings import Settings
from tidemill.faust import stage_app
from tidemill.faust.partitions import PartitionHandle
from tidemill.kafka.freeze_guard import MembershipGuard
from tidemill.kafka.producer import Log
from tidemill.processors.backends.pool import BackendPool
from tidemill.processors.calls.body_rules import body_rules
from tidemill.processors.calls.caller import Caller
from tidemill.processors.calls.endpoint_probe import EndpointProbe
from tidemill.processors.calls.forms import Forms
from tidemill.processors.calls.retry import Policy
from tidemill.processors.dispatcher import Dispatcher, Services
from tidemill.processors.http.client import HttpUpstream
from tidemill.processors.kafka import KafkaOutbox, reopen
from tidemill.processors.memory_budget import LineBudget
from tidemill.processors.partitions import seals
from tidemill.processors.partitions.assignment import Assignment, Record
from tidemill.processors.partitions.closed_batches import ClosedBatches
from tidemill.processors.partitions.held_records import HeldRecord, LockedRecords
from tidemill.processors.partitions.seals import LockedRecord, OpenedRecord, SealedOutbox
from tidemill.processors.partitions.unreadable import give_up
from tidemill.processors.partitions.window import Entry, PartitionWindow
from tidemill.processors.recovery import Recovery
from tidemill.processors.scheduling.prefix_groups import prefixes
from tidemill.schemas.log import topics
from tidemill.schemas.log.codec import DecodeError
from tidemill.schemas.ports import Store
from tidemill.sealing.vault import Vault

REBALANCE_DRAIN_SECONDS_MAX: Final = 30.0
HOLD_SECONDS: Final = 1.0
"""Between two times that paused partitions are paused again, since Faust may resume them."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What the models of a process share."""

    kafka: Kafka
    log: Log
    outbox: KafkaOutbox
    upstream: HttpUpstream
    store: Store
    closed: ClosedBatches
    budget: LineBudget
    forms: Forms
    vault: Vault


class ModelApp:
    """One model: its app, its dispatcher, and its partitions."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        model: Model,
        shared: Shared,
        *,
        pool: BackendPool,
        stop_seconds: Callable[[], float],
    ) -> None:
        """Set up the app; needs a running event loop.

        Args:
            name: The model's name.
            settings: All settings.
            model: The model's settings.
            shared: What it shares with the other models.
            pool: Its servers.
            stop_seconds: Gives the seconds that calls in flight may still take when the process stops.
        """
        names = [topics.express(name).name, topics.requests(name).name]
        plain = names[1].removeprefix(topics.REQUESTS_PREFIX)
        state = settings.data / "state" / f"processors-{plain}"
        self.app = stage_app.create_app(f"tidemill-processors-{plain}", settings, kafka=shared.kafka, state=state)
        self.name = name
        self.dispatcher = _dispatcher(name, model, shared, pool)
        self._shared, self._stop_seconds = shared, stop_seconds
        self._assignment = Assignment(shared.closed, self.dispatcher.enqueue, self._partition_of)
        self.held_records = LockedRecords(
            reopen=functools.partial(reopen, shared.kafka, shared.closed, shared.vault),
            admit=self._readmit,
            report=shared.outbox.stalled,
            closed=shared.closed,
        )
        self._give_up = functools.partial(
            give_up, model=name, log=shared.log, outbox=shared.outbox, closed=shared.closed
        )
        self._recovery = Recovery(
            shared.kafka, names, self._assignment, self.dispatcher.completed.mark,
            closed=shared.closed, set_part=self.dispatcher.set_part, partitions=settings.partitions,
        )  # fmt: skip
        self._tasks: set[asyncio.Task[None]] = set()
        self._membership_guard = MembershipGuard(self.app.membership, self.dispatcher)
        self._start(self.held_records.run())
        self.dispatcher.stalls.is_secret = shared.vault.has_key
        self._start(self.dispatcher.stalls.run(shared.outbox))
        self._agent = self.app.agent(stage_app.raw_topic(self.app, *names))(self._take_all)
        self.app.timer(HOLD_SECONDS)(self._hold)
        self.app.drain = self._leave
        self.app.oldest = lambda: stage_app.oldest(window.oldest for window in self._assignment.windows)
        self.app.on_partitions_assigned.connect(self._assigned, weak=False)

    async def close(self) -> None:
        """Cancel what is under way."""
        self._recovery.stop()
        for task in self._tasks:
            task.cancel()
        await self.dispatcher.close()

    def _partition_of(self, batch_id: str) -> int:
        return self._recovery.partition_of(batch_id)

    async def _take_all(self, events: Any) -> None:
        async for event in events.noack().events():
            window = self._assignment.window(event.message.tp)
            # Without a window the partition has been revoked: the record comes again.
            if window is not None and event.message.generation_id == self.app.consumer_generation_id:
                opened = await seals.open_record(
                    event.message, self._shared.closed, self._shared.vault, self.held_records.__contains__
                )
                # Reading the key took time, and the partition may have been revoked meanwhile.
                if not window.is_closed:
                    self._take(window, event, opened)

    def _take(
        self, window: PartitionWindow, event: Any, opened: OpenedRecord | LockedRecord | DecodeError
    ) -> None:
        message = event.message
        if isinstance(opened, LockedRecord):
            self.held_records.put(HeldRecord(head=opened.head, entry=window.admit(event, 1, 0), message=message))
        else:
            lines = 1 if isinstance(opened, DecodeError) else len(opened[1])
            self._admit(window.admit(event, lines, len(message.value or b"")), message, opened)
        if not isinstance(opened, DecodeError):
            # The lines were copied, or are read again; the event stays in memory until the last line is finished.
            event.value = message.value = None

    def _admit(self, entry: Entry, message: Any, opened: OpenedRecord | DecodeError) -> None:
        if isinstance(opened, DecodeError):
            self._start(self._give_up(entry, message, opened))
            return
        head, texts = opened
        record = Record(
            tp=message.tp, offset=message.offset, time=message.timestamp, entry=entry, head=head, texts=texts
        )
        if not self._assignment.take(record):
            self._recovery.wake()

    def _readmit(self, held: HeldRecord, opened: OpenedRecord | DecodeError) -> None:
        """Take a record that was held."""
        if not isinstance(opened, DecodeError):
            held.entry.window.refill(held.entry, len(opened[1]), len(held.message.value))
        self._admit(held.entry, held.message, opened)
        if not isinstance(opened, DecodeError):
            held.message.value = None

    async def _assigned(self, _: Any, assigned: Iterable[Any], **__: Any) -> None:
        self._recovery.stop()
        self._assignment.assign(
            {tp: PartitionWindow(PartitionHandle(self.app, tp)) for tp in assigned}, time.time()
        )
        self.dispatcher.resume()
        self._recovery.start()

    async def _leave(self, _: set[Any]) -> None:
        """Leave all partitions: a rebalance revokes all of an app's at once."""
        self._membership_guard.reset()
        await self.dispatcher.drain(REBALANCE_DRAIN_SECONDS_MAX if self.app.rebalancing else self._stop_seconds())
        self._assignment.leave()
        self.held_records.clear()
        self.dispatcher.forget_waiting()

    async def _hold(self) -> None:
        self._membership_guard.check()
        for window in self._assignment.windows:
            window.hold()

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _dispatcher(name: str, model: Model, shared: Shared, pool: BackendPool) -> Dispatcher:
    upstream_model = model.upstream_model or name
    caller = Caller(
        pool=pool,
        endpoint_probe=EndpointProbe(upstream_model, pool, shared.upstream),
        upstream=shared.upstream,
        store=shared.store,
        clock=time.time,
        forms=shared.forms,
        seconds_max=model.timeout_seconds,
        rules=body_rules(name, model),
    )
    services = Services(
        budget=shared.budget,
        outbox=SealedOutbox(shared.outbox, shared.vault),
        store=shared.store,
        closed=shared.closed,
        clock=time.time,
        chance=random.random,
    )
    return Dispatcher(
        pool,
        caller,
        services,
        policy=Policy(tries_max=model.tries_max),
        prefixes=prefixes(model, pool),
    )
