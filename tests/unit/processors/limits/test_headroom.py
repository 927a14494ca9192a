"""People beside batches, at a server with continuous batching in virtual time (`limits/interactive.py`)."""

import math
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from limits.interactive import SEEDS, SERVER, TRAFFIC, alone, best_fixed, figures, headroom, off, on, pool, world
from support.engine import EngineSettings

from tidemill.processors.limits.headroom import STALE_SECONDS, UNKNOWN_CALLS, Headroom
from tidemill.processors.limits.server_metrics import Buckets, Mean, ServerMetrics


def test_people_come_first_without_a_number() -> None:
    """People's latency grows 2.5-fold at most, without queueing; the batch keeps 85 % of its rate."""
    first, kept = on(), off()
    assert first.p99 <= 2.5 * alone().p99
    assert first.waited == 0
    assert kept.p99 > 10 * first.p99
    assert first.rate >= 0.85 * kept.rate


def test_what_stays_free_for_people_costs_little_while_there_are_none() -> None:
    """At least 85 % of the rate."""
    assert on(seeds=2, people=lambda _: 0.0).rate >= 0.85 * off(seeds=2, people=lambda _: 0.0).rate


def test_few_people_wait_while_the_capacity_is_learned() -> None:
    """Once, and for as long as a few calls take to end."""
    for seed in SEEDS:
        one = world([pool(headroom(seed=seed))], seed)
        seen = one.run(120.0)
        late = [person for person in seen.people if person.waited_steps > 1]
        assert len(late) <= 8 * TRAFFIC.people(0.0)
        assert max(seen.first_tokens()) <= 4.0
        assert one.polls <= 120 + 4 * 30


@pytest.mark.parametrize(
    "changes",
    [
        {"max_num_seqs": 16, "people_output": 50, "line_output": 100, "people": lambda _: 2.0},
        {"max_num_seqs": 100, "step_seconds": 0.02, "sequence_seconds": 0.00004, "people": lambda _: 1.0},
        {"line_output": 20},
    ],
    ids=["small", "flat", "short"],
)
def test_other_servers_and_lines_too(changes: dict[str, object]) -> None:
    """Hardly one person in a hundred waits, and the batch keeps three quarters of its rate."""
    found, kept = on(seeds=2, **changes), off(seeds=2, **changes)
    assert found.waited <= 0.01
    assert found.p99 <= 0.3 * kept.p99
    assert found.rate >= 0.75 * kept.rate


def test_where_a_quarter_is_not_enough_a_target_is() -> None:
    """On a server with short steps that works on each sequence for long."""
    steep = {"step_seconds": 0.003, "sequence_seconds": 0.0004, "people": lambda _: 2.0}
    assert on(seeds=2, **steep).p99 > 2.5 * alone(**steep).p99
    assert on(0.06, seeds=2, **steep).p99 <= 0.065


def test_a_cache_that_fills_is_left_to_people() -> None:
    """Without headroom the server preempts thousands of times; with it hardly ever."""
    preempted = []
    for one in (pool(), pool(headroom())):
        run = world([one], num_blocks=1600)
        run.run(300.0)
        preempted.append(run.engine.metrics.preemptions)
    assert preempted[0] > 1000
    assert preempted[1] < preempted[0] / 20


def test_a_target_is_kept_at_the_highest_concurrency_that_keeps_it() -> None:
    """People's p99 is within it, and the batch has nine tenths of what the best fixed limit gives."""
    found, best = on(0.06), best_fixed(0.06)
    assert found.p99 <= 0.06
    assert found.waited == 0
    assert found.rate >= 0.9 * best.rate


def test_a_target_beyond_the_capacity_does_not_fill_the_server() -> None:
    """More calls would only wait there."""
    found = on(0.25)
    assert found.p99 <= 0.25
    assert found.waited <= 0.01
    assert found.rate >= 0.85 * off().rate


@pytest.mark.parametrize("ttft_seconds", [None, 0.06])
def test_it_follows_within_ten_seconds_as_people_come_and_go(ttft_seconds: float | None) -> None:
    """The batch makes room for them, and gets it back; people of the first seconds hardly wait longer."""

    def people(now: float) -> float:
        return 4.0 if now % 200 >= 100 else 0.0

    for seed in SEEDS:
        seen = world([pool(headroom(ttft_seconds, seed=seed))], seed, people=people).run(400.0)
        calls = {int(at): level for at, level in seen.levels}
        before, during = (fmean(calls[at] for at in range(begin, begin + 40)) for begin in (60, 160))
        assert calls[110] <= before - 20
        assert calls[210] >= 0.8 * before >= 1.1 * during
        coming = figures([seen], 100.0, 110.0).p99
        assert coming <= 1.5 * figures([seen], 110.0, 200.0).p99


def test_a_target_does_not_swing() -> None:
    """Once found, the number of requests at the server varies by at most a sixth."""
    room = headroom(0.06)
    one = world([pool(room)])
    totals = []
    one.run(100.0)
    for _ in range(200):
        one.run(1.0)
        totals.append(one.engine.running)
    mean = sum(totals) / len(totals)
    assert math.sqrt(sum((total - mean) ** 2 for total in totals) / len(totals)) <= mean / 6


@pytest.mark.parametrize("ttft_seconds", [None, 0.06])
def test_a_server_that_starts_anew_with_other_settings_is_learned_anew(ttft_seconds: float | None) -> None:
    """Its counters begin again."""
    one = world([pool(headroom(ttft_seconds))])
    one.run(100.0)
    one.page = lambda _: None
    one.run(STALE_SECONDS / 2)
    one.restart(EngineSettings(max_num_seqs=48, step_seconds=0.004))
    one.page = lambda page: page
    seen = one.run(150.0)
    found = figures([seen], 150.0, 250.0)
    assert found.waited <= 0.02
    assert found.calls >= 8


