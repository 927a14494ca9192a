"""The dispatcher: each line once, in memory, concurrency and order, whatever fails."""

import asyncio
import itertools
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.dispatching import World
from support.waiting import until

from tidemill.processors.backends.token_bucket import TokenBucket
from tidemill.processors.calls.retry import Policy
from tidemill.processors.memory_budget import LineBudget
from tidemill.processors.scheduling import waiting_lines
from tidemill.schemas import ids

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
    assert world.repeats_max <= limit + 1
    assert not world.fleet.unacknowledged


class Answers(asyncio.Semaphore):
    """Lets as many calls end as `give` allows."""

    async def wait(self) -> None:
        """Wait for a turn."""
        await self.acquire()

    def give(self, calls: int) -> None:
        """Answer some calls."""
        for _ in range(calls):
            self.release()


@pytest.mark.parametrize("spare", [0, 2, 8])
async def test_a_result_holds_no_seat_until_there_are_too_many(tmp_path: Path, spare: int) -> None:
    """All calls stay in flight beside `spare` results; each one more takes the place of a call."""
    world = World(tmp_path, limit=8, unacknowledged=spare)
    answers = world.inference.gate = Answers(0)
    world.log.gate.clear()
    fleet, inference = world.fleet, world.inference
    world.publish(ids.new_batch_id(), 0, 100)
    for answered in range(1, 8 + spare + 1):
        answers.give(1)
        await until(lambda answered=answered: fleet.unacknowledged == answered, "a result")
        expected = 8 - max(0, answered - spare)
        await until(lambda expected=expected: inference.in_flight == expected, "calls beside it")
        assert fleet.in_flight == expected
        assert world.stage.busy == fleet.in_flight + fleet.unacknowledged
    assert inference.calls.total() == 8 + spare
    assert fleet.awaits_log
    world.log.gate.set()
    await until(lambda: inference.in_flight == 8 and not fleet.unacknowledged, "calls in the place of results")
    assert not fleet.awaits_log
    answers.give(100)
    await world.finish()
    assert world.repeats_max == 8 + spare


async def test_a_rebalance_waits_for_the_log(tmp_path: Path) -> None:
    """No call is in flight: the partitions stay until the log has acknowledged the results."""
    world = World(tmp_path)
    world.log.gate.clear()
    world.publish(ids.new_batch_id(), 0, 5)
    await until(lambda: world.fleet.unacknowledged == 5 and not world.fleet.in_flight, "results")
    assert not await world.stage.drain(0.01)
    world.log.gate.set()
    assert await world.stage.drain(20)
    assert len(world.tap.acked) == 1
    await world.finish()


async def test_a_process_makes_its_part_of_the_calls(tmp_path: Path) -> None:
    """With half of the partitions half of the calls, with all of them all calls; at least one in any case."""
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
    """Twenty batches at work: the calls in flight are of a few of them, so that results can share records."""
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
    """First go one call of each group, and lines in no group; a cancel of the batch drops the rest."""
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
    """With any outcome of the primer, and not before its end."""
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


async def test_a_slow_primer_delays_its_group_for_a_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer may take minutes; the server has the prefix in its cache long before."""
    monkeypatch.setattr(waiting_lines, "PRIMER_SECONDS_MAX", 0.05)
    world = World(tmp_path, limit=8, is_grouped=True)
    world.inference.gate.clear()
    world.publish(ids.new_batch_id(), 1, 1)
    world.publish(ids.new_batch_id(), 4, 12)
    await until(lambda: world.inference.in_flight == 8, "all calls")
    world.inference.gate.set()
    await world.finish()


async def test_what_is_late_is_dropped(tmp_path: Path) -> None:
    """No call, no outcome, and the record is acknowledged."""
    world = World(tmp_path)
    world.publish(ids.new_batch_id(), 0, 10, seconds=-5)
    await world.finish()
    assert world.inference.calls.total() == 0


async def test_a_log_that_is_away_holds_the_calls(tmp_path: Path) -> None:
    """No call begins beyond the bound of results that it does not acknowledge."""
    world = World(tmp_path)
    world.log.gate.clear()
    world.publish(ids.new_batch_id(), 0, 50)
    await until(lambda: world.inference.good.total() == 5, "a full outbox")
    assert world.stage.busy == 5
    assert world.inference.calls.total() == 5
    assert world.tap.acked == []
    world.log.gate.set()
    await world.finish()
    assert world.inference.calls.total() == 50


async def test_what_fails_while_no_call_is_begun_is_tried_again(tmp_path: Path) -> None:
    """A process whose coordinator does not answer for a while drops no line."""
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


async def test_a_line_that_always_fails_gets_an_error_line(tmp_path: Path) -> None:
    """While other lines, or probes, are answered: after ten tries, with the backend's last answer."""
    world = World(tmp_path)
    world.inference.is_bad = lambda body: b'"n":7}' in body
    batch_id = ids.new_batch_id()
    world.publish(batch_id, 0, 12)
    await until(lambda: world.log.failed, "its end")
    await world.finish()
    assert world.log.failed == {(batch_id, 7)}
    # A try with no answer beside it does not count, and how many of these there are is for the machine to say.
    assert world.inference.calls.total() - 11 >= 10


async def test_no_wait_is_prolonged_by_a_clock_that_is_set_back(tmp_path: Path) -> None:
    """Waits for retries and for paused backends use the monotonic clock."""
    world = World(tmp_path, faults=1.0, policy=Policy(wait_seconds_base=1.0, wait_seconds_max=1.0))
    world.publish(ids.new_batch_id(), 0, 6)
    await until(lambda: world.inference.calls.total() >= 6 and not world.stage.busy, "lines that wait")
    world.ahead = -600.0
    world.inference.heal()
    await world.finish()
    assert len(world.inference.good) == 6
