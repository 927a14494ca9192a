"""One partition of `tidemill.events`: its owner delivers the events to the endpoints whose records come there.

1. An event is acknowledged once the log has its pending delivery.
2. The owner calls the endpoint; an attempt that a crash cuts short is repeated by the next owner.
3. Once the log has the end of a delivery, no owner attempts it again. A crash may lose the end; then the receiver
   gets the event once more, with the same `webhook-id`.

A process that has lost the partition may still write a delivery, which at worst causes one more attempt.
"""

import asyncio
import functools
import logging
from collections import OrderedDict, defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel

from tidemill import metrics
from tidemill.kafka.partitions.dead_letters import handle_record
from tidemill.kafka.partitions.owner import Bounds, Record
from tidemill.retrying import reason, retry
from tidemill.schemas import ids
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import AuditRecord
from tidemill.schemas.ports import Clock, Monotonic, Sender
from tidemill.schemas.resources.audit import Action
from tidemill.schemas.webhooks import messages, signature
from tidemill.schemas.webhooks.messages import (
    HEALTH,
    Attempt,
    Delivery,
    Due,
    EndpointRecord,
    EventRecord,
    Health,
    Resend,
    Started,
    State,
)
from tidemill.schemas.webhooks.table import KEPT_MAX, Deliveries, Endpoints, is_disabled, is_ended
from tidemill.sealing.webhook_secrets import WebhookSecrets
from tidemill.webhooks import schedule
from tidemill.webhooks.http import Client, Outcome, traced
from tidemill.webhooks.schedule import LIFE_SECONDS, Schedule, Slots

