"""Six scenarios, each with a fault exactly between two steps; each checks that the fault came there.

A scenario creates a batch of its own, which the run checks at its end like all others.
"""

import random
import re
import signal
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace

from chaos import world as worlds
from chaos.aim import AWAY, done
from chaos.checker import OVER
from chaos.cluster import STORE
from chaos.network import BROKERS
from chaos.traffic import Job
from chaos.world import World
from support.cuts import BACK, OUT
from support.waiting import WAIT_SECONDS_MAX, wait_until

from tidemill.kafka.producer import partition_of
from tidemill.schemas import ids
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import CancelRequested
from tidemill.schemas.log.part import file_id_of, file_key

LINES = 800
APPENDS = 4
RUN, PROJECT = "scenario", "default"
TRIES_MAX = 100
NUMBER_MIN = 1_000
"""Jobs of the run have smaller numbers."""
SLOW_SECONDS = 1.0
ALONE_SECONDS = 8.0
QUIET_SECONDS = 4.0
"""A zombie without new calls for this long has stopped: its calls take less time."""
DAY_SECONDS = 86_400

Scenario = Callable[[World, random.Random], None]


def creation(world: World, chance: random.Random) -> None:
    """Kill the api after the store has a batch's input but before the log does, and again before its command."""
    network, job = world.cluster.network, _job(world, chance, lines=60)
    with ThreadPoolExecutor(1) as pool:
        _cut(world, "api", OUT)
        answer = pool.submit(lambda: job.upload(world.client))
        size = len(job.content())
        key = wait_until(
            lambda: next((k for k, held in world.cluster.objects("files/").items() if held == size), ""),
            "the input in the store",
        )  # fmt: skip
        _end(world, "api")
        _refused(answer)
    file_id = file_id_of(key)
    assert all(name != file_id for name, _ in world.cluster.records(topics.FILES.name)), "the log has the file"
    network.heal()
    batch_id = _id(job)
    file_id = world.steadily(lambda: job.upload(world.client))
    _lose(world, batch_id, lambda: job.create(world.client, RUN, file_id))
    assert any(name == batch_id for name, _ in world.cluster.records(topics.CLAIMS.name)), "there is no claim"
    assert all(name != batch_id for name, _ in world.cluster.records(topics.COMMANDS.name)), "the log has it"
    network.heal()
    assert _create(world, job, file_id) == batch_id
    _ends(world, "creation", batch_id)


def lost_cancel(world: World, chance: random.Random) -> None:
    """Kill the api while a cancel is on its way to the log, which it never reaches; the caller tries again."""
    job = _job(world, chance, lines=4 * LINES, is_cancelled=True)
    batch_id = _create(world, job)
    _wait(world, batch_id, lambda batch: done(batch) > 0)
    _lose(world, batch_id, lambda: world.client.batches.cancel(batch_id))
    told = (codec.decode_command(value) for _, value in world.cluster.records(topics.COMMANDS.name) if value)
    cancels = [command for command in told if isinstance(command, CancelRequested)]
    assert all(command.batch_id != batch_id for command in cancels), "the log has the cancel"
    world.cluster.network.heal()
    world.steadily(lambda: world.client.batches.cancel(batch_id))
    batch = _ends(world, "lost-cancel", batch_id)
    assert batch["status"] == "cancelled", f"a batch that was cancelled is {batch['status']}"


def orphan(world: World, chance: random.Random) -> None:
    """Kill results between a file and its record: another process rewrites it, and the orphan goes after a day."""
    job = _job(world, chance, lines=LINES)
    batch_id = _create(world, job)
    _wait(world, batch_id, lambda batch: done(batch) > 0.5 * LINES)
    own = tuple(file_key(ids.derived_file_id(batch_id, kind)) for kind in ("output", "errors"))
    world.stop_extras()
    world.cluster.network.set("results", STORE, seconds=SLOW_SECONDS)
    made = wait_until(
        lambda: {key for key in world.cluster.objects("files/") if key.startswith(own)}, "a file without a record",
    )  # fmt: skip
    _end(world, "results")
    orphans = _unnamed(world, made)
    assert orphans, "the log has the file"
    world.cluster.network.heal()
    _ends(world, "orphan", batch_id)
    left = _unnamed(world, orphans)
    assert left, "its successor has taken over what it wrote"
    began = time.monotonic()
    _a_day_later(world, left)
    wait_until(
        lambda: not left & set(world.cluster.objects("files/")),
        "removal of the orphans",
    )
    world.found.append(
        f"orphan: {len(left)} of {len(orphans)} removed {time.monotonic() - began:.0f} s after a day"
    )


