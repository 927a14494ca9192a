"""The log, the receivers and the time of one partition of webhooks, with crashes anywhere."""

import asyncio
import random

from tidemill.kafka.partitions.owner import Record
from tidemill.schemas.log import codec, topics
from tidemill.schemas.webhooks import messages
from tidemill.schemas.webhooks.messages import Due, Endpoint, EndpointRecord, EventType, State
from tidemill.schemas.webhooks.table import Deliveries, Endpoints
from tidemill.webhooks.http import Outcome
from tidemill.webhooks.partition import Partition, Resources
from tidemill.webhooks.schedule import LIFE_SECONDS, Slots

BEGAN = 1_800_000_000
DAY = 86_400


class Crash(BaseException):
    """The process ends here."""


class World:
    """The log, the receivers and the time, which outlive the processes."""

    def __init__(self, seed=0, crashing=0.0):
        self.chance = random.Random(seed)
        self.crashing = crashing
        self.now = float(BEGAN)
        self.events, self.acked = [], 0
        self.stored = Deliveries()
        """The deliveries as a reader of the log has them."""
        self.rows = []
        self.audit, self.dead = [], []
        self.order = []
        """Endpoint, batch and event, as they were published."""
        self.calls = []
        """Time, URL, webhook-id."""
        self.answer = lambda _: 200
        self.endpoints = Endpoints()
        self.crashes = 0
        self.partition = None

    def endpoint(self, endpoint_id="we_1", enabled_at=BEGAN):
        shown = Endpoint(
            id=endpoint_id, created_at=BEGAN, event_types=tuple(EventType), name="n",
            url=f"https://example.com/{endpoint_id}", signing_secret_hint="", updated_at=BEGAN,
        )  # fmt: skip
        secret = messages.WrappedSecret(id="s", wrapped_by="k", wrapped="")
        record = EndpointRecord(project="p", endpoint=shown, secrets=(secret,), enabled_at=enabled_at)
        self.endpoints.apply(endpoint_id, codec.encode(record))
        return record

    def publish(self, batch_id, endpoint_id="we_1", kind="completed", **more):
        event = messages.event_of(batch_id, kind, int(self.now))
        self.order.append((endpoint_id, batch_id, event.id))
        self.put(Due(project="p", endpoint_id=endpoint_id, event=event, **more))
        return event

    def put(self, message):
        self.events.append(codec.encode(message))

    async def send(self, topic, key, value, *, headers=(), partition=None):
        del headers, partition
        if self.chance.random() < self.crashing / 2:
            raise Crash
        if topic == topics.DELIVERIES.name:
            self.rows.append((key, value))
            self.stored.apply(key, value)
        elif topic == topics.DEAD.name:
            self.dead.append(value)
        elif topic == topics.AUDIT.name:
            self.audit.append(codec.decode_audit(value))
        elif topic == topics.EVENTS.name:
            self.events.append(value)
        else:
            raise AssertionError(topic)
        if self.chance.random() < self.crashing / 2:
            raise Crash
        return 0

    async def post(self, url, headers, body):
        del body
        name, event_id = url.rpartition("/")[2], headers["webhook-id"]
        endpoint_id = name if name.startswith("we_") else "we_1"
        stored = self.stored.get(messages.delivery_id(endpoint_id, event_id))
        assert stored.state is State.PENDING, "the log has the end of the delivery"
        of_batch = [each for each in self.order if each[:2] == (endpoint_id, stored.event.batch_id)]
        for _, _, earlier in of_batch[: of_batch.index((*of_batch[0][:2], event_id))]:
            found = self.stored.get(messages.delivery_id(endpoint_id, earlier))
            assert found.state is not State.PENDING, "an earlier event of the batch has not ended"
        self.calls.append((self.now, url, event_id))
        status = self.answer(headers["webhook-id"])
        return Outcome(seconds=0.1, status=status, error=None if status else "timeout")

    async def valid(self, record, now):
        del record, now
        return [b"secret"]

    async def catch_up(self):
        return

    def table(self):
        """The deliveries as a new process reads them."""
        found = Deliveries()
        for key, value in self.rows:
            found.apply(key, value)
        return found

    async def begin(self):
        """Start a process, as after a crash."""
        if self.partition is not None:
            self.partition.abandon()
            self.crashes += 1
        self.partition = Partition(0, Resources(
            sender=self, caller=self, secrets=self, endpoints=self.endpoints, stored=self.table(),
            catch_up=self.catch_up, partition_of=lambda _: 0, wake=lambda: None,
            clock=lambda: self.now, monotonic=lambda: self.now - BEGAN, slots=Slots(),
        ))  # fmt: skip
        self.read = self.acked
        self.acks = set()
        await self.partition.load()

    def record(self, offset):
        def ack():
            self.acks.add(offset)
            while self.acked in self.acks:
                self.acked += 1

        return Record(
            topic=topics.EVENTS.name, partition=0, offset=offset, key=b"", value=self.events[offset], headers=(),
            timestamp=self.now, ack=ack,
        )  # fmt: skip

    async def work(self):
        """Handle new records, and do what is due."""
        if self.read < len(self.events):
            first, self.read = self.read, min(len(self.events), self.read + self.chance.randint(1, 5))
            await self.partition.handle([self.record(offset) for offset in range(first, self.read)])
        for _ in range(3):
            await asyncio.sleep(0)
        if self.partition.is_due():
            await self.partition.tick()

    async def run(self, seconds, step=5.0):
        """Let time pass; a crash starts another process."""
        end = self.now + seconds
        if self.partition is None:
            await self.begin()
        while self.now < end:
            try:
                await self.work()
                if self.chance.random() < self.crashing:
                    await self.restart()
            except Crash:
                await self.restart()
            self.now += step

    async def restart(self):
        while True:
            try:
                await self.begin()
            except Crash:
                continue
            return

    async def settle(self):
        """Run without further crashes until nothing is left."""
        self.crashing = 0.0
        await self.run(LIFE_SECONDS, step=60.0)