LEAVE_SECONDS_MAX: Final = 3.0
"""How long attempts may go on when the process loses the partition."""
UNSIGNED: Final = "secret"
"""The error of an attempt that could not be signed."""
INTERNAL: Final = "internal"
"""The error of an attempt that failed because of a bug in Tidemill."""
BOUNDS: Final = Bounds(records=500, bytes=4 << 20, records_per_call=10)
SWEEP_SECONDS: Final = 60.0
"""How often the owner forgets the deliveries of deleted endpoints."""
FORGET_SECONDS: Final = 60
"""An ended delivery is remembered at least for this time, since its event may be read again after a crash."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Resources:
    """The connections, tables and clocks that the partitions of a process share."""

    sender: Sender
    caller: Client
    secrets: WebhookSecrets
    endpoints: Endpoints
    stored: Deliveries
    """The deliveries in the log; an owner reads them once, and its own state is newer from then on."""
    catch_up: Callable[[], Awaitable[None]]
    """Waits until `endpoints` and `stored` have all that the log has."""
    partition_of: Callable[[str], int]
    wake: Callable[[], None]
    clock: Clock
    monotonic: Monotonic
    slots: Slots


class Partition:
    """See `owner.PartitionWork`."""

    def __init__(self, number: int, resources: Resources) -> None:
        self._number = number
        self._resources = resources
        self._schedule = Schedule(resources.slots)
        self._pending: dict[str, Delivery] = {}
        self._ended: defaultdict[str, OrderedDict[str, Delivery]] = defaultdict(OrderedDict)
        """By endpoint, in the order in which they ended."""
        self._health: dict[str, Health] = {}
        self._outcomes: list[tuple[Delivery, Outcome]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._swept_at = 0.0

    def start(self) -> None:
        """See `owner.PartitionWork`."""
        send = functools.partial(
            self._resources.sender.send, topics.EVENTS.name, "started", codec.encode(messages.Started()),
            partition=self._number,
        )  # fmt: skip

        async def begin() -> None:
            await retry("starting a partition of the events", send, faults=Exception)

        self._spawn(begin())

    async def load(self) -> None:
        """See `owner.PartitionWork`: take over the deliveries of the previous owner."""
        await self._resources.catch_up()
        stored = self._resources.stored
        for endpoint_id in stored.endpoints():
            if self._resources.partition_of(endpoint_id) != self._number:
                continue
            if (health := stored.health(endpoint_id)) is not None:
                self._health[endpoint_id] = health
            for delivery in stored.of(endpoint_id):
                if is_ended(delivery):
                    self._ended[endpoint_id][delivery.id] = delivery
            waiting = (delivery for delivery in stored.of(endpoint_id) if not is_ended(delivery))
            for delivery in sorted(waiting, key=lambda delivery: delivery.place):
                self._keep(delivery)
        self._swept_at = self._resources.monotonic()
        await self._sweep()

    async def handle(self, records: list[Record]) -> None:
        """See `owner.PartitionWork`."""
        # One after the other, so that even after a crash the log has no delivery without the batch's earlier ones.
        for record in records:
            await handle_record(
                self._resources.sender, record, functools.partial(self._apply, record), stage="webhooks"
            )
            record.ack()
        self._launch()

    def is_due(self) -> bool:
        """See `owner.PartitionWork`."""
        now = self._resources.monotonic()
        return bool(self._outcomes) or self._schedule.is_due(now) or now >= self._swept_at + SWEEP_SECONDS

    async def tick(self) -> None:
        """See `owner.PartitionWork`: store the outcomes of attempts, and begin those that are due."""
        await self._settle_all()
        if self._resources.monotonic() >= self._swept_at + SWEEP_SECONDS:
            self._swept_at = self._resources.monotonic()
            await self._sweep()
        self._launch()

    async def leave(self) -> None:
        """See `owner.PartitionWork`: store the outcomes of the attempts in flight."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=LEAVE_SECONDS_MAX)
        await self._settle_all()

    def abandon(self) -> None:
        """See `owner.PartitionWork`."""
        for task in self._tasks:
            task.cancel()
        self._schedule.close()

    @property
    def waiting(self) -> int:
        """Deliveries without an attempt in flight."""
        return len(self._schedule) - self._schedule.in_flight

    @property
    def in_flight(self) -> int:
        """Attempts in flight."""
        return self._schedule.in_flight

    @property
    def oldest(self) -> float | None:
        """When the oldest pending delivery was created, Unix seconds."""
        return min((delivery.created_at for delivery in self._pending.values()), default=None)

    def failed(self) -> Iterator[tuple[EndpointRecord, Health]]:
        """The endpoints that have failed, with their health."""
        for endpoint_id, health in self._health.items():
            if (record := self._resources.endpoints.get(endpoint_id)) is not None:
                yield record, health

    async def _apply(self, record: Record) -> None:
        found: EventRecord = messages.decode_event(record.value)
        if isinstance(found, Started):
            return
        if self._resources.endpoints.get(found.endpoint_id) is None:
            await self._resources.catch_up()
        if (endpoint := self._resources.endpoints.get(found.endpoint_id)) is None:
            # The endpoint was deleted.
            return
        made = self._again(found) if isinstance(found, Resend) else self._made(found, endpoint)
        if made is not None:
            made = made.model_copy(update={"place": record.offset})
            await self._write({made.id: made})
            self._keep(made)

    def _made(self, due: Due, endpoint: EndpointRecord) -> Delivery | None:
        """A new delivery; None if there is one already, or the endpoint is disabled."""
        made_id, now = messages.delivery_id(due.endpoint_id, due.event.id), int(self._resources.clock())
        if made_id in self._pending or made_id in self._ended[due.endpoint_id]:
            return None
        if not due.is_test and is_disabled(endpoint, self._health.get(due.endpoint_id)):
            return None
        return Delivery(
            id=made_id, project=endpoint.project, endpoint_id=due.endpoint_id, event=due.event, url=due.url,
            is_test=due.is_test, traceparent=due.traceparent,
            created_at=now, expires_at=due.event.created_at + LIFE_SECONDS, next_at=now,
        )  # fmt: skip

    def _again(self, wish: Resend) -> Delivery | None:
        """An ended delivery, to be sent again; None if there is none."""
        if (known := self._ended[wish.endpoint_id].pop(wish.delivery_id, None)) is None:
            return None
        now = int(self._resources.clock())
        fresh = {"state": State.PENDING, "expires_at": now + LIFE_SECONDS, "next_at": now, "ended_at": None}
        return known.model_copy(update=fresh | {"attempts_before": known.attempts})

    def _keep(self, delivery: Delivery) -> None:
        """Schedule a pending delivery."""
        self._pending[delivery.id] = delivery
        wait = min(max(0.0, (delivery.next_at or 0) - self._resources.clock()), schedule.LONGEST_SECONDS)
        at = self._resources.monotonic() + wait
        lane = schedule.lane_of(delivery.endpoint_id, delivery.url)
        self._schedule.put(delivery.id, delivery.project, lane, delivery.event.batch_id, at)

    def _launch(self) -> None:
        for delivery_id in self._schedule.start(self._resources.monotonic()):
            self._spawn(self._attempt(self._pending[delivery_id]))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _attempt(self, delivery: Delivery) -> None:
        try:
            with traced(delivery) as ended:
                outcome = ended(await self._call(delivery))
        except Exception:  # noqa: BLE001  without an outcome the delivery would keep its slot for ever
            _log.exception("an attempt to deliver %s failed", delivery.id)
            outcome = Outcome(seconds=0.0, error=INTERNAL)
        metrics.WEBHOOK_ATTEMPTS.labels(outcome.label).inc()
        metrics.WEBHOOK_DURATION.observe(outcome.seconds)
        self._outcomes.append((delivery, outcome))
        self._resources.wake()

    async def _call(self, delivery: Delivery) -> Outcome:
        if (endpoint := self._resources.endpoints.get(delivery.endpoint_id)) is None:
            return Outcome(seconds=0.0, error="deleted")
        now, body = self._resources.clock(), delivery.event.body
        try:
            valid = await self._resources.secrets.valid(endpoint, now)
        except OSError as error:
            _log.warning("events of %s wait: %s", delivery.endpoint_id, reason(error))
            return Outcome(seconds=0.0, error=UNSIGNED)
        headers = signature.headers(delivery.event.id, int(now), body, valid)
        return await self._resources.caller.post(delivery.url or endpoint.endpoint.url, headers, body)

    async def _settle_all(self) -> None:
        ended, self._outcomes = self._outcomes, []
        rows: dict[str, BaseModel | None] = {}
        for delivery, outcome in ended:
            # The failure of a callback says nothing about the others at its host.
            self._schedule.returned(delivery.id, is_good=outcome.is_good or delivery.url is not None)
            rows |= await self._settle(delivery, outcome)
        await self._write(rows)

    async def _settle(self, delivery: Delivery, outcome: Outcome) -> dict[str, BaseModel | None]:
        """Apply the outcome of an attempt; returns the records that have changed."""
        now = int(self._resources.clock())
        attempt = Attempt(at=now, seconds=outcome.seconds, status_code=outcome.status, error=outcome.error)
        delivery = delivery.model_copy(update={"attempts": delivery.attempts + 1, "last": attempt})
        if (endpoint := self._resources.endpoints.get(delivery.endpoint_id)) is None:
            self._forget(delivery)
            return {delivery.id: None}
        if outcome.is_good:
            return self._succeeded(endpoint) | self._end(delivery, State.SUCCEEDED)
        rows = await self._failed(endpoint, now) if self._counts(delivery, outcome) else {}
        next_at = now + schedule.pause(delivery.attempts - delivery.attempts_before)
        is_over = delivery.is_test or self._is_disabled(endpoint) or next_at >= delivery.expires_at
        if is_over:
            # Overrides the row that `_failed` may have made from the delivery before this attempt.
            return rows | self._end(delivery, State.FAILED)
        again = self._pending[delivery.id] = delivery.model_copy(update={"next_at": int(next_at)})
        self._schedule.again(delivery.id, self._resources.monotonic() + next_at - now)
        return {again.id: again, **rows}

    def _counts(self, delivery: Delivery, outcome: Outcome) -> bool:
        """Whether a failure counts against the endpoint."""
        return not delivery.is_test and delivery.url is None and outcome.error not in (UNSIGNED, INTERNAL)

    def _is_disabled(self, endpoint: EndpointRecord) -> bool:
        return is_disabled(endpoint, self._health.get(endpoint.endpoint.id))

    def _succeeded(self, endpoint: EndpointRecord) -> dict[str, BaseModel | None]:
        """Forget the failures of an endpoint; a disabled one stays disabled."""
        if endpoint.endpoint.id not in self._health or self._is_disabled(endpoint):
            return {}
        del self._health[endpoint.endpoint.id]
        return {HEALTH + endpoint.endpoint.id: None}

    async def _failed(self, endpoint: EndpointRecord, now: int) -> dict[str, BaseModel | None]:
        """Count a failure; disable an endpoint that has failed for too long, and end its waiting deliveries."""
        endpoint_id = endpoint.endpoint.id
        known = self._health.get(endpoint_id)
        if known is not None and known.disabled_at is not None and not self._is_disabled(endpoint):
            # The endpoint was enabled again.
            known = None
        known = known or Health(project=endpoint.project, endpoint_id=endpoint_id)
        health = schedule.after_failure(known, now)
        if health == known:
            return {}
        if health.disabled_at is not None:
            await self._report(endpoint, health)
        self._health[endpoint_id] = health
        rows: dict[str, BaseModel | None] = {HEALTH + endpoint_id: health}
        if health.disabled_at is not None:
            for each in [each for each in self._pending.values() if each.endpoint_id == endpoint_id]:
                if not self._schedule.is_flying(each.id):
                    rows |= self._end(each, State.FAILED)
        return rows

    async def _report(self, endpoint: EndpointRecord, health: Health) -> None:
        """Record in the log of this process and in the audit trail that an endpoint is disabled."""
        at, endpoint_id = health.disabled_at or 0, endpoint.endpoint.id
        _log.warning(
            "the webhook endpoint %s has failed since %s and is disabled", endpoint_id, health.failing_since
        )
        entry = AuditRecord(
            id=ids.new_audit_id(), at=at, project=endpoint.project, actor="", action=Action.WEBHOOK_DISABLE,
            target=endpoint_id, detail={"failing_since": str(health.failing_since)},
        )  # fmt: skip
        send = functools.partial(
            self._resources.sender.send, topics.AUDIT.name, endpoint.project, codec.encode(entry)
        )
        await retry("sending an audit record", send)

    def _end(self, delivery: Delivery, state: State) -> dict[str, BaseModel | None]:
        """End a delivery; the oldest ended ones of its endpoint beyond `KEPT_MAX` are forgotten."""
        now = int(self._resources.clock())
        ended = delivery.model_copy(update={"state": state, "next_at": None, "ended_at": now})
        self._forget(delivery)
        kept = self._ended[delivery.endpoint_id]
        kept[ended.id] = ended
        rows: dict[str, BaseModel | None] = {ended.id: ended}
        while len(kept) > KEPT_MAX and (next(iter(kept.values())).ended_at or 0) < now - FORGET_SECONDS:
            rows[kept.popitem(last=False)[0]] = None
        return rows

    def _forget(self, delivery: Delivery) -> None:
        if self._pending.pop(delivery.id, None) is not None:
            self._schedule.drop(delivery.id, self._resources.monotonic())

    async def _sweep(self) -> None:
        """Forget the deliveries and the health of deleted endpoints."""
        rows: dict[str, BaseModel | None] = {}
        for delivery in list(self._pending.values()):
            is_gone = self._resources.endpoints.get(delivery.endpoint_id) is None
            if is_gone and not self._schedule.is_flying(delivery.id):
                self._forget(delivery)
                rows[delivery.id] = None
        for endpoint_id in [*self._ended, *self._health]:
            if self._resources.endpoints.get(endpoint_id) is None:
                rows |= dict.fromkeys(self._ended.pop(endpoint_id, ()))
                if self._health.pop(endpoint_id, None) is not None:
                    rows[HEALTH + endpoint_id] = None
        await self._write(rows)

    async def _write(self, rows: Mapping[str, BaseModel | None]) -> None:
        """Write records, and wait until the log has them."""

        async def send(key: str, row: BaseModel | None) -> None:
            value = None if row is None else codec.encode(row)
            await self._resources.sender.send(topics.DELIVERIES.name, key, value)

        await asyncio.gather(
            *(retry("storing a delivery", functools.partial(send, *each)) for each in rows.items())
        )
