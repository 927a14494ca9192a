"""The faults, each a function of the world, chance, and a victim. Each returns once it is over."""

import asyncio
import random
import signal
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError
from chaos import aimed, network, rig, scenarios
from chaos import world as worlds
from chaos.disk import Disk
from chaos.traffic import MODELS
from chaos.world import World
from support.waiting import wait_until

from tidemill.schemas import ids
from tidemill.schemas.log import codec, topics

FREEZE_SECONDS = 8.0
"""Longer than a session: another process then has the partitions of the frozen one."""
READY_SECONDS = 6.0
"""Time for an extra process to join its group before its neighbour is frozen."""
STORM_SECONDS = 5.0
STORM_SHARES = {
    "429": 0.1,
    "500": 0.05,
    "cut": 0.02,
    "html": 0.02,
    "huge": 0.0005,
    "nothing": 0.002,
    "close": 0.03,
}
COPIED_RECORDS_MAX = 400
FILL_SECONDS = 0.2
"""Interval at which a full disk is filled again, in case files were removed."""
SLOW_STORE_SECONDS = (0.5, 3.0)
SLOW_DISK_SECONDS = (0.01, 0.1)
STEP_SECONDS = (60.0, 900.0)
READ_MS = 500
CONNECT_SECONDS = 1.0
"""Pause between attempts to reach a starting broker."""

ALL = "all"
"""The victim of a step of every clock."""

Fault = Callable[[World, random.Random, str], None]


def kill(world: World, chance: random.Random, victim: str) -> None:
    """Send SIGKILL to all processes of a stage, or to the supervisor alone, and then start that again."""
    del chance
    if victim == "supervisor":
        world.note_in_flight(len(world.pids("processors")))
        world.hard[victim] += 1
        world.stack.crash()
        world.stack.start()
    else:
        world.end(world.wait_for(victim), victim, signal.SIGKILL)


def terminate(world: World, chance: random.Random, victim: str) -> None:
    """Send SIGTERM, as an operator or an orchestrator does."""
    del chance
    if victim == "supervisor":
        world.soft[victim] += 1
        world.stack.stop()
        world.stack.start()
    else:
        world.end(world.wait_for(victim), victim, signal.SIGTERM)


def freeze(world: World, chance: random.Random, victim: str) -> None:
    """Send SIGSTOP, and SIGCONT once another process of the stage has its partitions: a zombie for a moment."""
    pids = world.wait_for(victim)
    if victim in worlds.STAGES and len(pids) == 1:
        world.start_extra(victim)
        worlds.sleep(READY_SECONDS)
    frozen = [chance.choice(pids)]
    if victim == "processors":
        world.note_in_flight(1)
    world.hard[f"{victim} frozen"] += 1
    worlds.send(frozen, signal.SIGSTOP)
    worlds.sleep(FREEZE_SECONDS)
    worlds.send(frozen, signal.SIGCONT)


def power_cut(world: World, chance: random.Random, victim: str) -> None:
    """Kill all processes at once, and start them again."""
    if victim:
        aimed.power_cut(world, chance, victim)
        return
    world.hard["power cut"] += 1
    world.crash()


def rebalance(world: World, chance: random.Random, victim: str) -> None:
    """Add a process of a stage, or remove one."""
    if chance.random() < 0.5:
        world.wait_for("kafka")
        world.start_extra(victim)
    else:
        world.stop_extra()
    world.soft["rebalance"] += 1


def store_away(world: World, chance: random.Random, victim: str) -> None:
    """Every call of the store fails for a while."""
    del victim
    world.soft["store away"] += 1
    world.break_store()
    try:
        worlds.sleep(world.away(chance))
    finally:
        world.mend_store()


def store_full(world: World, chance: random.Random, victim: str) -> None:
    """The store accepts no writes for a while; its objects can be read and removed."""
    del victim
    world.soft["store full"] += 1
    _fill([world.rig.store], world.away(chance))