def test_slow_polls_are_enough() -> None:
    """A poller that comes every five seconds."""
    one = world([pool(headroom())])
    one.poll_seconds = 5.0
    found = figures([one.run(400.0)], 200.0)
    assert found.waited <= 0.01
    assert found.p99 <= 3 * alone().p99


def test_a_server_that_schedules_by_priority() -> None:
    """Only lines would wait there; the target holds, and lines go on."""
    one = world([pool(headroom(0.06))], by_priority=True, line_priority=1_800_000_000)
    found = figures([one.run(400.0)])
    assert found.p99 <= 0.065
    assert found.rate >= 0.6 * off(seeds=1, by_priority=True, line_priority=1_800_000_000).rate


def test_several_processes_share_the_headroom() -> None:
    """Together they make as many calls as one would."""
    pools = [pool(headroom(seed=number)) for number in range(2)]
    for one in pools:
        one.set_part(0.5, 0.0)
    found, lone = figures([world(pools).run(400.0)]), on()
    assert found.p99 <= 2.5 * alone().p99
    assert 2 * found.calls == pytest.approx(lone.calls, rel=0.1)


def test_without_the_histogram_a_quarter_stays_free() -> None:
    """A server that reports only gauges."""
    room = headroom(0.06)
    one = world([pool(room)])
    one.page = lambda page: b"\n".join(line for line in page.split(b"\n") if b"_seconds" not in line)
    found = figures([one.run(400.0)])
    assert room.target is not None
    assert not room.target.is_measured
    assert found.waited == 0
    assert found.p99 <= 2.5 * alone().p99


def test_people_who_fill_the_server_leave_nothing() -> None:
    """No call goes out until there are fewer of them."""
    one = world([pool(headroom())], people=lambda now: 20.0 if now < 60 else 0.0)
    seen = one.run(60.0)
    assert {calls for at, calls in seen.levels if 40 < at < 60} == {0}
    assert one.run(240.0).levels[-1][1] > SERVER.max_num_seqs / 2


@pytest.mark.parametrize(
    "before",
    [[], [(1, 0, 0.9)], [(0, 1, 0.0), (0, 1, 0.0)], [(1, 1, 0.0), (1, 1, 0.0)], [(8, 0, 0.95)]],
    ids=[
        "idle",
        "one filled the cache",
        "none ran while one waited",
        "one ran while one waited",
        "some filled it",
    ],
)
@pytest.mark.parametrize("cache", [0.0, 0.05, 1.0])
def test_an_idle_server_gets_calls(before: list[tuple[float, float, float]], cache: float) -> None:
    """Whatever cache usage it reports, and whatever filled it before."""
    room, now = Headroom(), 1000.0
    for running, waiting, used in [*before, *[(0, 0, cache)] * 30]:
        now += 1
        room.read(ServerMetrics(running=running, waiting=waiting, cache=used), 0, 1.0, now)
    assert room.left(now + 1) >= 1


def test_one_of_many_processes_gets_calls_of_an_idle_server() -> None:
    """The total grows until this process's part of it is one call."""
    room, now = Headroom(), 1000.0
    for running in [2, *[0] * 30]:
        now += 1
        room.read(ServerMetrics(running=running, waiting=0, cache=0.25 if running else 0.0), 0, 0.1, now)
    assert room.left(now + 1) >= 1


def test_without_a_reading_one_call_goes_out() -> None:
    """At the start, and once the last one is old."""
    room = Headroom()
    assert room.left(1000.0) == UNKNOWN_CALLS
    room.read(ServerMetrics(running=10, waiting=0), 4, 1.0, 1000.0)
    assert room.left(1002.0) > UNKNOWN_CALLS
    assert room.left(1001.0 + STALE_SECONDS) == UNKNOWN_CALLS


@pytest.mark.parametrize(
    ("before", "after"),
    [((3.5, 100), (3.5, 200)), ((0, 100), (5e-324, 200)), ((0, 0), (1e-320, 1e15)), ((0, 0), (1e15, 1e-300))],
)
def test_no_time_between_tokens_breaks_the_target(before: tuple[float, float], after: tuple[float, float]) -> None:
    """A server may report tokens that took no time, or next to none."""
    room = Headroom(0.06)
    for second, between in enumerate([before, after, (1e15 + 1, 1e15 + 1)]):
        metrics = ServerMetrics(
            running=8, waiting=0, first_token=Buckets((0.05, 0.1), (0.0, 0.0)), between_tokens=Mean(*between)
        )
        room.read(metrics, 8, 1.0, 1000.0 + second)
        assert room.left(1000.0 + second) >= 1
        assert room.target is not None
        assert math.isfinite(room.target.factor or 1.0)


READINGS = st.lists(
    st.tuples(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 2), st.floats(0, 40), st.floats(0, 1e6)),
    max_size=40,
)


@given(READINGS, st.sampled_from([None, 0.06]), st.floats(0.001, 1))
def test_no_reading_breaks_it(
    readings: list[tuple[float, float, float, float, float]], ttft_seconds: float | None, part: float
) -> None:
    """Whatever a server reports, the number of calls is finite and not negative."""
    room, now = headroom(ttft_seconds), 0.0
    for running, waiting, cache, seconds, ours in readings:
        now += seconds
        room.read(ServerMetrics(running=running, waiting=waiting, cache=cache), ours, part, now)
        assert room.left(now) >= 0
        assert room.left(now + 1) >= 0
        assert 0 <= room.pause <= 1
