"""The dispatcher, with a scripted backend and a log that takes outcomes when it is told to."""

import asyncio
import dataclasses
import itertools
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.waiting import until

from tidemill.processors.backends.breaker import Breaker, Pauses
from tidemill.processors.backends.pool import Backend, BackendPool
from tidemill.processors.backends.token_bucket import TokenBucket
from tidemill.processors.calls.caller import Caller
from tidemill.processors.calls.endpoint_probe import EndpointProbe
from tidemill.processors.calls.retry import Policy
from tidemill.processors.dispatcher import Dispatcher
from tidemill.processors.failures import Answer, FailureKind
from tidemill.processors.limits.concurrency_limit import ConcurrencyLimit
from tidemill.processors.memory_budget import LINES_BYTES_MAX, LineBudget
from tidemill.processors.partitions.closed_batches import ClosedBatches
from tidemill.processors.partitions.window import PartitionWindow
from tidemill.processors.scheduling import waiting_lines
from tidemill.processors.scheduling.prefix_groups import PRIMER_SECONDS_MAX, Prefixes
from tidemill.schemas import ids
from tidemill.schemas.log import codec
from tidemill.schemas.log.messages import BatchRecord
from tidemill.schemas.resources.batch import Batch, Status
from tidemill.storage.directory import DirectoryStore

QUICK = Policy(
    wait_seconds_base=0.0001,
    wait_seconds_max=0.001,
    spread_seconds_min=0.0,
    proof_seconds_min=0.001,
)
PAUSES = Pauses(base=0.0001, longest=0.001, access=0.0001, probe=1.0)
FAULTS = (
    FailureKind.READ,
    FailureKind.CONNECT,
    Answer(500, b"{}"),
    Answer(503, b""),
    Answer(200, b"{"),
    Answer(429, b"{}"),
)


class Inference:
    """An `Upstream` that lets each call wait for some turns of the event loop, and counts."""

    def __init__(self, rng: random.Random, faults: float = 0.0) -> None:
        self.calls: Counter[bytes] = Counter()
        self.good: Counter[bytes] = Counter()
        self.in_flight = 0
        self.in_flight_max = 0
        self.names: Counter[str] = Counter()
        self.reply = b'{"data":[{"index":0}]}'
        self.is_bad = lambda _body: False
        self.gate = asyncio.Event()
        self.gate.set()
        self._rng = rng
        self._faults = faults

    async def post(
        self, url: str, headers: dict[str, str], body: bytes, seconds: float, request_id: str = ""
    ) -> Answer | FailureKind:
        del url, headers, seconds
        # What only asks whether the server answers has no line.
        if is_line := b'"b":' in body:
            self.names[request_id] += 1
            self.calls[body] += 1
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight, self.in_flight_max)
        await self.gate.wait()
        for _ in range(self._rng.randrange(4)):
            await asyncio.sleep(0)
        self.in_flight -= 1
        if self._rng.random() < self._faults or self.is_bad(body):
            return self._rng.choice(FAULTS)
        if is_line:
            self.good[body] += 1
        return Answer(200, self.reply)

    def heal(self) -> None:
        """From now on each call is answered."""
        self._faults = 0.0

    async def close(self) -> None:
        """Nothing is open."""


class Log:
    """An `Outbox` that appends after some turns of the event loop."""

    def __init__(self, rng: random.Random) -> None:
        self.lines: Counter[tuple[str, int]] = Counter()
        self.failed: set[tuple[str, int]] = set()
        self.gate = asyncio.Event()
        self.gate.set()
        self._rng = rng

    async def send(self, batch_id: str, value: bytes, headers: codec.Headers) -> None:
        await self.gate.wait()
        for _ in range(self._rng.randrange(4)):
            await asyncio.sleep(0)
        for mark in codec.lines_marks(headers, len(value))[1]:
            self.lines[batch_id, mark.index] += 1
            if mark.failed:
                self.failed.add((batch_id, mark.index))