def store_slow(world: World, chance: random.Random, victim: str) -> None:
    """Each object takes long to reach for a while."""
    del victim
    assert world.rig.meddle is not None
    world.soft["store slow"] += 1
    world.rig.meddle.slow_store(chance.uniform(*SLOW_STORE_SECONDS))
    worlds.sleep(world.away(chance))
    world.rig.meddle.slow_store(0.0)


def disk_full(world: World, chance: random.Random, victim: str) -> None:
    """Fill the disk of the log, the state, the store and the log files for a while."""
    del victim
    world.hard["disk full"] += 1
    before = world.pids("processors")
    _fill([world.rig.disk, world.rig.store], world.away(chance))
    if world.pids("processors") != before:
        # Kafka may exit for lack of space; so may any other process, without a message.
        world.note_in_flight(len(before))


def disk_slow(world: World, chance: random.Random, victim: str) -> None:
    """Slow down each write and sync for a while, also Kafka's."""
    del victim
    assert world.rig.meddle is not None
    world.soft["disk slow"] += 1
    world.rig.meddle.slow_disk(chance.uniform(*SLOW_DISK_SECONDS))
    worlds.sleep(world.away(chance))
    world.rig.meddle.slow_disk(0.0)


def clock(world: World, chance: random.Random, victim: str) -> None:
    """Step the wall clock by minutes: for good for all processes, or for a while for one stage."""
    assert world.rig.meddle is not None
    seconds = chance.choice((-1, 1)) * chance.uniform(*STEP_SECONDS)
    world.soft["clock step"] += 1
    pids = world.wait_for(victim) if victim != ALL else []
    world.rig.meddle.step(seconds, pids)
    worlds.sleep(world.away(chance))
    if pids:
        world.rig.meddle.step(0.0, pids)


def backend_away(world: World, chance: random.Random, victim: str) -> None:
    """The backend answers 503 for a while."""
    del victim
    world.soft["backend away"] += 1
    world.backend.set(down="true")
    worlds.sleep(world.away(chance))
    world.backend.set(down="false")


def storm(world: World, chance: random.Random, victim: str) -> None:
    """Let the backend fail in every way it can for a while."""
    del chance, victim
    world.soft["storm"] += 1
    world.backend.set(**STORM_SHARES)
    worlds.sleep(STORM_SECONDS)
    world.backend.set(**dict.fromkeys(STORM_SHARES, 0))


def poison(world: World, chance: random.Random, victim: str) -> None:
    """Produce unreadable records, and lines that are not requests."""
    del victim
    world.soft["poison"] += 1
    model = topics.requests(chance.choice(list(MODELS))).name
    head = codec.RequestHead(
        batch_id=ids.new_batch_id(), project="default", first=0, deadline=1 << 33, url="/v1/chat/completions"
    )
    rubbish = bytes(chance.getrandbits(8) for _ in range(64)).replace(b"\n", b" ")
    records = [
        (model, b"x", [], rubbish),
        (model, b"x", codec.request_headers(head), rubbish),
        (topics.COMMANDS.name, b"x", [], rubbish),
        (topics.OUTCOMES.name, b"x", [], rubbish),
        (topics.OUTCOMES.name, b"x", [(codec.KIND, codec.LINES)], rubbish),
    ]
    _with_the_log(world, lambda clients: _produce(clients, records))