def finalizing(world: World, chance: random.Random) -> None:
    """Kill results while they write a batch's files, and keep them down for a while."""
    job = _job(world, chance, lines=LINES)
    batch_id = _create(world, job)
    world.stop_extras()
    _wait(world, batch_id, lambda batch: done(batch) > 0.5 * LINES)
    world.cluster.network.set("results", STORE, seconds=SLOW_SECONDS)
    _wait(world, batch_id, lambda batch: batch["status"] == "finalizing")
    with world.cluster.kept_down("results"):
        _end(world, "results")
        world.cluster.network.heal()
        worlds.sleep(ALONE_SECONDS)
        batch = world.steadily(lambda: world.batch(batch_id))
        assert batch["status"] == "finalizing", f"it is {batch['status']}, though no process works on it"
    _ends(world, "finalizing", batch_id)


def zombie(world: World, chance: random.Random) -> None:
    """Cut a processor from all brokers, or from its coordinator, while its calls run; another one takes over."""
    network, job = world.cluster.network, _job(world, chance, lines=4 * LINES)
    coordinator = world.cluster.coordinator("tidemill-processors")
    servers = chance.choice((BROKERS, (coordinator,)))
    batch_id = _create(world, _apart(world, job, coordinator))
    world.stop_extras()
    _wait(world, batch_id, lambda batch: done(batch) > 0)
    before = world.backend.stats()
    world.soft["zombie of processors"] += 1
    world.note_in_flight(1)
    assert before["in_flight"], "no call was running"
    for server in servers:
        network.set("processors", server, cuts=frozenset({OUT, BACK}))
    at = time.monotonic()
    heir = world.start_extra("processors")
    wait_until(lambda: world.backend.calls_of(heir)[0], "calls of another process")
    wait_until(
        lambda: time.monotonic() - max(at, world.backend.calls_of("processors")[1]) > QUIET_SECONDS,
        "the end of the zombie's calls",
    )
    seconds = max(0.0, world.backend.calls_of("processors")[1] - at)
    network.heal()
    _ends(world, "zombie", batch_id)
    again = world.backend.stats()["repeats"] - before["repeats"]
    world.found.append(
        f"zombie: without {'brokers' if servers == BROKERS else 'its coordinator'} it began calls for"
        f" {seconds:.1f} s; {before['in_flight']} were in flight, {again} were paid twice"
    )
    world.stop_extras()