class Partition:
    """A `Tap` that checks each acknowledgement against the log."""

    def __init__(self, log: Log) -> None:
        self.acked: list[int] = []
        self.records: list[tuple[str, int, int]] = []
        self.dropped: set[str] = set()
        self._log = log

    def ack(self, token: Any) -> None:
        assert token == len(self.acked), "an acknowledgement out of order"
        batch_id, first, lines = self.records[token]
        if batch_id not in self.dropped:
            for index in range(first, first + lines):
                assert self._log.lines[batch_id, index], "acknowledged before the log has its outcome"
        self.acked.append(token)

    def pause(self) -> None:
        """The window is not this test's matter."""

    def resume(self) -> None:
        """As above."""


class World:
    """A stage among them."""

    def __init__(
        self,
        folder: Path,
        *,
        seed: int = 0,
        faults: float = 0.0,
        limit: int = 4,
        policy: Policy = QUICK,
        buckets: tuple[TokenBucket, ...] = (),
        is_grouped: bool = False,
        memory: int = LINES_BYTES_MAX,
        budget: LineBudget | None = None,
    ) -> None:
        self.folder = folder
        self.ahead = 0.0
        """Seconds by which the wall clock was set."""
        rng = random.Random(seed)
        self.inference = Inference(rng, faults)
        self.log = Log(rng)
        self.closed = ClosedBatches()
        store = DirectoryStore(folder)
        fleet = self.fleet = BackendPool(
            [
                Backend(url, ConcurrencyLimit(limit), breaker=Breaker(PAUSES), buckets=buckets)
                for url in ("http://a", "http://b")
            ]
        )
        self.stage = Dispatcher(
            pool=fleet,
            caller=Caller(
                pool=fleet, endpoint_probe=EndpointProbe("m", fleet, self.inference), upstream=self.inference,
                store=store, clock=self.now, seconds_max=5,
            ),
            budget=budget or LineBudget(memory),
            outbox=self.log,
            store=store,
            closed=self.closed,
            clock=self.now,
            chance=rng.random,
            in_flight_max=limit,
            policy=policy,
            # Three groups, and lines that are in none.
            prefixes=Prefixes(lambda line: line.index % 4 or None, fleet.backends) if is_grouped else None,
        )  # fmt: skip
        self.assign()

    def drain_backends(self, *, is_drained: bool) -> None:
        """The settings of the servers change."""
        for backend in self.fleet.backends:
            backend.drain = is_drained
        self.stage.fill()

    def now(self) -> float:
        """Unix time as the process takes it."""
        return time.time() + self.ahead

    def assign(self) -> None:
        """A new lane, as after an assignment."""
        self.tap = Partition(self.log)
        self.window = PartitionWindow(self.tap)
        self.stage.resume()

    def publish(
        self,
        batch_id: str,
        first: int,
        lines: int,
        seconds: float = 600,
        *,
        is_large: bool = False,
        project: str = "p",
    ) -> None:
        """A record arrives."""
        texts = [
            b'{"custom_id":"%d","body":{"b":"%b","n":%d}}' % (n, batch_id.encode(), n)
            for n in range(first, first + lines)
        ]
        token = len(self.tap.records)
        self.tap.records.append((batch_id, first, lines))
        head = codec.RequestHead(
            batch_id=batch_id, project=project, first=first, deadline=int(time.time() + seconds),
            url="/v1/embeddings",
        )  # fmt: skip
        if seconds <= 0:
            self.tap.dropped.add(batch_id)
        if is_large:
            (text,) = texts
            (self.folder / f"{batch_id}-{first}").write_bytes(text)
            head = dataclasses.replace(head, ref=codec.LineRef(f"{batch_id}-{first}", 0, len(text)))
            texts = [b""]
        self.stage.enqueue(self.window.admit(token, lines, 1), head, texts)

    def end(self, batch_id: str) -> None:
        """The log of batches says that one is cancelled."""
        self.tap.dropped.add(batch_id)
        batch = Batch(
            id=batch_id, endpoint="/v1/embeddings", input_file_id="f", completion_window="24h",
            status=Status.CANCELLING, created_at=0, expires_at=1,
        )  # fmt: skip
        self.closed.apply(BatchRecord(project="p", batch=batch))

    async def finish(self) -> None:
        """All records are acknowledged, and nothing is left."""
        await until(lambda: len(self.tap.acked) == len(self.tap.records) and not self.stage.busy, "all acks")
        assert self.stage.pending == 0
        await self.stage.close()


records = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30), st.integers(1, 8)), min_size=1, max_size=25)


conditions = st.tuples(st.integers(0, 2**32), st.sampled_from([0.0, 0.3]), st.integers(1, 12), st.booleans())


@given(records, conditions, st.sets(st.integers(0, 24)))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_each_line_once_whatever_happens(
    tmp_path: Path, published: list[tuple[int, int, int]], condition: tuple[int, float, int, bool], moves: set[int]
) -> None:
    """Overlapping records, faults, rebalances: one good call and one outcome a line, acks in order."""
    seed, faults, limit, is_grouped = condition
    world = World(tmp_path, seed=seed, faults=faults, limit=limit, is_grouped=is_grouped, memory=100)
    batches = [ids.new_batch_id() for _ in range(3)]
    wanted = set()
    for number, (which, first, lines) in enumerate(published):
        world.publish(batches[which], first, lines, is_large=lines == 1)
        wanted |= {(batches[which], n) for n in range(first, first + lines)}
        await asyncio.sleep(0)
        if number in moves:
            assert await world.stage.drain(20)
            acked, known = len(world.tap.acked), world.tap.records
            world.window.close()
            world.stage.forget_waiting()
            world.assign()
            for batch_id, start, count in known[acked:]:
                world.publish(batch_id, start, count, is_large=count == 1)
    await world.finish()
    assert set(world.log.lines) == wanted
    assert set(world.log.lines.values()) == {1}
    assert set(world.inference.good.values()) <= {1}
    assert world.inference.in_flight_max <= limit


async def test_a_process_makes_its_part_of_the_calls(tmp_path: Path) -> None:
    """Half of them with half of the partitions, and all of them again when it has all; one in any case."""
    world = World(tmp_path, limit=8)
    world.inference.gate.clear()
    world.stage.set_part(0.5)
    world.publish(ids.new_batch_id(), 0, 100)
    await until(lambda: world.inference.in_flight == 4, "its part of the calls")
    assert world.stage.busy == world.stage.seats == 4
    world.stage.set_part(1.0)
    await until(lambda: world.inference.in_flight == 8, "all calls")
    world.stage.set_part(0.01)
    assert world.stage.seats == 1
    world.inference.gate.set()
    await world.finish()


async def test_large_lines_wait_for_memory_without_a_place_among_the_calls(tmp_path: Path) -> None:
    """The memory holds one line: large lines of two projects take turns, and all other places go to small ones."""
    world = World(tmp_path, limit=4, memory=1)
    world.inference.gate.clear()
    large = {project: ids.new_batch_id() for project in ("a", "b")}
    for project, batch_id in large.items():
        for number in range(6):
            world.publish(batch_id, number, 1, is_large=True, project=project)
    await until(lambda: world.inference.in_flight == 1, "the first large line")
    small = ids.new_batch_id()
    world.publish(small, 0, 50, project="c")
    await until(lambda: world.inference.in_flight == 4, "small lines beside it")
    waiting = [world.stage._waiting.waiting_for_memory(batch_id) for batch_id in large.values()]
    assert waiting == [5, 6]
    world.end(large["b"])
    assert world.stage._waiting.waiting_for_memory(large["b"]) == 0
    again = ids.new_batch_id()
    for number in range(5):
        world.publish(again, number, 1, is_large=True, project="b")
    world.inference.gate.set()
    await world.finish()
    called = [orjson.loads(body)["b"] for body in world.inference.calls]
    turns = [batch_id for batch_id in called if batch_id != small]
    assert sorted(turns) == sorted([large["a"]] * 6 + [again] * 5)
    assert turns[:8].count(again) >= 3, "they take turns, though all lines of the other project came before"


