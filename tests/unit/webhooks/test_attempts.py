"""An attempt that fails by a fault of ours."""

import asyncio

import pytest

from tidemill.kafka.partitions.owner import Record
from tidemill.schemas.log import codec, topics
from tidemill.schemas.webhooks import messages
from tidemill.schemas.webhooks.messages import Due, Endpoint, EndpointRecord, EventType, State
from tidemill.schemas.webhooks.table import Deliveries, Endpoints
from tidemill.webhooks.http import Outcome
from tidemill.webhooks.partition import Partition, Resources
from tidemill.webhooks.schedule import Slots

NOW = 1_800_000_000


class Outside:
    """The log and a receiver; a call of `failing` raises `error`."""

    def __init__(self, failing, error):
        self.failing, self.error = failing, error
        self.now, self.stored, self.endpoints = float(NOW), Deliveries(), Endpoints()
        shown = Endpoint(
            id="we_1", created_at=NOW, event_types=tuple(EventType), name="n",
            url="https://example.com", signing_secret_hint="", updated_at=NOW,
        )  # fmt: skip
        secret = messages.WrappedSecret(id="s", wrapped_by="k", wrapped="")
        record = EndpointRecord(project="p", endpoint=shown, secrets=(secret,), enabled_at=NOW)
        self.endpoints.apply("we_1", codec.encode(record))

    async def send(self, topic, key, value, *, headers=(), partition=None):
        del headers, partition
        if topic == topics.DELIVERIES.name:
            self.stored.apply(key, value)
        return 0

    async def post(self, *_):
        if self.failing == "post":
            raise self.error
        return Outcome(seconds=0.1, status=200)

    async def valid(self, *_):
        if self.failing == "valid":
            raise self.error
        return [b"secret"]

    async def catch_up(self):
        return

    def partition(self, slots):
        return Partition(0, Resources(
            sender=self, caller=self, secrets=self, endpoints=self.endpoints, stored=Deliveries(),
            catch_up=self.catch_up, partition_of=lambda _: 0, wake=lambda: None,
            clock=lambda: self.now, monotonic=lambda: self.now - NOW, slots=slots,
        ))  # fmt: skip


async def until_idle(partition):
    while partition._tasks:
        await asyncio.wait(partition._tasks)
    await partition.tick()


@pytest.mark.parametrize("failing", ["post", "valid"])
@pytest.mark.parametrize("error", [KeyError("HTTPS"), ValueError(), RuntimeError()])
async def test_a_fault_of_ours_is_an_outcome(failing, error, caplog):
    """The attempt gives its slot back, and is made again; it says nothing about the endpoint."""
    outside, slots = Outside(failing, error), Slots()
    partition = outside.partition(slots)
    event = messages.event_of("batch_1", "completed", NOW)
    value = codec.encode(Due(project="p", endpoint_id="we_1", event=event))
    await partition.handle([Record(topic=topics.EVENTS.name, partition=0, offset=0, key=b"", value=value,
                                   headers=(), timestamp=NOW)])  # fmt: skip
    await until_idle(partition)
    (found,) = outside.stored.of("we_1")
    assert (found.state, found.attempts, found.last.error) == (State.PENDING, 1, "internal")
    assert outside.stored.health("we_1") is None
    assert (partition.in_flight, slots.free) == (0, Slots().free)
    assert found.id in caplog.text
    outside.failing, outside.now = None, outside.now + 60.0
    await partition.tick()
    await until_idle(partition)
    assert outside.stored.of("we_1")[0].state is State.SUCCEEDED
