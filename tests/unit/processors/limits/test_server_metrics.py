"""Parsing of a metrics page."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.processors.limits.first_token import FirstTokenTarget
from tidemill.processors.limits.server_metrics import BOUNDS_MAX, Buckets, Mean, ServerMetrics, read

VLLM = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="Qwen/Qwen3-8B"} 12.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="Qwen/Qwen3-8B"} 3.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="Qwen/Qwen3-8B",reason="capacity"} 3.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="Qwen/Qwen3-8B"} 0.4375
vllm:prompt_tokens_total{engine="0",model_name="Qwen/Qwen3-8B"} 1.2e+06
"""
LLAMA = b"""# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 4
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred 46
"""


SGLANG = b"""# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{engine_type="unified",model_name="m",moe_ep_rank="0",pp_rank="0",tp_rank="0"} 7.0
sglang:num_running_reqs{engine_type="unified",model_name="m",moe_ep_rank="1",pp_rank="0",tp_rank="1"} 7.0
sglang:num_queue_reqs{engine_type="unified",model_name="m",pp_rank="0",tp_rank="0"} 2.0
sglang:token_usage{engine_type="unified",model_name="m",pp_rank="0",tp_rank="0"} 0.25
sglang:time_to_first_token_seconds_bucket{le="0.1",model_name="m"} 5.0
sglang:time_to_first_token_seconds_bucket{le="0.2",model_name="m"} 8.0
sglang:time_to_first_token_seconds_bucket{le="+Inf",model_name="m"} 9.0
sglang:inter_token_latency_seconds_sum{model_name="m"} 12.5
sglang:inter_token_latency_seconds_count{model_name="m"} 500.0
"""


def test_the_pages_of_servers() -> None:
    """That of vLLM as it is, as it was, with two engines, SGLang's with several ranks, and llama.cpp's."""
    assert read(SGLANG) == ServerMetrics(
        running=7,
        waiting=2,
        cache=0.25,
        first_token=Buckets((0.1, 0.2, math.inf), (5.0, 8.0, 9.0)),
        between_tokens=Mean(12.5, 500.0),
    )
    ranks = SGLANG.replace(b'model_name="m"', b'dp_rank="1",model_name="m"')
    assert (both := read(SGLANG + ranks)) is not None
    assert both.running == 14
    assert read(VLLM) == ServerMetrics(running=12, waiting=3, cache=0.4375)
    assert read(VLLM.replace(b"kv_cache", b"gpu_cache")) == ServerMetrics(running=12, waiting=3, cache=0.4375)
    second = VLLM.replace(b'engine="0"', b'engine="1"').replace(b"0.4375", b"0.5")
    assert read(VLLM + second) == ServerMetrics(running=24, waiting=6, cache=0.5)
    assert read(LLAMA) == ServerMetrics(running=4, waiting=46)


@pytest.mark.parametrize(
    "page",
    [b"", b"{}", b"<html>", b"te_queue_size 3\n", b"vllm:num_requests_running 3\n", VLLM.replace(b"3.0", b"NaN")],
)
def test_a_page_without_them_says_nothing(page: bytes) -> None:
    """Half of the metrics count as none, and so does a value that is not a number."""
    assert read(page) is None