async def test_a_model_whose_servers_take_no_calls_leaves_the_memory_to_others(tmp_path: Path) -> None:
    """Its next large line gets the memory when the settings have just let no more calls go to its servers."""
    budget = LineBudget(1)
    away, other = (World(tmp_path, budget=budget, limit=2) for _ in range(2))
    away.inference.gate.clear()
    batches = [ids.new_batch_id() for _ in range(2)]
    away.inference.is_bad = lambda _body: True
    for number in range(2):
        away.publish(batches[0], number, 1, is_large=True)
    await until(lambda: away.stage._waiting.waiting_for_memory(batches[0]) == 1, "a line that waits for memory")
    away.drain_backends(is_drained=True)
    away.inference.gate.set()
    other.publish(batches[1], 0, 1, is_large=True)
    await other.finish()
    away.inference.heal()
    away.inference.is_bad = lambda _body: False
    away.drain_backends(is_drained=False)
    await away.finish()


async def test_lines_of_a_batch_are_called_together(tmp_path: Path) -> None:
    """Twenty batches at work: what is in flight is of a few of them, so that their results can share records."""
    world = World(tmp_path, limit=64)
    batches = [ids.new_batch_id() for _ in range(20)]
    for batch_id in batches:
        world.publish(batch_id, 0, 64)
    await world.finish()
    called = [orjson.loads(body)["b"] for body in world.inference.calls]
    assert len(called) == 20 * 64
    changes = sum(one != following for one, following in itertools.pairwise(called))
    assert changes < len(called) / 3


async def test_tokens_are_counted_as_they_are_used(tmp_path: Path) -> None:
    """One call goes out; the next waits until what its answer really used is paid for."""
    bucket = TokenBucket(60)
    world = World(tmp_path, buckets=(bucket,))
    world.inference.reply = b'{"data":[{}],"usage":{"prompt_tokens":300,"completion_tokens":700}}'
    world.publish(ids.new_batch_id(), 0, 3)
    await until(lambda: world.log.lines.total() == 1, "the first outcome")
    now = asyncio.get_running_loop().time()
    assert 900 < bucket.ready_at(now) - now <= 1001
    assert world.inference.calls.total() == 1
    await world.stage.close()


async def test_a_cancelled_batch_is_dropped_at_once(tmp_path: Path) -> None:
    """Its calls in flight end and count; nothing of it is called afterwards, now or when it is published again."""
    world = World(tmp_path)
    batch_id = ids.new_batch_id()
    world.inference.gate.clear()
    world.publish(batch_id, 0, 100)
    await until(lambda: world.inference.in_flight == 4, "calls")
    world.end(batch_id)
    assert world.stage.pending == 4
    world.inference.gate.set()
    world.publish(batch_id, 100, 10)
    await world.finish()
    assert len(world.log.lines) == world.inference.calls.total() == 4


async def test_a_group_waits_for_its_primer(tmp_path: Path) -> None:
    """One call of each group, and those that are in none; the rest is cancelled with the batch all the same."""
    world = World(tmp_path, limit=8, is_grouped=True)
    batch_id = ids.new_batch_id()
    world.inference.gate.clear()
    world.publish(batch_id, 0, 16)
    await until(lambda: world.inference.in_flight == 7, "four lines that are in no group, three primers")
    assert len(world.inference.calls) == 7
    world.end(batch_id)
    assert world.stage.pending == 7
    world.inference.gate.set()
    await world.finish()
    assert len(world.log.lines) == world.inference.calls.total() == 7


@pytest.mark.parametrize("faults", [0.0, 0.5])
async def test_the_rest_of_a_group_follows_the_end_of_its_primer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: float
) -> None:
    """Whatever its end was; it is not by its time that they go."""
    monkeypatch.setattr(waiting_lines, "PRIMER_SECONDS_MAX", 3600.0)
    world = World(tmp_path, limit=8, faults=faults, is_grouped=True)
    for number in range(5):
        world.publish(ids.new_batch_id(), number, 40)
    world.end(world.tap.records[0][0])
    await world.finish()
    assert len(world.log.lines) >= 160


async def test_a_group_whose_time_is_over_is_dropped(tmp_path: Path) -> None:
    """Its primer is never called, and the rest does not wait for that."""
    world = World(tmp_path, limit=1, is_grouped=True)
    world.inference.gate.clear()
    world.publish(ids.new_batch_id(), 1, 1)
    await until(lambda: world.inference.in_flight == 1, "the only call")
    late = ids.new_batch_id()
    world.tap.dropped.add(late)
    world.publish(late, 0, 40, seconds=60)
    world.ahead = 100
    world.inference.gate.set()
    await world.finish()
    assert world.inference.calls.total() == 1


