"""Errors of ours, and a store that refuses deletions: each holds up what it concerns, and nothing else."""

import asyncio

import pytest
from support import result_files
from support.facts import batch_id, commands, lines
from support.simulated import Simulation
from support.waiting import until

from tidemill import retrying
from tidemill.kafka.partitions.ack_gate import AckGate
from tidemill.kafka.partitions.owner import Record
from tidemill.results import batches, expiry
from tidemill.results.record_handler import RecordHandler
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import DeleteRequested, Tick
from tidemill.schemas.resources.batch import Status
from tidemill.schemas.resources.waiting import Reason
from tidemill.sealing.vault import Vault

TOTAL = 40
TICK = (topics.OUTCOMES.name, ((codec.KIND, b"tick"),))


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch):
    monkeypatch.setattr(retrying, "FIRST_SECONDS", 0.0)


def filled(number):
    """A simulation with a batch whose lines have all come."""
    simulation = Simulation(1)
    simulation.store.objects[f"files/in{number}"] = result_files.input_file(TOTAL)
    simulation.log.events += [*commands(number, TOTAL), *lines(simulation.chance, number, TOTAL)]
    return simulation


async def feed(simulation, partition, gate, start=0):
    """Handle the events from one on, and those that they lead to."""
    at = start
    while at < len(simulation.log.events):
        await simulation.handle(partition, gate, at)
        at += 1
        if at == len(simulation.log.events):
            await asyncio.sleep(0.01)
    return at


async def test_files_are_written_again_after_an_error_of_ours(monkeypatch):
    """The batch shows it, and ends at the next tick of its timer."""
    monkeypatch.setattr(batches, "AT_ONCE_BYTES_MAX", 0)
    simulation, gate = filled(0), AckGate()
    partition, failures = simulation.partition(), []
    send = partition.batches._publisher.compacted

    async def fail_once(*args):
        if not failures:
            failures.append(None)
            raise AssertionError
        return await send(*args)

    monkeypatch.setattr(partition.batches._publisher, "compacted", fail_once)
    await partition.load()
    at = await feed(simulation, partition, gate)
    await until(lambda: failures, "the error")
    for _ in range(3):
        simulation.now += batches.RETRY_SECONDS + 1
        simulation.log.events.append((*TICK, codec.encode(Tick(at=simulation.now))))
        at = await feed(simulation, partition, gate, at)
    result_files.check(simulation, 0, TOTAL, Status.COMPLETED)
    shown = [record.batch.tidemill.waiting for record in simulation.log.published if record.batch.tidemill.waiting]
    assert [each.reason for each in shown[0]] == [Reason.FILES]
    partition.abandon()


async def test_a_tick_goes_out_after_an_error_of_ours(monkeypatch):
    """Without one no timer would ever be due again."""
    simulation, sent = Simulation(1), []

    async def send(topic, key, value, **_):
        sent.append((topic, key, value))
        if len(sent) == 1:
            raise AssertionError
        return 0

    partition = simulation.partition()
    monkeypatch.setattr(simulation.log, "send", send)
    handler = RecordHandler(partition, resources=partition._resources, vault=Vault(None), partitions=1)
    handler.start()
    await until(lambda: len(sent) == 2, "the next attempt")
    topic, _, value = sent[1]
    await handler.handle([Record(topic=topic, partition=0, offset=0, key=b"tick", value=value, headers=TICK[1],
                                 timestamp=simulation.now)])  # fmt: skip
    handler._send_tick()
    await until(lambda: len(sent) == 3, "the next tick")


async def test_batches_that_cannot_be_erased_hold_up_no_other(monkeypatch):
    """As many as may be erased at once."""
    simulation, gate = Simulation(1), AckGate()
    partition, delete = simulation.partition(), simulation.store.delete
    refused = {batch_id(number) for number in range(expiry.ERASURES_MAX)}

    async def refusing(key):
        if any(name in key for name in refused):
            raise PermissionError(13, "Permission denied")
        await delete(key)

    monkeypatch.setattr(simulation.store, "delete", refusing)
    monkeypatch.setattr(retrying, "FIRST_SECONDS", 1.0)
    await partition.load()
    for number in range(expiry.ERASURES_MAX + 1):
        simulation.store.objects[f"parts/{batch_id(number)}/x"] = b"x"
        request = DeleteRequested(batch_id=batch_id(number), project="default", files=(), at=int(simulation.now))
        simulation.log.events.append((topics.COMMANDS.name, (), codec.encode(request)))
    await feed(simulation, partition, gate)
    await until(lambda: len(simulation.store.objects) == expiry.ERASURES_MAX, "the last erasure")
    partition.abandon()


def test_nothing_stays_of_an_unknown_batch_whose_record_failed():
    """Records may name any number of them."""
    partition = Simulation(1).partition()
    for number in range(3):
        partition.active_batches.begin()
        partition.active_batches.get(batch_id(number))
        partition.batches.undo()
    assert not len(partition.active_batches)
    assert partition.batches.timers.next is None
