"""The model of a server with continuous batching behaves as vLLM's documentation and measurements say.

Throughput grows with the number of running sequences up to `max_num_seqs`; above it, a first token waits until
others end; without free blocks a sequence is preempted and recomputed (vLLM's "Optimization and tuning").
"""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from support.engine import Engine, EngineSettings, Request
from support.engine_metrics import TO_FIRST_TOKEN

LONG = EngineSettings(max_num_seqs=32)


def advance(engine: Engine, now: float = 0.0, *, steps: int = 100_000) -> tuple[float, list[Request]]:
    """Step until nothing is left, or a number of times; returns the time, and the ended requests."""
    ended: list[Request] = []
    while steps and not engine.is_idle:
        seconds = engine.begin(now)
        now += seconds
        ended += engine.end(now, seconds)
        steps -= 1
    return now, ended


def closed_loop(engine: Engine, clients: int, seconds: float) -> list[Request]:
    """Each client asks again as soon as it has its answer."""
    now, ended = 0.0, []
    for number in range(clients):
        engine.submit(100, 50 + number % 100, now)
    while now < seconds:
        step = engine.begin(now)
        now += step
        for request in engine.end(now, step):
            ended.append(request)
            engine.submit(100, request.output, now)
    return ended


def test_throughput_grows_with_sequences_and_ends_at_the_most() -> None:
    """Requests beyond `max_num_seqs` wait, which only lengthens the time to the first token."""
    rates, firsts, waiting = [], [], []
    for clients in (1, 4, 16, 32, 64, 128):
        engine = Engine(LONG)
        ended = closed_loop(engine, clients, 60.0)
        rates.append(sum(one.output for one in ended) / 60.0)
        late = [one.first_token_at - one.arrived_at for one in ended[len(ended) // 2 :]]
        firsts.append(sorted(late)[len(late) // 2])
        waiting.append(engine.metrics.waiting)
        assert engine.metrics.running <= LONG.max_num_seqs
    growth = [later / before for before, later in pairwise(rates)]
    assert all(1.3 < factor < 4 for factor in growth[:3])
    assert all(0.95 < factor < 1.05 for factor in growth[3:])
    assert firsts == sorted(firsts)
    assert firsts[3] < 0.05
    assert 0.5 < firsts[4] < firsts[5] / 2
    assert waiting == [0, 0, 0, 0, 32, 96]


def test_long_prompts_come_in_chunks_and_stop_no_one() -> None:
    """Decoding sequences get a token in each step, and the prompt the rest of `max_num_batched_tokens`."""
    engine = Engine(EngineSettings())
    decoding = engine.submit(10, 100, 0.0)
    now, _ = advance(engine, steps=10)
    long = engine.submit(5000, 10, now)
    for step in (1, 2, 3):
        assert long.first_token_at is None
        now, _ = advance(engine, now, steps=1)
        assert engine.metrics.generated == 10 + step + (step == 3)
    assert long.first_token_at == now
    assert {decoding, long} == set(advance(engine, now)[1])


def test_without_blocks_the_last_sequence_is_preempted_and_computed_anew() -> None:
    """It keeps its first token, and the first sequences end undisturbed."""
    engine = Engine(EngineSettings(num_blocks=64))
    requests = [engine.submit(100, 400, 0.0) for _ in range(8)]
    seconds = engine.begin(0.0)
    engine.end(seconds, seconds)
    assert engine.metrics.running == 8
    _, ended = advance(engine, seconds)
    assert ended[0] is requests[0]
    assert engine.metrics.preemptions >= 4
    assert all(one.generated == one.output and one.first_token_at == seconds for one in ended)
    assert engine.metrics.cache == 0
    roomy = Engine(EngineSettings())
    closed_loop(roomy, 64, 10.0)
    assert roomy.metrics.preemptions == 0


@pytest.mark.parametrize("by_priority", [False, True])
def test_urgent_requests_pass_the_queue_if_the_server_schedules_by_priority(by_priority: bool) -> None:
    """Otherwise `priority` changes nothing."""
    engine = Engine(EngineSettings(max_num_seqs=2, by_priority=by_priority))
    lines = [engine.submit(10, 50, 0.0, priority=1_800_000_000) for _ in range(6)]
    now, _ = advance(engine, steps=5)
    person = engine.submit(10, 50, now)
    _, ended = advance(engine, now)
    assert ended == ([*lines[:2], person, *lines[2:]] if by_priority else [*lines, person])


REQUESTS = st.lists(st.tuples(st.integers(1, 90), st.integers(1, 60), st.integers(0, 3), st.integers(0, 5)))


@settings(max_examples=200)
@given(REQUESTS, st.integers(10, 40), st.integers(1, 8), st.booleans(), st.sets(st.integers(0, 20)))
def test_each_request_gets_all_its_tokens(
    asked: list[tuple[int, int, int, int]], num_blocks: int, seqs: int, by_priority: bool, cancelled: set[int]
) -> None:
    """Whatever is preempted or cancelled; all blocks come back, and no step has too many sequences or tokens."""
    costs = {"step_seconds": 0.0, "sequence_seconds": 0.0, "prompt_token_seconds": 1.0}
    engine = Engine(
        EngineSettings(
            num_blocks=num_blocks, max_num_seqs=seqs, max_num_batched_tokens=16, by_priority=by_priority, **costs
        )
    )
    requests, ended = [], []
    for number, (prompt, output, priority, steps) in enumerate(asked):
        requests.append(engine.submit(prompt, output, 0.0, priority))
        for _ in range(steps):
            tokens = engine.begin(0.0)
            assert tokens <= 16
            assert engine.running <= seqs
            ended += engine.end(0.0, tokens)
        if number in cancelled:
            engine.cancel(requests[number // 2])
    ended += advance(engine)[1]
    assert len(ended) == len(set(ended))
    assert {one for one in requests if one.generated == one.output} == set(ended)
    assert len(ended) >= len(requests) - len(cancelled)
    assert all(one.ended_at is not None for one in ended)
    assert engine.is_idle
    assert engine.free_blocks == num_blocks


def test_the_page_has_the_names_and_the_shape_of_vllms() -> None:
    """A Prometheus parser reads the right values from it."""
    engine = Engine(LONG)
    ended = closed_loop(engine, 40, 5.0)
    families = {one.name: one for one in text_string_to_metric_families(engine.metrics.page.decode())}
    number = {sample.name: sample.value for one in families.values() for sample in one.samples}
    assert number["vllm:num_requests_running"] == 32
    assert number["vllm:num_requests_waiting"] == 8
    assert 0 < number["vllm:kv_cache_usage_perc"] < 1
    assert number["vllm:num_preemptions_total"] == 0
    first = families["vllm:time_to_first_token_seconds"]
    assert first.type == "histogram"
    counts = {one.labels["le"]: one.value for one in first.samples if one.name.endswith("_bucket")}
    assert list(counts) == [*map(str, TO_FIRST_TOKEN), "+Inf"]
    assert list(counts.values()) == sorted(counts.values())
    assert len(ended) <= counts["+Inf"] == number["vllm:time_to_first_token_seconds_count"] <= len(ended) + 32
    assert (
        number["vllm:generation_tokens_total"] == number["vllm:inter_token_latency_seconds_count"] + counts["+Inf"]
    )