async def test_a_primer_that_is_slow_holds_nobody_up_for_long(tmp_path: Path) -> None:
    """Its answer may take minutes, what was worked out for its beginning is there long before."""
    world = World(tmp_path, limit=8, is_grouped=True)
    world.inference.gate.clear()
    since = asyncio.get_running_loop().time()
    world.publish(ids.new_batch_id(), 1, 1)
    world.publish(ids.new_batch_id(), 4, 12)
    await until(lambda: world.inference.in_flight == 8, "all calls", seconds_max=PRIMER_SECONDS_MAX + 10)
    assert asyncio.get_running_loop().time() >= since + PRIMER_SECONDS_MAX - 0.1
    world.inference.gate.set()
    await world.finish()


async def test_what_is_late_is_dropped(tmp_path: Path) -> None:
    """No call, no outcome, and the record is acknowledged."""
    world = World(tmp_path)
    world.publish(ids.new_batch_id(), 0, 10, seconds=-5)
    await world.finish()
    assert world.inference.calls.total() == 0


async def test_a_log_that_is_away_holds_the_calls(tmp_path: Path) -> None:
    """What the log does not have yet counts as in flight."""
    world = World(tmp_path)
    world.log.gate.clear()
    world.publish(ids.new_batch_id(), 0, 50)
    await until(lambda: world.inference.good.total() == 4, "a full outbox")
    assert world.stage.busy == 4
    assert world.inference.calls.total() == 4
    assert world.tap.acked == []
    world.log.gate.set()
    await world.finish()
    assert world.inference.calls.total() == 50


async def test_what_fails_while_no_call_is_begun_is_tried_again(tmp_path: Path) -> None:
    """A process that its coordinator does not answer for a while lets go of nothing."""
    world = World(tmp_path, faults=1.0)
    world.inference.gate.clear()
    world.publish(ids.new_batch_id(), 0, 3)
    await until(lambda: world.inference.in_flight == 3, "calls")
    world.stage.halt()
    world.inference.gate.set()
    await until(lambda: not world.stage.busy, "their failures")
    assert world.stage.pending == 3
    world.inference.heal()
    world.stage.resume()
    await world.finish()
    assert len(world.log.lines) == 3


async def test_a_call_that_outlasts_the_drain_is_not_repeated(tmp_path: Path) -> None:
    """Its line comes back and finds it: the record waits for its outcome."""
    world = World(tmp_path)
    batch_id = ids.new_batch_id()
    world.inference.gate.clear()
    world.publish(batch_id, 0, 4)
    await until(lambda: world.inference.in_flight == 4, "calls")
    assert not await world.stage.drain(0.01)
    world.window.close()
    world.stage.forget_waiting()
    world.assign()
    world.publish(batch_id, 0, 4)
    assert world.tap.acked == []
    world.inference.gate.set()
    await world.finish()
    assert world.inference.calls.total() == 4


async def test_a_line_that_always_fails_gets_an_error_line(tmp_path: Path) -> None:
    """Others are answered, or what stands in for them: after ten tries, with what the backend said last."""
    world = World(tmp_path)
    world.inference.is_bad = lambda body: b'"n":7}' in body
    batch_id = ids.new_batch_id()
    world.publish(batch_id, 0, 12)
    await until(lambda: world.log.failed, "its end", seconds_max=60)
    await world.finish()
    assert world.log.failed == {(batch_id, 7)}
    # A try with no answer beside it does not count, and how many of these there are is for the machine to say.
    assert world.inference.calls.total() - 11 >= 10


async def test_no_wait_is_prolonged_by_a_clock_that_is_set_back(tmp_path: Path) -> None:
    """Tries, and pauses of a backend, are waited for by a clock that nobody sets."""
    world = World(tmp_path, faults=1.0, policy=Policy(wait_seconds_base=1.0, wait_seconds_max=1.0))
    world.publish(ids.new_batch_id(), 0, 6)
    await until(lambda: world.inference.calls.total() >= 6 and not world.stage.busy, "lines that wait")
    world.ahead = -600.0
    world.inference.heal()
    await world.finish()
    assert len(world.inference.good) == 6