def label(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


numbers = st.one_of(st.integers(0, 10**6), st.floats(0, 1e9))
samples = st.lists(
    st.tuples(
        st.sampled_from(
            ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc", "x"]
        ),
        st.dictionaries(st.sampled_from(["engine", "model_name"]), st.text(max_size=8)),
        numbers,
        st.sampled_from(["", " 1700000000000"]),
    ),
    max_size=8,
)


@given(samples)
def test_labels_hold_anything(found: list[tuple[str, dict[str, str], float, str]]) -> None:
    """Braces, quotes, names of other metrics: the sums are those of what was written."""
    text = "# a page\n"
    for name, labels, number, time in found:
        inner = ",".join(f'{key}="{label(value)}"' for key, value in labels.items())
        text += f"{name}{'{' + inner + '}' if labels else ''} {number}{time}\n"

    def of(kind: str) -> list[float]:
        return [number for name, _, number, _ in found if name.endswith(kind)]

    gauges = read(text.encode())
    if not of("running") or not of("waiting"):
        assert gauges is None
        return
    assert gauges is not None
    assert math.isclose(gauges.running, sum(of("running")))
    assert math.isclose(gauges.waiting, sum(of("waiting")))
    assert gauges.cache == max(of("perc"), default=0.0)


@given(st.binary(max_size=200), st.integers(0, len(VLLM)))
def test_no_page_is_an_error(junk: bytes, at: int) -> None:
    """Whatever a server sends."""
    read(VLLM[:at] + junk + VLLM[at:])
    read(b"vllm:num_requests_running" + junk)


BOUNDS = st.lists(st.floats(0.001, 1000), min_size=1, max_size=20, unique=True).map(sorted)


@given(BOUNDS, st.lists(st.integers(0, 50), min_size=21, max_size=21), st.floats(0.0001, 2000), st.integers(1, 3))
def test_a_histogram_is_read_as_it_was_written(
    bounds: list[float], counts: list[int], value: float, engines: int
) -> None:
    """Of all engines together; a value lies in its bucket."""
    bounds = [*bounds, math.inf]
    sums = [sum(counts[: number + 1]) for number in range(len(bounds))]
    page = "vllm:num_requests_running 1\nvllm:num_requests_waiting 0\n"
    for engine in range(engines):
        for bound, count in zip(bounds, sums, strict=True):
            le = "+Inf" if math.isinf(bound) else bound
            labels = f'engine="{engine}",le="{le}",model_name="a,le=\\"7\\""'
            page += f"vllm:time_to_first_token_seconds_bucket{{{labels}}} {count}\n"
    metrics = read(page.encode())
    assert metrics is not None
    found = metrics.first_token
    assert found == Buckets(tuple(bounds), tuple(float(engines * count) for count in sums))
    above, beyond, part = found.around(value)
    assert found.count >= above >= beyond >= 0
    assert 0 <= part <= 1
    assert found.around(bounds[0]) == (found.count, found.count - found.counts[0], 1.0)
    assert found.less(found) == Buckets(found.bounds, (0.0,) * len(bounds))
    if found.count:
        assert Buckets(found.bounds, (0.0,) * len(bounds)).less(found) is None


HOSTILE = st.lists(
    st.tuples(
        st.sampled_from(["vllm:time_to_first_token_seconds_bucket", "vllm:inter_token_latency_seconds_sum",
                         "vllm:inter_token_latency_seconds_count", "sglang:num_running_reqs"]),
        st.sampled_from(["", "le", "tp_rank", "le=", "x"]),
        st.one_of(st.text(max_size=9), st.floats().map(str), st.just("+Inf"), st.just("1e400")),
        st.one_of(st.text(max_size=9), st.floats().map(str)),
    ),
    max_size=30,
)  # fmt: skip


@given(st.lists(HOSTILE, max_size=4), st.floats(0.001, 10))
def test_no_histogram_is_an_error(pages: list[list[tuple[str, str, str, str]]], seconds: float) -> None:
    """Whatever a server sends, in whatever order; the target takes it all."""
    target = FirstTokenTarget(seconds)
    for lines in pages:
        text = "vllm:num_requests_running 1\nvllm:num_requests_waiting 0\n"
        text += "".join(f'{name}{{{label}="{value}"}} {number}\n' for name, label, value, number in lines)
        metrics = read(text.encode(errors="surrogatepass"))
        assert metrics is None or metrics.running >= 0
        if metrics is not None:
            target.read(metrics, is_settled=True)
            assert target.factor is None or math.isfinite(target.factor)
            assert 0 <= target.pause(1.0) <= 1


def test_a_histogram_of_too_many_buckets_is_not_read() -> None:
    """However large a page is, the parser keeps few of its numbers."""
    page = b"vllm:num_requests_running 1\nvllm:num_requests_waiting 0\n" + b"".join(
        b'vllm:time_to_first_token_seconds_bucket{le="%d"} 1\n' % number for number in range(1, BOUNDS_MAX + 2)
    )
    assert (metrics := read(page)) is not None
    assert metrics.first_token is None