def duplicate(world: World, chance: random.Random, victim: str) -> None:
    """Produce a range of a requests topic a second time."""
    del victim
    world.soft["duplicate"] += 1
    model = topics.requests(chance.choice(list(MODELS))).name
    _with_the_log(world, lambda clients: _copy(clients, model, chance))


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of fault: its possible victims (or moments), and its weight in the random choice."""

    fault: Fault
    victims: tuple[str, ...] = ("",)
    weight: int = 1
    is_common: bool = True
    """Whether a run without chosen faults includes it; aimed faults are left out."""
    needs: str = ""
    """A key of `rig.WHY_NOT`: on a machine without this means, the fault is left out."""


KINDS = {
    "kill": Kind(fault=kill, victims=worlds.PROCESSES, weight=6),
    "terminate": Kind(fault=terminate, victims=(*worlds.STAGES, "supervisor"), weight=2),
    "freeze": Kind(fault=freeze, victims=worlds.STAGES, weight=2),
    "power": Kind(fault=power_cut),
    "rebalance": Kind(fault=rebalance, victims=("ingest", "processors", "results"), weight=3),
    "store": Kind(fault=store_away),
    "backend": Kind(fault=backend_away),
    "storm": Kind(fault=storm),
    "store-full": Kind(fault=store_full, needs=rig.DISK),
    "store-slow": Kind(fault=store_slow, needs=rig.MEDDLE),
    "disk-full": Kind(fault=disk_full, needs=rig.DISK),
    "disk-slow": Kind(fault=disk_slow, needs=rig.MEDDLE),
    "clock": Kind(fault=clock, victims=(ALL, *worlds.STAGES, "kafka"), weight=2, needs=rig.MEDDLE),
    "poison": Kind(fault=poison),
    "duplicate": Kind(fault=duplicate, weight=2),
    "zombie": Kind(fault=aimed.zombie, victims=aimed.VICTIMS, is_common=False),
    **{
        name: Kind(fault=fault, victims=victims, weight=2, is_common=False, needs=rig.NETWORK)
        for name, (fault, victims) in network.FAULTS.items()
    },
    "scenario": Kind(fault=scenarios.play, victims=scenarios.VICTIMS, is_common=False, needs=rig.NETWORK),
}
"""By name, as in `--faults`; `power` has the same moments as `zombie`."""
COMMON = tuple(name for name, kind in KINDS.items() if kind.is_common)
ANYWHERE = tuple(name for name in COMMON if not KINDS[name].needs)
"""The kinds that every machine supports."""
GROUPS = {"network": (*network.FAULTS, *ANYWHERE)}
"""Names for several faults: all that a cluster supports."""


def _fill(disks: list[Disk | None], seconds: float) -> None:
    until = time.monotonic() + seconds
    try:
        while time.monotonic() < until:
            for disk in disks:
                assert disk is not None
                disk.fill()
            worlds.sleep(FILL_SECONDS)
    finally:
        for disk in disks:
            assert disk is not None
            disk.empty()


def _with_the_log(world: World, work: Callable[[dict[str, Any]], Coroutine[Any, Any, None]]) -> None:
    """Call `work` once a broker answers, which takes a while after its start."""

    def is_done() -> bool:
        with suppress(KafkaError, OSError, ValueError):
            asyncio.run(work(world.stack.clients()))
            return True
        worlds.sleep(CONNECT_SECONDS)
        return False

    wait_until(is_done, "an answer of a broker")


async def _produce(clients: dict[str, Any], records: list[tuple[str, bytes | None, Any, bytes]]) -> None:
    producer = AIOKafkaProducer(**clients)
    try:
        await producer.start()
        for topic, key, headers, value in records:
            await producer.send_and_wait(topic, value, key=key, headers=headers)
    finally:
        await producer.stop()


async def _copy(clients: dict[str, Any], topic: str, chance: random.Random) -> None:
    consumer = AIOKafkaConsumer(**clients, enable_auto_commit=False)
    copies: list[tuple[str, bytes | None, Any, bytes]] = []
    try:
        await consumer.start()
        partitions = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic) or ()]
        consumer.assign(partitions)
        for partition, end in (await consumer.end_offsets(partitions)).items():
            consumer.seek(partition, chance.randint(max(0, end - COPIED_RECORDS_MAX), end))
        for records in (await consumer.getmany(timeout_ms=READ_MS, max_records=COPIED_RECORDS_MAX)).values():
            copies += [(topic, record.key, list(record.headers), record.value) for record in records]
    finally:
        await consumer.stop()
    await _produce(clients, copies)
