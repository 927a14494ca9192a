"""Tokens a minute, in virtual time."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.servers import backend
from support.virtual import Sample, Server

from tidemill.processors.backends.backend import Backend
from tidemill.processors.backends.pool import BackendPool
from tidemill.processors.backends.token_bucket import Taken, TokenBucket
from tidemill.processors.limits.concurrency_limit import ConcurrencyLimit

PER_MINUTE = 60_000
answers = st.sampled_from(
    [lambda _: 300, lambda rng: int(rng.expovariate(1 / 300)) + 1, lambda rng: rng.choice([1, 1, 1, 5_000])]
)


def server(fleet: BackendPool, tokens: Callable[..., int], line_bytes: int = 400, seed: int = 0) -> Server:
    return Server(fleet, capacity=lambda _: 1000, tokens=tokens, line_bytes=line_bytes, seed=seed)


def limited(*buckets: TokenBucket, own: TokenBucket | None = None) -> Backend:
    """A server with its own bucket, and those of its model."""
    return backend("http://a", ConcurrencyLimit(64), buckets=(*([own] if own else ()), *buckets), bucket=own)


@given(answers, st.sampled_from([100, 4_000, 40_000]), st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_the_rate_is_kept_to(tokens: Callable[..., int], line_bytes: int, seed: int) -> None:
    """However wrong the first estimates are: ten minutes use at most the allowed tokens, and hardly fewer."""
    world = server(BackendPool([limited(own=TokenBucket(PER_MINUTE))]), tokens, line_bytes, seed)
    world.run(60)
    steady = world.run(600)
    assert 0.95 * 10 * PER_MINUTE <= steady.tokens <= 1.05 * 10 * PER_MINUTE


class Counted(TokenBucket):
    """Counts the calls that take tokens."""

    calls = 0

    def take(self, size: int, lines: int = 1) -> float:
        self.calls += 1
        return super().take(size, lines)


def test_a_model_and_its_backends() -> None:
    """Each backend has its own limit, and together they have that of the model."""
    of_all, own = TokenBucket(PER_MINUTE), Counted(PER_MINUTE / 4)
    fleet = BackendPool([limited(of_all, own=own), limited(of_all)])
    world = server(fleet, lambda _: 300)
    world.run(60)
    before = own.calls
    steady = world.run(600)
    assert steady.tokens == pytest.approx(10 * PER_MINUTE, rel=0.05)
    assert (own.calls - before) * 300 == pytest.approx(10 * PER_MINUTE / 4, rel=0.05)


@given(st.lists(st.integers(1, 7), min_size=2, max_size=4))
@settings(max_examples=5, deadline=None)
def test_processes_share_a_rate(partitions: list[int]) -> None:
    """In proportion to their partitions, also when these move: together they use as much as one would."""
    worlds: list[Server] = []
    for count in partitions:
        fleet = BackendPool([limited(own=TokenBucket(PER_MINUTE))])
        fleet.set_part(1 / 28, 1000.0)
        fleet.set_part(count / sum(partitions), 1000.0)
        worlds.append(server(fleet, lambda _: 300))

    def together(seconds: float) -> list[Sample]:
        return [world.run(seconds) for world in worlds]

    together(60)
    steady = together(600)
    assert sum(sample.tokens for sample in steady) == pytest.approx(10 * PER_MINUTE, rel=0.05)
    assert steady[0].tokens == pytest.approx(10 * PER_MINUTE * partitions[0] / sum(partitions), rel=0.1)


def test_a_process_without_a_partition_for_a_moment_keeps_its_rate() -> None:
    """Calls that end meanwhile count by the part at which they began."""
    fleet = BackendPool([limited(own=TokenBucket(PER_MINUTE))])
    fleet.set_part(0.25, 1000.0)
    answer = {"latency_seconds": lambda _: 5.0, "tokens": lambda rng: rng.choice([100, 500])}
    world = Server(fleet, capacity=lambda _: 1000, line_bytes=400, **answer)
    for _ in range(3):
        world.run(60)
        fleet.set_part(0.0, world.now)
        world.rest(1)
        fleet.set_part(0.25, world.now)
        # The calls of the last five seconds have not ended.
        assert world.run(305).tokens == pytest.approx(5 * PER_MINUTE / 4, rel=0.1)


@pytest.mark.parametrize("settled_first", [False, True])
def test_a_debt_does_not_grow_with_the_part(settled_first: bool) -> None:
    """After a rebalance a process begins with few of its partitions, and reads the others later."""
    bucket = TokenBucket(PER_MINUTE)
    bucket.set_part(1 / 64, 0.0)
    taken = bucket.take(400)
    if settled_first:
        bucket.settle(taken, 4_000, 400)
    bucket.set_part(16 / 64, 3.0)
    if not settled_first:
        bucket.settle(taken, 4_000, 400)
    assert bucket.ready_at(3.0) - 3.0 <= (4_000 + 1) / (PER_MINUTE / 60 * 16 / 64)


def test_calls_that_use_nothing_cost_nothing() -> None:
    """Refused calls give their tokens back; calls that the server may have worked on do not."""
    bucket = TokenBucket(PER_MINUTE)
    taken = bucket.take(40_000)
    assert not bucket.allows(0.0)
    assert 0 < bucket.ready_at(0.0) <= 10.0
    bucket.give_back(taken)
    assert bucket.allows(0.0)


def test_a_call_larger_than_the_rate_goes_out() -> None:
    """The bucket then has a debt, for which the next call waits."""
    bucket = TokenBucket(60)
    assert bucket.allows(0.0)
    bucket.settle(bucket.take(4_000), 2_000, 4_000)
    assert not bucket.allows(1_900.0)
    assert bucket.allows(2_001.0)
    assert bucket.ready_at(2_001.0) == 2_001.0


@given(
    st.lists(
        st.tuples(st.sampled_from(["take", "settle", "back", "part", "wait"]), st.floats(0.1, 1)), max_size=60
    )
)
def test_what_is_in_it_is_bounded(steps: list[tuple[str, float]]) -> None:
    """In any case a pause saves up at most one second of the rate."""
    bucket, now, taken = TokenBucket(PER_MINUTE), 0.0, []
    for step, number in steps:
        match step:
            case "take":
                taken.append(bucket.take(int(1000 * number)))
            case "settle" if taken:
                bucket.settle(taken.pop(), int(500 * number), 400)
            case "back" if taken:
                bucket.give_back(taken.pop())
            case "part":
                bucket.set_part(number, now)
            case "wait":
                now += 60 * number
        assert bucket.allows(bucket.ready_at(now) + 0.01)
        assert bucket._level <= 1.001 * PER_MINUTE / 60


PARTS = st.sampled_from([0.0, 0.001, 1 / 28, 0.25, 1.0])


@given(
    st.lists(
        st.tuples(st.sampled_from(["take", "settle", "back", "wait"]), st.integers(1, 20_000))
        | st.tuples(st.just("part"), PARTS),
        max_size=60,
    )
)
def test_a_wait_is_no_longer_than_the_tokens_of_calls_explain(steps: list[tuple[str, float]]) -> None:
    """At the parts at which the calls began, whatever the part was when they ended."""
    bucket, now, per_second, part = TokenBucket(PER_MINUTE), 0.0, PER_MINUTE / 60, 1.0
    taken: list[tuple[Taken, float]] = []
    explained = 0.0
    for step, number in steps:
        match step:
            case "take":
                taken.append((bucket.take(int(number)), part))
                explained += taken[-1][0].tokens / (per_second * part)
            case "settle" if taken:
                one, then = taken.pop()
                bucket.settle(one, int(number), 400)
                explained += number / (per_second * then)
            case "back" if taken:
                bucket.give_back(taken.pop()[0])
            case "part":
                bucket.set_part(number, now)
                part = number or part
            case "wait":
                now += number / 100
        a_token = 1 / (per_second * part)
        assert bucket.ready_at(now) - now <= explained + 2 * a_token