def opening(world: World, chance: random.Random) -> None:
    """Kill the api with an opening record, and before the first append; kill ingest before it reads the seal."""
    network, job = world.cluster.network, _job(world, chance, lines=LINES)
    batch_id = _id(job)
    _lose(world, batch_id, lambda: job.open(world.client, RUN), topic=topics.INTAKE.name)
    assert all(name != batch_id for name, _ in world.cluster.records(topics.INTAKE.name)), (
        "the log has the opening"
    )
    network.heal()
    assert {world.steadily(lambda: job.open(world.client, RUN)) for _ in range(2)} == {batch_id}
    world.made.append((job, batch_id))
    _end(world, "api")
    network.heal()
    for sequence in range(1, APPENDS + 1):
        for _ in range(2):
            world.steadily(lambda: job.append(world.client, batch_id, sequence, lines=LINES // APPENDS))  # noqa: B023
    _wait(world, batch_id, lambda batch: done(batch) > 0)
    world.stop_extras()
    with world.cluster.kept_down("ingest"):
        _end(world, "ingest")
        network.heal()
        for _ in range(2):
            world.steadily(lambda: job.seal(world.client, batch_id))
        worlds.sleep(QUIET_SECONDS)
        batch = world.steadily(lambda: world.batch(batch_id))
        assert batch["status"] == "in_progress", f"it is {batch['status']}, though no process has read its seal"
    _ends(world, "opening", batch_id)


SCENARIOS: dict[str, Scenario] = {
    "creation": creation,
    "lost-cancel": lost_cancel,
    "orphan": orphan,
    "finalizing": finalizing,
    "zombie": zombie,
    "opening": opening,
}


ALL = "all"
VICTIMS = (*SCENARIOS, ALL)


def play(world: World, chance: random.Random, victim: str) -> None:
    """Play one scenario, or all, one after the other."""
    for name in SCENARIOS if victim == ALL else (victim,):
        world.aim.strikes[name] += 1
        try:
            SCENARIOS[name](world, chance)
        finally:
            world.cluster.network.heal()
        world.aim.met[name] += 1


def _job(world: World, chance: random.Random, *, lines: int, is_cancelled: bool = False) -> Job:
    number = NUMBER_MIN + TRIES_MAX * len(world.made)
    model = chance.choice(("chat-a", "chat-b", "embed"))
    return Job(number=number, model=model, lines=lines, is_cancelled=is_cancelled)


def _create(world: World, job: Job, file_id: str = "") -> str:
    """Upload and create; asked again with the same key, the api makes no other batch."""
    file_id = file_id or world.steadily(lambda: job.upload(world.client))
    first, again = (world.steadily(lambda: job.create(world.client, RUN, file_id)) for _ in range(2))
    assert first == again, "one key has made two batches"
    world.made.append((job, first))
    return first


def _id(job: Job) -> str:
    return ids.derived_batch_id(PROJECT, f"{RUN}-{job.number}")


def _apart(world: World, job: Job, broker: str) -> Job:
    """The same job, with a number such that another broker leads the partition of its outcomes, if possible."""
    leaders = world.cluster.leaders(topics.OUTCOMES.name)
    tries = (replace(job, number=job.number + further) for further in range(TRIES_MAX))
    return next((found for found in tries if leaders[partition_of(_id(found), len(leaders))] != broker), job)


def _lose(world: World, batch_id: str, ask: Callable[[], object], *, topic: str = topics.COMMANDS.name) -> None:
    """Have the api send a record about a batch, and kill the api while the record is on its way."""
    network = world.cluster.network
    with ThreadPoolExecutor(1) as pool:
        for broker in BROKERS:
            network.set("api", broker, caught=record_of(topic, batch_id))
        answer = pool.submit(ask)
        wait_until(
            lambda: any(way.has_caught for way in network.between("api")), f"a record about {batch_id}",
        )  # fmt: skip
        _end(world, "api")
        _refused(answer)


def record_of(topic: str, key: str) -> re.Pattern[bytes]:
    """A pattern for a produce request with a record of this topic and key; it may hold records of other topics."""
    return re.compile(b"%b((?!tidemill\\.).)*?%b" % (re.escape(topic.encode()), key.encode()), re.DOTALL)


def _cut(world: World, place: str, direction: str) -> None:
    for broker in BROKERS:
        world.cluster.network.set(place, broker, cuts=frozenset({direction}))


def _end(world: World, stage: str) -> None:
    """Kill a process; data that the network holds back never arrives."""
    world.hard[stage] += 1
    pids = world.wait_for(stage)
    worlds.send(pids, signal.SIGKILL)
    wait_until(lambda: worlds.gone(pids), f"end of {stage}")
    for broker in BROKERS:
        world.cluster.network.set(stage, broker, closed=True)


def _refused(answer: Future[object]) -> None:
    with suppress(*AWAY):
        raise AssertionError(f"it was answered with {answer.result(WAIT_SECONDS_MAX)}")


def _wait(world: World, batch_id: str, condition: Callable[[dict[str, object]], bool]) -> None:
    def comes() -> bool:
        worlds.sleep(worlds.LOOK_SECONDS)
        with suppress(*AWAY):
            batch = world.batch(batch_id)
            assert batch["status"] not in OVER, f"{batch_id} was over before it was met"
            return condition(batch)
        return False

    wait_until(comes, f"the moment of {batch_id}")


def _ends(world: World, name: str, batch_id: str) -> dict[str, object]:
    """Wait for the end of a batch, and note how long it took."""
    began = time.monotonic()
    world.recover(f"scenario:{name}")
    wait_until(lambda: world.aim.ended(batch_id), f"end of {batch_id}")
    world.found.append(f"{name}: its batch was over after {time.monotonic() - began:.1f} s")
    return world.steadily(lambda: world.batch(batch_id))


def _unnamed(world: World, keys: set[str]) -> set[str]:
    """The keys that no file record names."""
    named = [value or b"" for _, value in world.cluster.records(topics.FILES.name)]
    return {key for key in keys if not any(b'"%b"' % key.encode() in value for value in named)}


def _a_day_later(world: World, keys: set[str]) -> None:
    """Make the api believe that it first saw these objects a day ago, by changing the database of its view."""
    view = world.cluster.view

    def met(change: str = "SELECT count(*) FROM orphans") -> int:
        with suppress(sqlite3.Error), closing(sqlite3.connect(view)) as database, database:
            marks = ",".join("?" * len(keys))
            return int((database.execute(f"{change} WHERE key IN ({marks})", sorted(keys)).fetchone() or [0])[0])
        return 0

    for change in (None, f"UPDATE orphans SET seen_at = seen_at - {DAY_SECONDS}"):
        with world.cluster.kept_down("api"):
            _end(world, "api")
            if change is not None:
                met(change)
        world.cluster.network.heal()
        if change is None:
            wait_until(lambda: met() == len(keys), "the api to meet the orphans")
